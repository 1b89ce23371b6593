package org.apache.spark.sql.jobserver

import java.util.concurrent.{CompletableFuture, ForkJoinPool, Future => JFuture, FutureTask, ThreadPoolExecutor}
import java.util.concurrent.{TimeUnit, TimeoutException}
import java.util.concurrent.locks.ReentrantLock

import scala.collection.JavaConverters._
import scala.util.Try

/**
 * The one timer of `CompletableFuture.delayedExecutor`, with the waiting tasks of all jobs.
 *
 * Before Java 25, it is a pool, whose queue has a lock. Since then, it is a thread that takes new tasks from a list and keeps
 * them in an array that only a local variable of its method refers to. So the search runs on that thread, as a task, and
 * reads the variable from its own stack. While it runs, no task leaves the array or the list.
 */
private[jobserver] object SharedTimer {
  /** A waiting task, and the object with the job's code that it will run. */
  final class Task(future: JFuture[_], val work: AnyRef) {
    def cancel(): Unit = future.cancel(false)
  }

  val ThreadName = "CompletableFutureDelayScheduler"

  private val BusyMs = 2000L

  /** Starts the timer, so that its thread does not join the group of the first job that uses it. */
  def prepare(): Unit = onThread(() => ())

  /** Runs `search` while no task leaves the timer. Its argument returns the waiting tasks. */
  def locked(search: (() => Seq[Task]) => Boolean): Boolean = pool match {
    case Some(pool) =>
      val lock = Fields.get(pool.getQueue, "lock").collect { case lock: ReentrantLock => lock }
      lock.foreach(_.lock())
      try search(() => waitingIn(pool)) finally lock.foreach(_.unlock())
    case None => searchedOnThread(search)
  }

  /** The timer before Java 25. */
  private lazy val pool: Option[ThreadPoolExecutor] = Try {
    val field = Class.forName("java.util.concurrent.CompletableFuture$Delayer").getDeclaredField("delayer")
    field.setAccessible(true)
    field.get(null).asInstanceOf[ThreadPoolExecutor]
  }.toOption

  private def waitingIn(pool: ThreadPoolExecutor): Seq[Task] =
    pool.getQueue.asScala.toList.collect { case task: JFuture[_] => new Task(task, task.asInstanceOf[AnyRef]) }

  /** If the thread is busy with something else, what waits is unknown, and counts as found. */
  private def searchedOnThread(search: (() => Seq[Task]) => Boolean): Boolean = {
    val found = new FutureTask[Boolean](() => search(() => waitingOnThread))
    val begun = new CompletableFuture[Boolean]
    onThread(() => if (begun.complete(true)) found.run())
    try begun.get(BusyMs, TimeUnit.MILLISECONDS) catch { case _: TimeoutException => begun.complete(false) }
    if (begun.get) found.get
    else {
      search(() => Nil)
      true
    }
  }

  private def onThread(task: Runnable): Unit =
    CompletableFuture.delayedExecutor(0L, TimeUnit.MILLISECONDS, (relayed: Runnable) => relayed.run()).execute(task)

  private def waitingOnThread: Seq[Task] = {
    val timer = Fields.get(ForkJoinPool.commonPool, "delayScheduler").toSeq
    val added = timer.flatMap(Fields.get(_, "pending")).flatMap { first =>
      Iterator.iterate(Option(first))(_.flatMap(Fields.get(_, "nextPending"))).takeWhile(_.nonEmpty).flatten
    }
    (added ++ keptOnThread).collect { case task: JFuture[_] if !task.isDone =>
      new Task(task, Fields.get(task, "runnable").orElse(Fields.get(task, "callable")).getOrElse(task.asInstanceOf[AnyRef]))
    }
  }

  /** The tasks in a local variable of the timer's method, which called this. */
  private def keptOnThread: Seq[AnyRef] = {
    val frames = Class.forName("java.lang.LiveStackFrame")
    val Seq(walker, locals) = Seq("getStackWalker", "getLocals").map(frames.getDeclaredMethod(_))
    Seq(walker, locals).foreach(_.setAccessible(true))
    walker.invoke(null).asInstanceOf[StackWalker].walk[Seq[AnyRef]] { stack =>
      stack.iterator.asScala.filter(frame => frame.getClassName == "java.util.concurrent.DelayScheduler")
        .flatMap(frame => locals.invoke(frame).asInstanceOf[Array[AnyRef]])
        .collect { case kept: Array[_] if kept.getClass.getComponentType.getSimpleName == "ScheduledForkJoinTask" => kept }
        .flatMap(_.asInstanceOf[Array[AnyRef]]).filter(_ != null).toList
    }
  }
}
