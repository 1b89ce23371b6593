import io.fabric8.kubernetes.api.model.Pod;
import io.fabric8.kubernetes.api.model.PodStatusBuilder;
import io.fabric8.kubernetes.client.server.mock.KubernetesCrudDispatcher;
import io.fabric8.kubernetes.client.server.mock.KubernetesMockServer;
import io.fabric8.kubernetes.client.utils.Serialization;
import io.fabric8.mockwebserver.Context;
import io.fabric8.mockwebserver.MockWebServer;
import io.fabric8.mockwebserver.http.Buffer;
import io.fabric8.mockwebserver.http.MockResponse;
import io.fabric8.mockwebserver.http.RecordedRequest;
import java.io.PrintWriter;
import java.net.InetAddress;
import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.List;

/**
 * An API server of Kubernetes on loopback, without authentication, that stores objects and lets clients watch them.
 *
 * <p>Writes each request that is not the tests' own into the file of the first argument, and prints the port. The
 * end of its input ends it.
 */
public final class ApiServer {
  public static void main(String[] arguments) throws Exception {
    PrintWriter requests = new PrintWriter(arguments[0]);
    KubernetesCrudDispatcher objects =
        new KubernetesCrudDispatcher(List.of()) {
          @Override
          public MockResponse dispatch(RecordedRequest request) {
            if (!"tests".equals(request.getHeader("User-Agent"))) {
              synchronized (requests) {
                requests.println(request.method() + " " + request.getPath());
                requests.flush();
              }
            }
            return super.dispatch(request);
          }

          /** A new pod is pending, whatever its creator says. */
          @Override
          public MockResponse handleCreate(RecordedRequest request) {
            if (!request.getPath().replaceFirst("\\?.*", "").endsWith("/pods")) {
              return super.handleCreate(request);
            }
            Pod pod = Serialization.unmarshal(request.getUtf8Body(), Pod.class);
            pod.setStatus(new PodStatusBuilder().withPhase("Pending").build());
            Buffer body = new Buffer(Serialization.asJson(pod).getBytes(StandardCharsets.UTF_8));
            return super.handleCreate(
                new RecordedRequest(
                    request.getHttpVersion(), request.method(), request.getPath(), request.getHeaders(), body));
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
