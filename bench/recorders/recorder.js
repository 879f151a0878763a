// Makes COUNT unary calls with grpc-js on one connection, 50 at a time; the paths take turns.
// Run by `python -m bench.capture`: PROGRAM TARGET COUNT PATH...

const grpc = require("@grpc/grpc-js");
const { version } = require("@grpc/grpc-js/package.json");

const [target, count, ...paths] = process.argv.slice(2);
const client = new grpc.Client(target, grpc.credentials.createInsecure());
const asItIs = (bytes) => bytes;

function call(path) {
  const options = { deadline: Date.now() + 5000 };
  return new Promise((resolve, reject) => {
    client.makeUnaryRequest(path, asItIs, asItIs, Buffer.alloc(0), options, (error) =>
      error ? reject(error) : resolve(),
    );
  });
}

let next = 0;
async function worker() {
  while (next < Number(count)) {
    await call(paths[next++ % paths.length]);
  }
}

async function main() {
  await Promise.all(Array.from({ length: 50 }, worker));
  client.close();
  process.stdout.write(`grpc-js ${version}, Node ${process.version}, nghttp2 ${process.versions.nghttp2}`);
}

main();
