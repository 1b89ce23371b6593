package org.apache.spark.sql.jobserver

import java.lang.reflect.Field
import java.util.concurrent.{ForkJoinWorkerThread, ThreadPoolExecutor}

import scala.collection.JavaConverters._
import scala.util.Try

import org.apache.spark.SparkContext

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
   *
   * @param loader the job's class loader, which knows the classes in the stacks of its threads
   * @param alone names of classes that no other job uses. A thread outside this group that runs one of them belongs to
   *   a pool that all jobs share, such as `ExecutionContext.global`, and works for this job now
   */
  def end(loader: ClassLoader, alone: String => Boolean): Boolean = {
    // A task that repeats moves between the queue of its pool and a stack, so the queue is read before and after.
    def pending: Set[Thread] = members.filter(JobThreads.work(_).exists(JobCode.isForeign)).toSet
    val before = pending
    val stacks = Thread.getAllStackTraces.asScala
    val after = pending
    val own = members.filter(thread => thread != Thread.currentThread && thread.isAlive).filter { thread =>
      val frames = stacks.getOrElse(thread, Array.empty[StackTraceElement])
      before(thread) || after(thread) || frames.exists(JobCode.isForeign(_, loader))
    }
    val elsewhere = stacks.collect {
      case (thread: ForkJoinWorkerThread, frames) if !members.contains(thread) &&
        frames.exists(frame => alone(frame.getClassName)) => thread
    }
    own.foreach(JobThreads.drain)
    (own ++ elsewhere).foreach(_.interrupt())
    own.nonEmpty || elsewhere.nonEmpty
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

  /** The classes of a thread, of its Runnable, and of the pending tasks in its pool or timer. */
  private def work(thread: Thread): Seq[Class[_]] = {
    val target = targetOf(thread)
    val pooled = poolOf(target).toSeq
      .flatMap(pool => pool.getQueue.asScala.flatMap(unwrapped) ++ Seq(pool.getThreadFactory))
    (Seq(thread) ++ target ++ pooled ++ timerTasks(thread)).map(_.getClass)
  }

  private def drain(thread: Thread): Unit = {
    poolOf(targetOf(thread)).foreach(_.shutdownNow())
    Fields.get(thread, "queue").filter(_ => isTimer(thread)).foreach { queue =>
      queue.synchronized {
        Fields.set(thread, "newTasksMayBeScheduled", java.lang.Boolean.FALSE)
        Fields.call(queue, "clear")
        queue.notifyAll()
      }
    }
  }

  private def isTimer(thread: Thread): Boolean = thread.getClass.getName == "java.util.TimerThread"

  private def timerTasks(thread: Thread): Seq[AnyRef] =
    if (!isTimer(thread)) Nil
    else Fields.get(thread, "queue").flatMap(Fields.get(_, "queue")).toSeq
      .flatMap(_.asInstanceOf[Array[AnyRef]].toSeq.filter(_ != null))

  /** The Runnable of a thread. Java 19 moved the field. */
  private def targetOf(thread: Thread): Option[AnyRef] =
    Fields.get(thread, "holder").flatMap(Fields.get(_, "task")).orElse(Fields.get(thread, "target"))

  private def poolOf(target: Option[AnyRef]): Option[ThreadPoolExecutor] = target
    .filter(_.getClass.getName == "java.util.concurrent.ThreadPoolExecutor$Worker")
    .flatMap(Fields.get(_, "this$0")).collect { case pool: ThreadPoolExecutor => pool }

  /** Unwraps a task: pools wrap it in futures, and those in adapters. */
  private def unwrapped(task: AnyRef): Seq[AnyRef] = {
    val inner = Fields.get(task, "callable").orElse(Fields.get(task, "task"))
    task +: inner.filter(_ ne task).toSeq.flatMap(unwrapped)
  }
}

/** Distinguishes code of jobs and of their contexts' jars from code of Spark, the JDK and the server. */
private[jobserver] object JobCode {
  private val spark = locationOf(classOf[SparkContext]).map(jar => jar.substring(0, jar.lastIndexOf('/') + 1))
  private val server = locationOf(getClass)

  def isForeign(owner: Class[_]): Boolean =
    owner.getClassLoader != null && owner.getClassLoader != ClassLoader.getPlatformClassLoader &&
      locationOf(owner).exists(place => !spark.exists(place.startsWith) && !server.contains(place))

  def isForeign(frame: StackTraceElement, loader: ClassLoader): Boolean =
    Try(Class.forName(frame.getClassName, false, loader)).toOption.exists(isForeign)

  private def locationOf(owner: Class[_]): Option[String] =
    Option(owner.getProtectionDomain.getCodeSource).flatMap(source => Option(source.getLocation)).map(_.toString)
}

/** Private fields of JDK classes: the only way to see the pending tasks of a timer or a pool. */
private object Fields {
  def get(owner: AnyRef, name: String): Option[AnyRef] =
    field(owner, name).flatMap(found => Try { found.setAccessible(true); found.get(owner) }.toOption).flatMap(Option(_))

  def set(owner: AnyRef, name: String, value: AnyRef): Unit = field(owner, name).foreach { found =>
    found.setAccessible(true)
    found.set(owner, value)
  }

  def call(owner: AnyRef, name: String): Unit = {
    val method = owner.getClass.getDeclaredMethod(name)
    method.setAccessible(true)
    method.invoke(owner)
  }

  private def field(owner: AnyRef, name: String): Option[Field] =
    Iterator.iterate[Class[_]](owner.getClass)(_.getSuperclass).takeWhile(_ != null)
      .flatMap(_.getDeclaredFields).find(_.getName == name)
}
