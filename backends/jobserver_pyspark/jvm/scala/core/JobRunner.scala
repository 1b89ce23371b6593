package org.apache.spark.sql.jobserver

import java.util.concurrent.{CompletableFuture, ConcurrentHashMap, TimeUnit, TimeoutException}

import scala.collection.JavaConverters._
import scala.util.control.NonFatal

import org.apache.spark.SparkContext
import org.apache.spark.scheduler.JobResultGetter
import org.apache.spark.sql.SparkSession

/**
 * Runs JVM jobs in a context: what the context host calls through its gateway.
 *
 * All arguments and answers are strings of JSON, numbers or flags, so that nothing of a job ever passes the gateway.
 * Every method may be called from any thread; `awaitValidated` and `awaitEnded` block their caller.
 *
 * @param isolation `session` or `shared`, as `jobserver_pyspark.jvm` describes
 */
final class JobRunner(root: SparkSession, isolation: String, maxSessions: Int) {
  private val context: SparkContext = root.sparkContext
  private val codeHomes: Isolation = Isolations.make(isolation, root, maxSessions)
  private val serializers = new Serializers(context)
  private val jobs = new ConcurrentHashMap[String, RunningJob]()
  @volatile private var oldApi: Option[JobApi] = None

  JobOutput.install()
  addContextJars()
  JobResultGetter.install(context, Isolation.Property, codeHomes.loaderOf)
  serializers.prepareDriver()

  /** Jars for every class path: the runner's own, for the executors. `[{"path", "sha256"}, …]` */
  def addLibraries(jarsJson: String): Unit = codeHomes.addLibraries(JobRunner.jars(jarsJson))

  /** The `spark.jobserver` API and the two libraries that it needs. */
  def addJobApi(jarsJson: String): Unit = synchronized {
    if (oldApi.isEmpty) {
      val jars = JobRunner.jars(jarsJson)
      val shared = root.sharedState.jarClassLoader
      jars.foreach(jar => shared.addURL(jar.path.toUri.toURL))
      codeHomes.addLibraries(jars)
      oldApi = Some(Class.forName(JobRunner.ApiClass, true, shared)
        .getDeclaredConstructor().newInstance().asInstanceOf[JobApi])
    }
  }

  /** Starts a job on threads of its own and returns at once. */
  def start(requestJson: String): Unit = {
    val request = JobRequest.parse(requestJson)
    val job = new RunningJob(request, context, codeHomes, serializers, oldApi)
    require(jobs.putIfAbsent(request.jobId, job) == null, s"job ${request.jobId} runs already")
    try job.start()
    catch {
      case error: Throwable =>
        jobs.remove(request.jobId)
        throw error
    }
  }

  /** Waits until the job passed its own validation, or ended before that. */
  def awaitValidated(jobId: String): String = job(jobId).validated.get().toJson

  /** Waits for the job's end; after that the job is not known any more. */
  def awaitEnded(jobId: String): String =
    try job(jobId).ended.get().toJson finally jobs.remove(jobId)

  /**
   * Kills a job: its Spark jobs are cancelled, its streams stopped, its thread interrupted, again and again until it
   * is over or the time is up. False when it still runs after that: code that never looks up cannot be ended without
   * the JVM. An unknown job is over.
   *
   * A stream that stops gracefully may finish its batches before, for at most `drainMs`; not when the job is killed
   * once more.
   */
  def cancel(jobId: String, waitMs: Long, drainMs: Long): Boolean =
    Option(jobs.get(jobId)).forall(_.cancel(waitMs, drainMs))

  def isRunning(jobId: String): Boolean = Option(jobs.get(jobId)).exists(!_.ended.isDone)

  /** The ids of the jobs that run, as a JSON list. */
  def running(): String = {
    val ids = jobs.asScala.collect { case (id, job) if !job.ended.isDone => id }
    Outcome.mapper.writeValueAsString(ids.toSeq.sorted.asJava)
  }

  /** Cancels every job, as [[cancel]] does, and lets go of all sessions; the Spark context is left to its owner. */
  def close(waitMs: Long, drainMs: Long): Unit = {
    jobs.values.asScala.toSeq.map(job => new Thread(() => job.cancel(waitMs, drainMs)))
      .map { thread => thread.start(); thread }.foreach(_.join())
    codeHomes.close()
  }

  /** The context's own jars (`spark.jars`, `spark.jars.packages`) are seen by every job's code on the driver. */
  private def addContextJars(): Unit =
    context.jars.map(new org.apache.hadoop.fs.Path(_).toUri)
      .filter(uri => uri.getScheme == null || uri.getScheme == "file")
      .foreach(uri => root.sharedState.jarClassLoader.addURL(new java.io.File(uri.getPath).toURI.toURL))

  private def job(jobId: String): RunningJob =
    Option(jobs.get(jobId)).getOrElse(throw new NoSuchElementException(s"no job $jobId runs here"))
}

private[jobserver] object JobRunner {
  val ApiClass = "org.apache.spark.sql.jobserver.OldJobApi"

  def jars(json: String): Seq[JobJar] = Outcome.mapper.readTree(json).elements.asScala.map { jar =>
    JobJar(java.nio.file.Paths.get(jar.required("path").asText), jar.required("sha256").asText)
  }.toList
}

/** One job, from its class to its result. */
private[jobserver] final class RunningJob(
    request: JobRequest,
    spark: SparkContext,
    codeHomes: Isolation,
    serializers: Serializers,
    oldApi: Option[JobApi]) {

  val validated = new CompletableFuture[Outcome]()
  val ended = new CompletableFuture[Outcome]()
  private val threads = new JobThreads(request.jobId, new JobLog(request.logPath, request.maxLogBytes))
  private val thread = new Thread(threads, () => main(), s"job-${request.jobId}")
  private val interruption = new Object
  private var windingUp = false
  @volatile private var cancelled = false
  @volatile private var jobContext: Option[JobContext] = None

  def start(): Unit = {
    thread.setDaemon(true)
    thread.start()
  }

  def cancel(waitMs: Long, drainMs: Long): Boolean = {
    val again = cancelled
    cancelled = true
    if (!again) drain(drainMs)
    val deadline = System.nanoTime + TimeUnit.MILLISECONDS.toNanos(waitMs)
    var pause = 200L // longer each time: Spark writes a line for every group that has nothing to cancel
    do {
      cancelSparkJobs()
      stopStreams()
      // The job's own thread alone: among the others of its group are some of Spark's, which it made when the job
      // asked for them first, and which everybody needs.
      interruption.synchronized { if (!windingUp) thread.interrupt() }
      pause = math.min(pause * 3 / 2, 2000L)
    } while (!overWithin(math.min(pause, math.max(1L, (deadline - System.nanoTime) / 1000000L))) &&
      System.nanoTime < deadline)
    ended.isDone
  }

  /** Lets a stream that stops gracefully finish its batches, and what it has received. */
  private def drain(ms: Long): Unit = jobContext.flatMap(_.startedStreaming).filter(_ => gracefully).foreach { stream =>
    val stopper = new Thread(() =>
      try stream.stop(stopSparkContext = false, stopGracefully = true)
      catch {
        case _: InterruptedException => // the time is up
        case NonFatal(error) => error.printStackTrace()
      }, s"drain-${request.jobId}")
    stopper.setDaemon(true)
    stopper.start()
    if (!overWithin(ms)) stopper.interrupt()
  }

  private def gracefully: Boolean = request.streaming.path("stopGracefully").asBoolean(true)

  private def cancelSparkJobs(): Unit = if (!spark.isStopped) spark.cancelJobGroup(request.jobId)

  private def overWithin(ms: Long): Boolean =
    try { ended.get(ms, TimeUnit.MILLISECONDS); true }
    catch { case _: TimeoutException => false }

  private def main(): Unit = {
    var outcome = Outcome.killed
    try outcome = JobOutput.capturing(admitted())
    catch { case error: Throwable => outcome = Outcome.failed("raised", error) }
    finally {
      windUp()
      try {
        // A thread that is interrupted leaves the Spark job behind that it had just submitted.
        if (cancelled || outcome.failure != null) cancelSparkJobs()
        threads.log.close()
      } finally {
        val truth = if (cancelled) Outcome.killed else outcome
        validated.complete(truth)
        ended.complete(truth)
      }
    }
  }

  /** From here on this thread is not interrupted any more: what it still has to do must be done. */
  private def windUp(): Unit = interruption.synchronized {
    windingUp = true
    Thread.interrupted()
  }

  private def admitted(): Outcome = {
    val home = try Right(codeHomes.enter(request)) catch { case error: Throwable => Left(error) }
    home.fold(Outcome.failed("loading", _), within)
  }

  private def within(home: CodeHome): Outcome =
    try home.within {
      SparkSession.setActiveSession(home.session)
      spark.setJobGroup(request.jobId, s"job ${request.jobId}: ${request.mainClass}", interruptOnCancel = true)
      spark.setLocalProperty(Isolation.Property, request.classPathKey)
      try attempt(home)
      finally {
        SparkSession.clearActiveSession()
        spark.clearJobGroup()
        spark.setLocalProperty(Isolation.Property, null)
      }
    } finally home.leave()

  private def attempt(home: CodeHome): Outcome =
    try {
      serializers.prepareExecutors()
      val context = new JobContext(
        request.jobId, request.kind, home.session, request.config, request.contextConfig,
        new NamedObjectTable(request.jobId, request.classPathKey), request.dataDir,
        request.streaming.path("batch_interval").asLong(1000L))
      jobContext = Some(context)
      val shaped = new JobLoader(home.loader, oldApi).load(request.mainClass, context)
      val data = shaped.validate()
      if (cancelled) Outcome.killed
      else {
        validated.complete(Outcome.running)
        run(shaped, data)
      }
    } catch {
      case _: ApiMissing => Outcome.needsApi
      case error: ClassMissing => Outcome.failed("class-not-found", error)
      case error: WrongKindOfJob => Outcome.failed("wrong-type", error)
      case error: LoadingFailed => Outcome.failed("loading", error.getCause)
      case refusal: ValidationRefused => Outcome.failed("validation", refusal.shown)
      case error: Throwable => report(error)
    } finally stopOwnStreaming()

  private def run(shaped: ShapedJob, data: Any): Outcome =
    try {
      // The result is taken out of its box, so that nothing here holds the head of a lazy sequence while it is written.
      val box = new java.util.concurrent.atomic.AtomicReference[Any](shaped.run(data))
      jobContext.flatMap(_.startedStreaming).foreach(_.awaitTermination())
      val (kind, bytes) =
        new ResultWriter(request.resultPath, request.maxResultBytes, () => cancelled).write(() => box.getAndSet(null))
      Outcome.finished(kind, bytes)
    } catch {
      case refused: ResultRefused => Outcome.failed("result", refused)
      case error: Throwable => report(error)
    }

  private def report(error: Throwable): Outcome = {
    if (!cancelled) error.printStackTrace()
    Outcome.failed("raised", error)
  }

  // A StreamingContext that was started keeps its batches going by itself; the job is its only owner.
  private def stopOwnStreaming(): Unit = jobContext.flatMap(_.startedStreaming).foreach { streaming =>
    windUp()
    try streaming.stop(stopSparkContext = false, stopGracefully = gracefully && !cancelled)
    catch { case NonFatal(error) => error.printStackTrace() }
  }

  /** Stops the structured streams that this job's threads started; those of its neighbours go on. */
  private def stopStreams(): Unit = jobContext.foreach { context =>
    val names = threads.members.filter(_ != null).map(_.getName)
    val own = context.session.streams.active.filter(query => names.exists(_.contains(query.runId.toString)))
    own.foreach { query =>
      val stopper = new Thread(() => try query.stop() catch { case NonFatal(_) => }, s"stop-${query.runId}")
      stopper.setDaemon(true)
      stopper.start()
      stopper.join(2000L)
    }
  }
}
