package org.apache.spark.sql.jobserver

import java.lang.reflect.Field
import java.util.concurrent.{ForkJoinWorkerThread, ThreadPoolExecutor}

import scala.collection.JavaConverters._
import scala.util.Try

import org.apache.spark.SparkContext

/**
 * The threads of one job: its own, and all that it starts, thread pools included, are born into this group.
 *
 * So are threads of Spark's own that are started lazily, by whichever job is the first to need them. Those serve
 * everybody, and must outlive a kill. So a thread is the job's only if it runs code that neither Spark, the JDK nor the
 * server brought: in its class, in what it was made to run, or, when it belongs to a timer or a pool, in what it is
 * still to run. An idle thread of a pool that has nothing to do is left alone, as it cannot do anything either.
 */
private[jobserver] final class JobThreads(val jobId: String, val log: JobLog) extends ThreadGroup(s"job-$jobId") {

  def members: Seq[Thread] = {
    val found = new Array[Thread](activeCount() * 2 + 8)
    found.take(enumerate(found)).toSeq
  }

  /**
   * Interrupts all threads that run the job's code but the calling one, and takes from their timers and pools what
   * they have not begun; returns whether there were any.
   *
   * @param loader the job's, which knows the classes in its threads' stacks
   * @param alone names of classes that no other job runs code of: a thread outside this group that is in one of them
   *   is of a pool that all jobs share, such as `ExecutionContext.global`, and works for this job now
   */
  def end(loader: ClassLoader, alone: String => Boolean): Boolean = {
    val stacks = Thread.getAllStackTraces.asScala
    val own = members.filter(thread => thread != Thread.currentThread && thread.isAlive).filter { thread =>
      val frames = stacks.getOrElse(thread, Array.empty[StackTraceElement])
      JobThreads.work(thread).exists(JobCode.isForeign) || frames.exists(JobCode.isForeign(_, loader))
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
  /** The job that the calling thread belongs to, if any that is not over. */
  def current: Option[JobThreads] = {
    var group = Thread.currentThread.getThreadGroup
    while (group != null && !group.isInstanceOf[JobThreads]) group = group.getParent
    Option(group.asInstanceOf[JobThreads]).filter(_.log.isOpen)
  }

  /** The classes of a thread, of what it runs, and of what waits for it in its pool or timer. */
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

  /** What a thread was made to run: Java 19 keeps it in another place than those before. */
  private def targetOf(thread: Thread): Option[AnyRef] =
    Fields.get(thread, "holder").flatMap(Fields.get(_, "task")).orElse(Fields.get(thread, "target"))

  private def poolOf(target: Option[AnyRef]): Option[ThreadPoolExecutor] = target
    .filter(_.getClass.getName == "java.util.concurrent.ThreadPoolExecutor$Worker")
    .flatMap(Fields.get(_, "this$0")).collect { case pool: ThreadPoolExecutor => pool }

  /** A task as it was handed in: pools wrap it in futures, and those in adapters. */
  private def unwrapped(task: AnyRef): Seq[AnyRef] = {
    val inner = Fields.get(task, "callable").orElse(Fields.get(task, "task"))
    task +: inner.filter(_ ne task).toSeq.flatMap(unwrapped)
  }
}

/** Tells the code of jobs, and of the jars that their contexts bring, from that of Spark, the JDK and the server. */
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

/** Private state of the JDK's own classes: there is no other way to see what a timer or a pool has yet to do. */
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
