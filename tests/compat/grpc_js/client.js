// What test_grpc_js.py asks of @grpc/grpc-js: `node client.js TARGET PROTO_ROOT` prints one line of
// JSON with what the member answered. It judges nothing.
"use strict";

const crypto = require("node:crypto");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [target, protoRoot] = process.argv.slice(2);
const VALUES = 68;
const VALUE_BYTES = 1560000; // 68 of them are 101 MiB; one is just under --max-request-bytes
const EVENTS = 10;
const DEADLINE_MS = 60000;

const definition = loader.loadSync("kvstore/pb/rpc.proto", {
  includeDirs: [protoRoot],
  keepCase: true,
  longs: Number,
  enums: String,
  defaults: true,
  arrays: true,
});
const api = grpc.loadPackageDefinition(definition).etcdserverpb;
const credentials = grpc.credentials.createInsecure();
const options = { "grpc.max_receive_message_length": -1 };
const kv = new api.KV(target, credentials, options);
const watch = new api.Watch(target, credentials, options);

function call(method, request) {
  const deadline = Date.now() + DEADLINE_MS;
  return new Promise((resolve, reject) => {
    kv[method](request, { deadline }, (error, reply) => (error ? reject(error) : resolve(reply)));
  });
}

async function put() {
  const reply = await call("put", { key: Buffer.from("js/one"), value: Buffer.from("1") });
  const read = await call("range", { key: Buffer.from("js/one") });
  return { revision: reply.header.revision, value: read.kvs[0].value.toString() };
}

async function refused() {
  const request = { key: Buffer.from("js/huge"), value: Buffer.alloc(1600000) };
  const error = await call("put", request).catch((caught) => caught);
  return { code: error.code, details: error.details };
}

async function largeRange() {
  for (let number = 0; number < VALUES; number++) {
    const key = Buffer.from(`js/large/${String(number).padStart(3, "0")}`);
    await call("put", { key, value: Buffer.alloc(VALUE_BYTES, number) });
  }
  const all = { key: Buffer.from("js/large/"), range_end: Buffer.from("js/large0") };
  const reply = await call("range", all);
  const hash = crypto.createHash("sha256");
  for (const pair of reply.kvs) hash.update(pair.value);
  return { count: reply.count, values: reply.kvs.length, sha256: hash.digest("hex") };
}

function watching() {
  const stream = watch.watch();
  const events = [];
  return new Promise((resolve, reject) => {
    stream.on("error", (error) => error.code === grpc.status.CANCELLED || reject(error));
    stream.on("data", (reply) => {
      if (reply.created) {
        (async () => {
          for (let number = 0; number < EVENTS; number++) {
            const value = Buffer.from(String(number));
            await call("put", { key: Buffer.from("js/watched/k"), value });
          }
        })().catch(reject);
      } else if (reply.canceled) {
        stream.cancel(); // as with etcd, a half-closed watch would go on
      } else {
        for (const { type, kv } of reply.events) {
          events.push([type, kv.key.toString(), kv.value.toString(), kv.version]);
        }
        if (events.length === EVENTS) {
          stream.write({ cancel_request: { watch_id: reply.watch_id } });
        }
      }
    });
    stream.on("status", (status) => resolve({ events, code: status.code }));
    stream.write({
      create_request: { key: Buffer.from("js/watched/"), range_end: Buffer.from("js/watched0") },
    });
  });
}

(async () => {
  const seen = { put: await put(), refused: await refused() };
  seen.largeRange = await largeRange();
  seen.watch = await watching();
  kv.close();
  watch.close();
  console.log(JSON.stringify(seen));
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
