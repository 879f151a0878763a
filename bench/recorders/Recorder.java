// Makes COUNT unary calls with grpc-java on one connection, 50 at a time; the paths take turns.
// Run by `python -m bench.capture`: PROGRAM TARGET COUNT PATH...

import io.grpc.CallOptions;
import io.grpc.ManagedChannel;
import io.grpc.MethodDescriptor;
import io.grpc.MethodDescriptor.MethodType;
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder;
import io.grpc.stub.ClientCalls;
import java.io.ByteArrayInputStream;
import java.io.InputStream;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;

public final class Recorder {
  /** Passes bytes as they are: only the headers matter here. */
  private static final class Bytes implements MethodDescriptor.Marshaller<byte[]> {
    @Override
    public InputStream stream(byte[] value) {
      return new ByteArrayInputStream(value);
    }

    @Override
    public byte[] parse(InputStream stream) {
      return new byte[0];
    }
  }

  public static void main(String[] arguments) throws Exception {
    ManagedChannel channel = NettyChannelBuilder.forTarget(arguments[0]).usePlaintext().build();
    int count = Integer.parseInt(arguments[1]);
    ExecutorService workers = Executors.newFixedThreadPool(50);
    List<Callable<byte[]>> calls = new ArrayList<>();
    for (int number = 0; number < count; number++) {
      String path = arguments[2 + number % (arguments.length - 2)];
      calls.add(() -> call(channel, path));
    }
    for (Future<byte[]> call : workers.invokeAll(calls)) {
      call.get();
    }
    workers.shutdown();
    channel.shutdownNow().awaitTermination(5, TimeUnit.SECONDS);
    System.out.printf("Java %s", System.getProperty("java.version"));
  }

  private static byte[] call(ManagedChannel channel, String path) {
    MethodDescriptor<byte[], byte[]> method =
        MethodDescriptor.newBuilder(new Bytes(), new Bytes())
            .setType(MethodType.UNARY)
            .setFullMethodName(path.substring(1))
            .build();
    CallOptions options = CallOptions.DEFAULT.withDeadlineAfter(5, TimeUnit.SECONDS);
    return ClientCalls.blockingUnaryCall(channel, method, options, new byte[0]);
  }
}
