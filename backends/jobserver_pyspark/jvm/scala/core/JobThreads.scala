package org.apache.spark.sql.jobserver

import java.util.concurrent.ThreadPoolExecutor

import scala.collection.JavaConverters._
import scala.util.Try
import scala.util.control.NonFatal

import org.apache.spark.scheduler.JobListeners

/**
 * The threads of one job. Its own thread, and all threads that it starts, including those of pools, join this group.
 *
 * Threads of Spark that are started lazily join the group of the first job that needs them. But they serve all jobs,
 * and must survive a kill. So a thread counts as the job's only if it runs code from outside Spark, the JDK and the
 * server: its own class, its Runnable, or, for a timer or a pool, a pending task. An idle thread of a pool without
 * tasks is ignored, as it cannot do anything.
 */
private[jobserver] final class JobThreads(val jobId: String, val log: JobLog) extends ThreadGroup(s"job-$jobId") {

  /** Lets the group be collected once its threads have ended. Until Java 19, its parent would keep it forever. */
  def release(): Unit = JobThreads.removal.foreach(_.invoke(getParent, this))

  def members: Seq[Thread] = {
    val found = new Array[Thread](activeCount() * 2 + 8)
    found.take(enumerate(found)).toSeq
  }

  /**
   * Interrupts all threads that run the job's code, except the calling one, and removes pending tasks from their timers
   * and pools. Returns whether there were any.
   */
  def end(code: OwnCode): Boolean = {
    val own = JobThreads.running(members, JobCode.isForeign(_), _.exists(JobCode.isForeign(_, code.loader))) ++
      members.filter(JobThreads.isHttpClient)
    own.foreach(JobThreads.drain)
    own.foreach(_.interrupt())
    val served = JobThreads.endServers(members)
    own.nonEmpty || served
  }
}

private[jobserver] object JobThreads {
  /** Removes a group from its parent. None since Java 19, which refers to groups weakly. */
  private lazy val removal = Try {
    val method = classOf[ThreadGroup].getDeclaredMethod("remove", classOf[ThreadGroup])
    method.setAccessible(true)
    method
  }.toOption

  /** The running job that the calling thread belongs to, if any. */
  def current: Option[JobThreads] = {
    var group = Thread.currentThread.getThreadGroup
    while (group != null && !group.isInstanceOf[JobThreads]) group = group.getParent
    Option(group.asInstanceOf[JobThreads]).filter(_.log.isOpen)
  }

  /**
   * Those of some threads that run certain code, or will: whose own classes or pending tasks `isOwn` accepts, or whose
   * stacks `runsIn` accepts. Without the calling thread and those that deliver Spark's events.
   */
  def running(
      threads: => Seq[Thread], isOwn: Class[_] => Boolean, runsIn: Array[StackTraceElement] => Boolean): Seq[Thread] = {
    // A task that repeats moves between the queue of its pool and a stack, so the queue is read before and after. A thread
    // that ended in between counts, because it may have started another one.
    def waiting(found: Seq[Thread]): Set[Thread] = found.filter(work(_).exists(isOwn)).toSet
    val first = threads
    val before = waiting(first)
    val stacks = Thread.getAllStackTraces.asScala
    val last = threads
    val own = before ++ (first ++ last).filter(stacks.get(_).exists(runsIn)) ++ waiting(last)
    own.filterNot(thread => thread == Thread.currentThread || JobListeners.isDispatcher(thread)).toSeq
  }

  /** Stops the servers of `com.sun.net.httpserver` that some threads serve. Returns whether there were any. */
  def endServers(threads: Seq[Thread]): Boolean = {
    val servers = threads.flatMap(httpServerOf)
    servers.foreach(stop)
    servers.nonEmpty
  }

  /** The classes of a thread, of its Runnable, and of the pending tasks in its pool or timer. */
  private def work(thread: Thread): Seq[Class[_]] = {
    val target = targetOf(thread)
    val pooled = poolOf(target).toSeq
      .flatMap(pool => pool.getQueue.asScala.flatMap(unwrapped) ++ Seq(pool.getThreadFactory))
    (Seq(thread) ++ target ++ pooled ++ timerTasks(thread)).map(_.getClass)
  }

  private def drain(thread: Thread): Unit = {
    poolOf(targetOf(thread)).filterNot(SharedPools.isForChannels).foreach(_.shutdownNow())
    cancelTimer(thread)
  }

  /** Cancels the timer of a thread, if it has one, so that the thread ends. */
  def cancelTimer(thread: Thread): Unit =
    Fields.get(thread, "queue").filter(_ => isTimer(thread)).foreach { queue =>
      queue.synchronized {
        Fields.set(thread, "newTasksMayBeScheduled", java.lang.Boolean.FALSE)
        Fields.call(queue, "clear")
        queue.notifyAll()
      }
    }

  /** Whether a thread waits for responses to the job's `java.net.http.HttpClient`, for as long as that has requests. */
  def isHttpClient(thread: Thread): Boolean =
    thread.getClass.getName == "jdk.internal.net.http.HttpClientImpl$SelectorManager"

  /** The server of `com.sun.net.httpserver` that a thread serves, if any. It runs only code of the JDK, and never ends. */
  private def httpServerOf(thread: Thread): Option[AnyRef] =
    targetOf(thread).filter(_.getClass.getName == "sun.net.httpserver.ServerImpl$Dispatcher").flatMap { dispatcher =>
      Fields.open(dispatcher.getClass)
      Fields.get(dispatcher, "this$0")
    }

  /** Closes the server's sockets. Waits for the thread in newer versions of Java. */
  private def stop(server: AnyRef): Unit = onOwnThread("stop-http-server") {
    val stop = server.getClass.getMethod("stop", Integer.TYPE)
    stop.setAccessible(true)
    stop.invoke(server, Integer.valueOf(0))
  }

  /** Runs `end` on a thread of its own, and waits for at most two seconds: it may block, or ignore interrupts. */
  def onOwnThread(name: String)(end: => Unit): Unit = {
    val thread = new Thread(() => try end catch {
      case _: InterruptedException =>
      case NonFatal(error) => error.printStackTrace()
    }, name)
    thread.setDaemon(true)
    thread.start()
    thread.join(2000L)
  }

  private def isTimer(thread: Thread): Boolean = thread.getClass.getName == "java.util.TimerThread"

  private def timerTasks(thread: Thread): Seq[AnyRef] =
    if (!isTimer(thread)) Nil
    else Fields.get(thread, "queue").flatMap(Fields.get(_, "queue")).toSeq
      .flatMap(_.asInstanceOf[Array[AnyRef]].toSeq.filter(_ != null))

  /** The Runnable of a thread. Java 19 moved the field. */
  def targetOf(thread: Thread): Option[AnyRef] =
    Fields.get(thread, "holder").flatMap(Fields.get(_, "task")).orElse(Fields.get(thread, "target"))

  def poolOf(target: Option[AnyRef]): Option[ThreadPoolExecutor] = target
    .filter(_.getClass.getName == "java.util.concurrent.ThreadPoolExecutor$Worker")
    .flatMap(Fields.get(_, "this$0")).collect { case pool: ThreadPoolExecutor => pool }

  /** Unwraps a task: pools wrap it in futures, and those in adapters. */
  private def unwrapped(task: AnyRef): Seq[AnyRef] = {
    val inner = Fields.get(task, "callable").orElse(Fields.get(task, "task"))
    task +: inner.filter(_ ne task).toSeq.flatMap(unwrapped)
  }
}
