package org.apache.spark.sql.jobserver

import java.util.concurrent.{CompletableFuture, TimeUnit, TimeoutException}

import scala.util.control.NonFatal

import org.apache.spark.SparkContext
import org.apache.spark.scheduler.JobTasks
import org.apache.spark.sql.SparkSession
import org.apache.spark.streaming.StreamingContext

/** One job, from loading its class to writing its result. */
private[jobserver] final class RunningJob(
    private val request: JobRequest,
    spark: SparkContext,
    tasks: JobTasks,
    isolation: Isolation,
    serializers: Serializers,
    oldApi: Option[JobApi],
    allJobs: () => Seq[RunningJob]) {

  val validated = new CompletableFuture[Outcome]()
  val ended = new CompletableFuture[Outcome]()
  private val threads = new JobThreads(request.jobId, new JobLog(request.logPath, request.maxLogBytes))
  private val remains = new JobRemains(request.jobId, spark, tasks, threads)
  private val processes = new JobProcesses(threads)
  private lazy val classNames = request.jars.flatMap(JarFiles.of).map(_._1)
    .filter(_.endsWith(".class")).map(_.stripSuffix(".class").replace('/', '.')).toSet
  private val thread = new Thread(threads, () => main(), s"job-${request.jobId}")
  private val interruption = new Object
  private var windingUp = false
  private var outcomeDecided = false
  @volatile private var cancelled = false
  @volatile private var ending = false
  @volatile private var jobContext: Option[JobContext] = None

  def start(): Unit = {
    thread.setDaemon(true)
    thread.start()
  }

  /** Ends a job whose [[start]] is never called. */
  def killBeforeStart(): Unit = {
    threads.release()
    validated.complete(Outcome.killed)
    ended.complete(Outcome.killed)
  }

  def cancel(waitMs: Long, drainMs: Long): Boolean = {
    val again = cancelled
    interruption.synchronized { if (!outcomeDecided) cancelled = true }
    if (!again) drain(drainMs)
    ending = cancelled
    val deadline = System.nanoTime + TimeUnit.MILLISECONDS.toNanos(waitMs)
    var pause = 200L // grows, because Spark logs a line for every tag without anything to cancel
    do {
      processes.end(neighbours.map(_.processes)) // before the threads that identify their jobs
      remains.endTasks()
      jobContext.foreach(context => remains.endStreams(context.session))
      // Interrupt only the job's own thread while its code runs. It ends everything else when it returns.
      interruption.synchronized { if (!windingUp) thread.interrupt() }
      pause = math.min(pause * 3 / 2, 2000L)
    } while (!overWithin(math.min(pause, math.max(1L, (deadline - System.nanoTime) / 1000000L))) &&
      System.nanoTime < deadline)
    ended.isDone
  }

  /** Lets a stream that stops gracefully finish its batches and its received data. */
  private def drain(ms: Long): Unit = handedStreaming.filter(_ => gracefully).foreach { stream =>
    val stopper = stopping(stream)
    if (!overWithin(ms)) stopper.interrupt()
  }

  /** The StreamingContext that the job got, once it is started. */
  private def handedStreaming: Option[StreamingContext] =
    jobContext.flatMap(_.startedStreaming).filter(remains.streamingContext.contains)

  private def stopping(stream: StreamingContext): Thread = {
    val stopper = new Thread(() =>
      try stream.stop(stopSparkContext = false, stopGracefully = true)
      catch {
        case _: InterruptedException => // the timeout has expired
        case NonFatal(error) => error.printStackTrace()
      }, s"drain-${request.jobId}")
    stopper.setDaemon(true)
    stopper.start()
    stopper
  }

  private def gracefully: Boolean = request.streaming.path("stopGracefully").asBoolean(true)

  /** The other running jobs. Killed ones do not count: any of them may end what they share, so none waits for another. */
  private def neighbours: Seq[RunningJob] = allJobs().filter(job => job != this && !job.ended.isDone && !job.ending)

  private def overWithin(ms: Long): Boolean =
    try { ended.get(ms, TimeUnit.MILLISECONDS); true }
    catch { case _: TimeoutException => false }

  private def main(): Unit = {
    var outcome = Outcome.killed
    processes.begin()
    try outcome = JobOutput.capturing(admitted())
    catch { case error: Throwable => outcome = Outcome.failed("raised", error) }
    finally {
      windUp()
      try threads.log.close()
      finally {
        threads.release()
        val truth = if (cancelled) Outcome.killed else outcome
        validated.complete(truth)
        ended.complete(truth)
      }
    }
  }

  /** From here on, this thread is not interrupted any more, because its remaining work must be completed. */
  private def windUp(): Unit = interruption.synchronized {
    windingUp = true
    Thread.interrupted()
  }

  private def admitted(): Outcome = labelled {
    // Before the job's jars are added, and outside its session: all class paths see what executors load now.
    serializers.prepareExecutors()
    val code = try Right(isolation.lease(request)) catch { case error: Throwable => Left(error) }
    code.fold(Outcome.failed("loading", _), within)
  }

  /** Tags everything that `body` starts in Spark with the job's ID. */
  private def labelled[T](body: => T): T = {
    spark.setJobGroup(request.jobId, s"job ${request.jobId}: ${request.mainClass}", interruptOnCancel = true)
    spark.addJobTag(request.jobId) // not a job group, because the job may set its own groups
    spark.setLocalProperty(Isolation.JobProperty, request.jobId)
    try body
    finally {
      spark.clearJobGroup()
      spark.removeJobTag(request.jobId)
      spark.setLocalProperty(Isolation.JobProperty, null)
    }
  }

  private def within(code: CodeLease): Outcome =
    try code.within {
      SparkSession.setActiveSession(code.session)
      spark.setLocalProperty(Isolation.ClassPathProperty, code.id)
      try attempt(code)
      finally {
        SparkSession.clearActiveSession()
        spark.setLocalProperty(Isolation.ClassPathProperty, null)
      }
    } finally code.release()

  private def attempt(code: CodeLease): Outcome =
    try {
      val context = new JobContext(
        request.jobId, request.contextType, code.session, request.config, request.contextConfig,
        new NamedObjectTable(request.jobId, request.classPathKey), request.dataDir,
        request.streaming.path("batch_interval").asLong(1000L))
      jobContext = Some(context)
      val job = new JobLoader(code.loader, oldApi).load(request.mainClass, context)
      val data = job.validate()
      if (cancelled) Outcome.killed
      else {
        validated.complete(Outcome.running)
        run(job, data)
      }
    } catch {
      case error: ClassMissing =>
        Outcome.refused("class-not-found", s"class ${request.mainClass} not found", error.getMessage)
      case error: WrongKindOfJob => Outcome.refused("wrong-type", error.getMessage)
      case error: LoadingFailed => Outcome.failed("loading", error.getCause)
      case refusal: ValidationRefused => Outcome.failed("validation", refusal.shown)
      case error: Throwable => report(error)
    } finally endRemains(code)

  private def run(job: RunnableJob, data: Any): Outcome =
    try {
      // Clear the reference to the result, so that the head of a lazy sequence can be collected while it is written.
      val box = new java.util.concurrent.atomic.AtomicReference[Any](job.run(data))
      handedStreaming.foreach(_.awaitTermination())
      val writer = new ResultWriter(request.resultPath, request.maxResultBytes, () => cancelled)
      Outcome.finished(writer.write(() => box.getAndSet(null)))
    } catch {
      case refused: ResultRefused => Outcome.refused("result", refused.getMessage, errorClass = Outcome.ResultRefused)
      case error: Throwable => report(error)
    }

  private def report(error: Throwable): Outcome = {
    if (!spark.isStopped) spark.cancelJobsWithTag(request.jobId) // Spark jobs of its other threads
    Outcome.failed("raised", error)
  }

  /** Waits until nothing is left that must end with the job; see [[JobRemains]]. */
  private def endRemains(code: CodeLease): Unit = {
    windUp()
    if (gracefully) handedStreaming.map(stopping).foreach { stopper =>
      while (stopper.isAlive && !cancelled) pause(20L)
      stopper.interrupt()
    }
    var killed = false
    do {
      killed = cancelled
      var wait = 5L
      while (endOnce(code, killed)) {
        pause(wait)
        wait = math.min(wait * 3 / 2, 2000L)
      }
    } while (!decideOutcome(killed))
  }

  /** Decides whether the job counts as killed. A kill request after this has no effect. */
  private def decideOutcome(killed: Boolean): Boolean = interruption.synchronized {
    outcomeDecided = cancelled == killed
    outcomeDecided
  }

  private def endOnce(code: CodeLease, killed: Boolean): Boolean = {
    val streams = left(jobContext.exists(context => remains.endStreams(context.session)))
    // Try each of them, even if a previous one failed.
    if (!killed) streams
    else Seq(
      streams,
      left(remains.endTasks()),
      left(processes.end(neighbours.map(_.processes))),
      left(endThreads(code)),
      left(remains.endListeners(ownCode(code)))).contains(true)
  }

  /** If the check fails, assume that something is left. */
  private def left(end: => Boolean): Boolean = try end catch {
    case NonFatal(error) =>
      error.printStackTrace()
      !spark.isStopped
  }

  private def endThreads(code: CodeLease): Boolean = {
    val found = remains.endThreads(ownCode(code))
    if (found) code.reloadNextTime()
    found
  }

  private def ownCode(code: CodeLease): OwnCode = {
    val others = neighbours.map { other =>
      if (other.request.classPathKey == request.classPathKey) classNames else other.classNames
    }
    new OwnCode(code.loader, classNames, name => others.exists(_(name)))
  }

  private def pause(ms: Long): Unit = try Thread.sleep(ms) catch { case _: InterruptedException => }
}
