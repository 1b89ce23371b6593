import java.io.BufferedReader;
import java.io.File;
import java.io.FileOutputStream;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.util.Map;
import org.apache.hadoop.yarn.conf.YarnConfiguration;
import org.apache.hadoop.yarn.server.MiniYARNCluster;

/**
 * A ResourceManager and two NodeManagers in one JVM, on loopback.
 *
 * <p>Writes the configuration for clients into the directory of the first argument and prints "ready". Then it
 * reads commands, and answers each with "done": "stop-node N" stops a NodeManager with all its containers. The
 * end of its input ends it.
 */
public final class YarnCluster {
  private static final Map<String, String> SETTINGS =
      Map.ofEntries(
          Map.entry("fs.defaultFS", "file:///"),
          Map.entry("yarn.scheduler.minimum-allocation-mb", "64"),
          Map.entry("yarn.nodemanager.resource.memory-mb", "4096"),
          Map.entry("yarn.nodemanager.resource.cpu-vcores", "8"),
          Map.entry("yarn.nodemanager.vmem-check-enabled", "false"),
          Map.entry("yarn.nodemanager.pmem-check-enabled", "false"),
          Map.entry("yarn.nodemanager.disk-health-checker.enable", "false"),
          Map.entry("yarn.scheduler.capacity.root.queues", "default,small"),
          Map.entry("yarn.scheduler.capacity.root.default.capacity", "50"),
          Map.entry("yarn.scheduler.capacity.root.small.capacity", "50"),
          Map.entry("yarn.scheduler.capacity.root.default.maximum-capacity", "100"),
          Map.entry("yarn.scheduler.capacity.root.small.maximum-capacity", "100"),
          Map.entry("yarn.scheduler.capacity.root.default.user-limit-factor", "2"),
          Map.entry("yarn.scheduler.capacity.maximum-am-resource-percent", "0.8"));

  public static void main(String[] arguments) throws Exception {
    YarnConfiguration settings = new YarnConfiguration();
    SETTINGS.forEach(settings::set);
    String user = System.getProperty("user.name");
    settings.set("hadoop.proxyuser." + user + ".hosts", "*");
    settings.set("hadoop.proxyuser." + user + ".users", "*");
    MiniYARNCluster cluster = new MiniYARNCluster("jobs", 1, 2, 1, 1);
    cluster.init(settings);
    cluster.start();
    for (String name : new String[] {"yarn-site.xml", "core-site.xml"}) {
      try (OutputStream file = new FileOutputStream(new File(arguments[0], name))) {
        cluster.getConfig().writeXml(file);
      }
    }
    System.out.println("ready");
    BufferedReader commands = new BufferedReader(new InputStreamReader(System.in));
    for (String line = commands.readLine(); line != null; line = commands.readLine()) {
      String[] words = line.trim().split(" ");
      if (words[0].equals("stop-node")) {
        cluster.getNodeManager(Integer.parseInt(words[1])).stop();
      }
      System.out.println("done");
    }
    Runtime.getRuntime().halt(0);
  }
}
