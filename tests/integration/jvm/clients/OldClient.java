import com.bluebreezecf.tools.sparkjobserver.api.ISparkJobServerClient;
import com.bluebreezecf.tools.sparkjobserver.api.ISparkJobServerClientConstants;
import com.bluebreezecf.tools.sparkjobserver.api.SparkJobInfo;
import com.bluebreezecf.tools.sparkjobserver.api.SparkJobJarInfo;
import com.bluebreezecf.tools.sparkjobserver.api.SparkJobResult;
import com.bluebreezecf.tools.sparkjobserver.api.SparkJobServerClientException;
import com.bluebreezecf.tools.sparkjobserver.api.SparkJobServerClientFactory;
import java.io.ByteArrayInputStream;
import java.io.File;
import java.io.FileInputStream;
import java.io.InputStream;
import java.nio.file.Files;
import java.util.HashMap;
import java.util.Map;
import java.util.TreeSet;

/** Calls every method of the old Java client, and prints one line {@code name=value} for each answer. */
public final class OldClient {
  public static void main(String[] arguments) throws Exception {
    File jar = new File(arguments[1]);
    ISparkJobServerClient client =
        SparkJobServerClientFactory.getInstance().createSparkJobServerClient(arguments[0]);

    say("jars at first", client.getJars().size());
    say("file uploaded", client.uploadSparkJobJar(jar, "from-file"));
    try (InputStream bytes = new FileInputStream(jar)) {
      say("stream uploaded", client.uploadSparkJobJar(bytes, "from-stream"));
    }
    InputStream nothing = new ByteArrayInputStream("no archive".getBytes("UTF-8"));
    say("nonsense uploaded", client.uploadSparkJobJar(nothing, "nonsense"));
    TreeSet<String> jars = new TreeSet<>();
    for (SparkJobJarInfo each : client.getJars()) {
      jars.add(each.getJarName() + "@" + each.getUploadedTime().length());
    }
    say("jars", jars);

    Map<String, String> settings = new HashMap<>();
    settings.put(ISparkJobServerClientConstants.PARAM_NUM_CPU_CORES, "2");
    settings.put(ISparkJobServerClientConstants.PARAM_MEM_PER_NODE, "512m");
    say("context created", client.createContext("old-client", settings));
    say("context created again", client.createContext("old-client", settings));
    say("contexts", client.getContexts());

    Map<String, String> job = new HashMap<>();
    job.put(ISparkJobServerClientConstants.PARAM_APP_NAME, "from-file");
    job.put(ISparkJobServerClientConstants.PARAM_CLASS_PATH, "spark.jobserver.WordCountExample");
    job.put(ISparkJobServerClientConstants.PARAM_CONTEXT, "old-client");
    SparkJobResult started = client.startJob("input.string = \"a a a\"", job);
    String id = (String) started.getExtendAttributes().get("jobId");
    say("started", started.getStatus());
    SparkJobResult later = client.getJobResult(id);
    while (later.containsAsynStatus()) {
      Thread.sleep(50);
      later = client.getJobResult(id);
    }
    say("finished", later.getStatus() + " " + later.getResult() + " " + id.equals(later.getJobId()));
    say("config", client.getConfig(id).getConfigs());

    job.put(ISparkJobServerClientConstants.PARAM_SYNC, "true");
    job.put(ISparkJobServerClientConstants.PARAM_TIMEOUT, "240");
    say("waited for", client.startJob("input.string = \"x x\"", job).getResult());
    File config = File.createTempFile("job", ".conf");
    Files.write(config.toPath(), "input.string = \"y\"".getBytes("UTF-8"));
    say("of a file", client.startJob(config, job).getResult());
    InputStream stream = new ByteArrayInputStream("input.string = \"z\"".getBytes("UTF-8"));
    say("of a stream", client.startJob(stream, job).getResult());
    String accented = "input.string = \"\u00e9t\u00e9\"";
    say("accented", client.startJob(accented, job).getResult().equals("{\"\u00e9t\u00e9\":1}"));

    job.put(ISparkJobServerClientConstants.PARAM_CLASS_PATH, "spark.jobserver.MyErrorJob");
    say("failed", error(client.startJob("", job)));
    say("failed of a file", error(client.startJob(config, job)));
    say("failed of a stream", error(client.startJob(new ByteArrayInputStream(new byte[0]), job)));
    job.remove(ISparkJobServerClientConstants.PARAM_SYNC);
    id = (String) client.startJob("", job).getExtendAttributes().get("jobId");
    later = client.getJobResult(id);
    while (later.containsAsynStatus()) {
      Thread.sleep(50);
      later = client.getJobResult(id);
    }
    say("failed later", error(later));
    say("config of a failed one", client.getConfig(id).getConfigs());
    Files.delete(config.toPath());

    TreeSet<String> jobs = new TreeSet<>();
    for (SparkJobInfo each : client.getJobs()) {
      jobs.add(each.getStatus() + " " + each.getClassPath() + " " + each.getContext());
      say("duration", each.getDuration().endsWith(" secs"));
      if ("ERROR".equals(each.getStatus())) {
        say("failed in the list", error(each));
      }
    }
    say("jobs", jobs);
    // Its jobNotExists() never reads an answer 404, so the text of the answer has to do.
    String unknown = client.getJobResult("no-such-job").toString();
    say("unknown job", unknown.contains("No such job ID no-such-job"));
    job.put(ISparkJobServerClientConstants.PARAM_APP_NAME, "unknown");
    try {
      client.startJob("", job);
      say("unknown app", "started");
    } catch (SparkJobServerClientException error) {
      say("unknown app", "refused");
    }
    say("context deleted", client.deleteContext("old-client"));
    say("context deleted again", client.deleteContext("old-client"));
    say("contexts at last", client.getContexts());
  }

  private static String error(SparkJobResult job) {
    return error(job.getStatus(), job.getErrorClass(), job.getMessage(), job.getStack());
  }

  private static String error(SparkJobInfo job) {
    return error(job.getStatus(), job.getErrorClass(), job.getMessage(), job.getStack());
  }

  private static String error(String status, String name, String message, String[] stack) {
    boolean complete = stack.length > 1 && stack[0].startsWith(name);
    return status + " " + name + " " + message + " " + complete;
  }

  private static void say(String name, Object value) {
    System.out.println(name + "=" + value);
  }
}
