import java.io.BufferedReader;
import java.io.File;
import java.io.FileOutputStream;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.util.Map;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.Path;
import org.apache.hadoop.hdfs.MiniDFSCluster;
import org.apache.hadoop.yarn.api.records.NodeId;
import org.apache.hadoop.yarn.conf.YarnConfiguration;
import org.apache.hadoop.yarn.server.MiniYARNCluster;
import org.apache.hadoop.yarn.server.resourcemanager.rmnode.RMNodeEvent;
import org.apache.hadoop.yarn.server.resourcemanager.rmnode.RMNodeEventType;

/**
 * HDFS, a ResourceManager and two NodeManagers in one JVM, on loopback.
 *
 * <p>Writes the configuration for clients into the directory of the first argument and prints "ready". The second
 * argument is the memory of the smallest container, in MiB. Then it reads commands, and answers each with "done":
 * "expire NODE" makes the ResourceManager act as if it had not heard from a NodeManager for too long. The end of its
 * input ends it.
 */
public final class YarnCluster {
  private static final Map<String, String> SETTINGS =
      Map.ofEntries(
          // It counts cores and memory; the default one counts memory alone.
          Map.entry(
              "yarn.scheduler.capacity.resource-calculator",
              "org.apache.hadoop.yarn.util.resource.DominantResourceCalculator"),
          Map.entry("yarn.resourcemanager.nodemanagers.heartbeat-interval-ms", "100"), // containers start sooner
          Map.entry("yarn.nodemanager.resource.memory-mb", "4096"),
          Map.entry("yarn.nodemanager.resource.cpu-vcores", "32"),
          Map.entry("yarn.nodemanager.vmem-check-enabled", "false"),
          Map.entry("yarn.nodemanager.pmem-check-enabled", "false"),
          Map.entry("yarn.nodemanager.disk-health-checker.enable", "false"),
          // Without this, a disk that is nearly full is used by nobody, whether it is checked again or not.
          Map.entry("yarn.nodemanager.disk-health-checker.max-disk-utilization-per-disk-percentage", "100"),
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
    settings.set("yarn.scheduler.minimum-allocation-mb", arguments[1]);
    String user = System.getProperty("user.name");
    settings.set("hadoop.proxyuser." + user + ".hosts", "*");
    settings.set("hadoop.proxyuser." + user + ".users", "*");
    MiniDFSCluster files = new MiniDFSCluster.Builder(settings, new File("hdfs")).numDataNodes(1).build();
    files.waitActive();
    for (String name : new String[] {user, "alice"}) {
      Path home = new Path("/user/" + name);
      files.getFileSystem().mkdirs(home);
      files.getFileSystem().setOwner(home, name, name);
    }
    MiniYARNCluster cluster = new MiniYARNCluster("jobs", 1, 2, 1, 1);
    cluster.init(settings);
    cluster.start();
    Configuration clients = new Configuration(cluster.getConfig());
    clients.unset("net.topology.node.switch.mapping.impl"); // a class for tests, which clients do not have
    for (String name : new String[] {"yarn-site.xml", "core-site.xml"}) {
      try (OutputStream file = new FileOutputStream(new File(arguments[0], name))) {
        clients.writeXml(file);
      }
    }
    System.out.println("ready");
    BufferedReader commands = new BufferedReader(new InputStreamReader(System.in));
    for (String line = commands.readLine(); line != null; line = commands.readLine()) {
      String[] words = line.trim().split(" ");
      if (words[0].equals("expire")) {
        RMNodeEvent expired = new RMNodeEvent(NodeId.fromString(words[1]), RMNodeEventType.EXPIRE);
        cluster.getResourceManager().getRMContext().getDispatcher().getEventHandler().handle(expired);
      }
      System.out.println("done");
    }
    Runtime.getRuntime().halt(0);
  }
}
