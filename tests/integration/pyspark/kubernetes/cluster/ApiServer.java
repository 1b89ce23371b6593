import io.fabric8.kubernetes.client.server.mock.KubernetesCrudDispatcher;
import io.fabric8.kubernetes.client.server.mock.KubernetesMockServer;
import io.fabric8.mockwebserver.Context;
import io.fabric8.mockwebserver.MockWebServer;
import io.fabric8.mockwebserver.http.MockResponse;
import io.fabric8.mockwebserver.http.RecordedRequest;
import java.io.PrintWriter;
import java.net.InetAddress;
import java.util.HashMap;
import java.util.List;

/**
 * An API server of Kubernetes on loopback, without authentication, that stores objects and lets clients watch them.
 *
 * <p>Writes each request into the file of the first argument, and prints the port. The end of its input ends it.
 */
public final class ApiServer {
  public static void main(String[] arguments) throws Exception {
    PrintWriter requests = new PrintWriter(arguments[0]);
    KubernetesCrudDispatcher objects =
        new KubernetesCrudDispatcher(List.of()) {
          @Override
          public MockResponse dispatch(RecordedRequest request) {
            synchronized (requests) {
              requests.println(request.method() + " " + request.getPath());
              requests.flush();
            }
            return super.dispatch(request);
          }
        };
    KubernetesMockServer server =
        new KubernetesMockServer(new Context(), new MockWebServer(), new HashMap<>(), objects, false);
    server.init(InetAddress.getLoopbackAddress(), 0);
    System.out.println(server.getPort());
    while (System.in.read() >= 0) {
      continue;
    }
    Runtime.getRuntime().halt(0);
  }
}
