package org.apache.spark.sql.jobserver

import java.util.concurrent.{ConcurrentHashMap, TimeUnit, TimeoutException}

import scala.collection.JavaConverters._

import org.apache.spark.SparkContext
import org.apache.spark.scheduler.{JobListeners, JobResultGetter, JobTasks}
import org.apache.spark.sql.SparkSession

/**
 * Runs JVM jobs in a context. The host calls it through its gateway.
 *
 * All arguments and return values are numbers, booleans, or messages of `jobserver_pyspark.protocol.jvm_messages` as JSON,
 * so that no object of a job passes the gateway.
 * Every method may be called from any thread. `start` and `awaitEnded` block the caller.
 *
 * @param isolationMode `session` or `shared`, see `jobserver_pyspark.jvm`
 */
final class JobRunner(root: SparkSession, isolationMode: String, maxSessions: Int) {
  private val context: SparkContext = root.sparkContext
  private val isolation: Isolation = Isolations.make(isolationMode, root, maxSessions)
  private val serializers = new Serializers(context)
  private val tasks = new JobTasks(context, Isolation.JobProperty)
  private val jobs = new ConcurrentHashMap[String, RunningJob]()
  private val killedEarly = JobTasks.recentIds()
  @volatile private var oldApi: Option[JobApi] = None

  SharedTimer.prepare()
  JobListeners.watch(context, () => JobThreads.current.map(_.jobId))
  JobOutput.install()
  addContextJars()
  JobResultGetter.install(context, Isolation.ClassPathProperty, isolation.loaderOf)
  serializers.prepareDriver()

  /** Jars for every class path: the runner's own, for the executors. */
  def addLibraries(jarsJson: String): Unit = {
    isolation.addLibraries(JobRequest.parseJars(jarsJson))
    serializers.prepareAnew()
  }

  /** The `spark.jobserver` API and the two libraries that it needs, already on the Java class path of this JVM. */
  def addJobApi(jarsJson: String): Unit = synchronized {
    if (oldApi.isEmpty) {
      addLibraries(jarsJson)
      oldApi = Some(JobRunner.loadApi())
    }
  }

  /**
   * Starts a job on separate threads, and waits until it has passed its own validation, or has ended before that. If it
   * ends soon after its validation, returns its end, and forgets it: a short job needs no second call.
   */
  def start(requestJson: String): String = {
    val request = JobRequest.parse(requestJson)
    val job = new RunningJob(request, context, tasks, isolation, serializers, oldApi, () => jobs.values.asScala.toSeq)
    require(jobs.putIfAbsent(request.jobId, job) == null, s"job ${request.jobId} is already running")
    var ended = true
    try {
      if (killedEarly.remove(request.jobId)) {
        job.killBeforeStart() // another `cancel` may have found the job, and waits for its end
        Outcome.killed.toJson
      } else {
        job.start()
        val validated = job.validated.get()
        try job.ended.get(JobRunner.ShortMs, TimeUnit.MILLISECONDS).copy(validated = validated == Outcome.running).toJson
        catch {
          case _: TimeoutException =>
            ended = false
            validated.toJson
        }
      }
    } finally if (ended) jobs.remove(request.jobId)
  }

  /** Waits for the job to end, and then forgets it. */
  def awaitEnded(jobId: String): String =
    try job(jobId).ended.get().toJson finally jobs.remove(jobId)

  /**
   * Kills a job: cancels its tasks, stops its streams, interrupts its threads and kills its processes, and repeats this
   * until nothing is left or the timeout expires. Returns false if something is left: code that never checks for
   * interruption can be ended only together with the JVM. Returns true for an unknown job, which will not start.
   *
   * Before that, a stream that stops gracefully may finish its batches for up to `drainMs`, unless the job is killed a
   * second time.
   */
  def cancel(jobId: String, waitMs: Long, drainMs: Long): Boolean = {
    killedEarly.add(jobId) // first: either this method finds the job, or `start` finds this
    Option(jobs.get(jobId)).forall { job =>
      killedEarly.remove(jobId)
      job.cancel(waitMs, drainMs)
    }
  }

  /** Kills all jobs, as [[cancel]] does, and releases all sessions, but does not stop the Spark context. */
  def close(waitMs: Long, drainMs: Long): Unit = {
    jobs.values.asScala.toSeq.map(job => new Thread(() => job.cancel(waitMs, drainMs)))
      .map { thread => thread.start(); thread }.foreach(_.join())
    isolation.close()
  }

  /** The context's own jars (`spark.jars`, `spark.jars.packages`), which all jobs see on the driver. */
  private def addContextJars(): Unit =
    context.jars.map(new org.apache.hadoop.fs.Path(_).toUri)
      .filter(uri => uri.getScheme == null || uri.getScheme == "file")
      .foreach(uri => root.sharedState.jarClassLoader.addURL(new java.io.File(uri.getPath).toURI.toURL))

  private def job(jobId: String): RunningJob =
    Option(jobs.get(jobId)).getOrElse(throw new NoSuchElementException(s"no job $jobId runs here"))
}

private[jobserver] object JobRunner {
  private val ShortMs = 10L
  private val ApiAdapter = "org.apache.spark.sql.jobserver.OldJobApi"
  private val ApiClass = "spark.jobserver.api.SparkJobBase"

  /** The adapter to the API. The API must be the server's; the adapter does not work with a copy in a job's jar. */
  private def loadApi(): JobApi = {
    val loader = getClass.getClassLoader
    val Seq(own, found) = Seq(ApiAdapter, ApiClass).map(name => origin(Class.forName(name, false, loader)))
    if (own != found) throw new ClassPathConflict(
      s"$ApiClass comes from $found, not from the server: take the job API out of spark.driver.extraClassPath")
    Class.forName(ApiAdapter, true, loader).getDeclaredConstructor().newInstance().asInstanceOf[JobApi]
  }

  private def origin(cls: Class[_]): String = cls.getProtectionDomain.getCodeSource.getLocation.getPath
}
