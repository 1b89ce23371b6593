package org.apache.spark.sql.jobserver

import java.util.concurrent.{CompletableFuture, ForkJoinPool, ForkJoinTask, ForkJoinWorkerThread}
import java.util.concurrent.{ThreadPoolExecutor, TimeUnit}
import java.util.concurrent.locks.ReentrantLock

import scala.collection.JavaConverters._
import scala.util.Try

/**
 * One job's work in the pools that all jobs of a JVM share: fork-join pools, such as the common pool and that of
 * `ExecutionContext.global`, the threads that replace the common pool on a machine with few processors, and the timer of
 * `CompletableFuture.delayedExecutor`.
 *
 * A task that repeats itself goes in circles: from the timer's queue to the timer's thread, to the queue of a pool, to a
 * worker, and then the job's code on the worker's stack puts the next task into the timer's queue. A search that reads
 * these places one after the other can miss it every time. So the search locks the timer's queue. The task can then only
 * move forward, until the job's code waits for the lock. Reading the stacks, then the queues of the pools, then the stacks
 * again is enough to find it: what left a queue in between is with a worker or on a stack by then. The stack of a worker
 * that has taken a task but not begun it shows no code of a job, so it is unknown whose task it is. That also counts as
 * something found, and the caller looks again.
 *
 * Not handled: in Java 25, the timer keeps its tasks in a local variable, so a waiting task is not found.
 */
private[jobserver] final class SharedPools(code: OwnCode) {
  /** Removes the job's pending tasks, and interrupts its running ones. Returns whether there may have been any. */
  def end(): Boolean = SharedPools.withTimer { timer =>
    val delayed = timer.exists(removeDelayed)
    val before = SharedPools.workers
    val queued = cancelQueued(before.keys)
    Seq(delayed, endRunning(before), queued, endRunning(SharedPools.workers)).contains(true)
  }

  private def removeDelayed(timer: ThreadPoolExecutor): Boolean = {
    val found = timer.getQueue.asScala.filter(code.isIn).toList
    found.foreach(timer.remove)
    found.nonEmpty
  }

  private def endRunning(workers: SharedPools.Stacks): Boolean = {
    val running = workers.filter { case (_, frames) => code.runsIn(frames) }.keys
    running.foreach(_.interrupt())
    running.nonEmpty ||
      workers.exists { case (thread, frames) => SharedPools.mayHoldTask(frames) || hasYetToStart(thread) }
  }

  /** Whether a thread was made for a task of the job, and has not reached its code yet. */
  private def hasYetToStart(thread: Thread): Boolean = JobThreads.targetOf(thread).exists(code.isIn)

  private def cancelQueued(workers: Iterable[Thread]): Boolean = {
    val found = SharedPools.queued(workers).filter(task => !task.isDone && code.isIn(task))
    found.foreach(_.cancel(false))
    found.nonEmpty
  }
}

private[jobserver] object SharedPools {
  private type Stacks = collection.Map[Thread, Array[StackTraceElement]]

  private val TimerThread = "CompletableFutureDelayScheduler"
  private val Scheduling = Seq("java.util.concurrent.", "java.lang.Thread", "jdk.internal.", "scala.")
  private val Waiting = Set("getTask", "awaitWork")

  /** Starts the timer, so that its thread does not join the group of the first job that uses it. */
  def prepare(): Unit =
    CompletableFuture.delayedExecutor(0L, TimeUnit.MILLISECONDS, (task: Runnable) => task.run()).execute(() => ())

  private lazy val timer: Option[ThreadPoolExecutor] = Try {
    val field = Class.forName("java.util.concurrent.CompletableFuture$Delayer").getDeclaredField("delayer")
    field.setAccessible(true)
    field.get(null).asInstanceOf[ThreadPoolExecutor]
  }.toOption

  private def withTimer(body: Option[ThreadPoolExecutor] => Boolean): Boolean =
    timer.flatMap(pool => Fields.get(pool.getQueue, "lock")) match {
      case Some(lock: ReentrantLock) =>
        lock.lock()
        try body(timer) finally lock.unlock()
      case _ => body(None)
    }

  private def workers: Stacks =
    Thread.getAllStackTraces.asScala.filter { case (thread, frames) => isWorker(thread, frames) }

  private def isWorker(thread: Thread, frames: Array[StackTraceElement]): Boolean =
    thread.isInstanceOf[ForkJoinWorkerThread] || thread.getName == TimerThread || isSingleTask(thread, frames)

  /** Whether `CompletableFuture` made the thread for one task, as it does where the common pool has just one thread. */
  private def isSingleTask(thread: Thread, frames: Array[StackTraceElement]): Boolean =
    (frames.map(_.getClassName) ++ JobThreads.targetOf(thread).map(_.getClass.getName))
      .exists(_.startsWith("java.util.concurrent.CompletableFuture$Async"))

  private def mayHoldTask(frames: Array[StackTraceElement]): Boolean =
    frames.nonEmpty && !(frames.head.getMethodName == "park" && frames.exists(frame => Waiting(frame.getMethodName))) &&
      frames.forall(frame => Scheduling.exists(frame.getClassName.startsWith))

  private def queued(workers: Iterable[Thread]): Seq[ForkJoinTask[_]] = {
    val pools = ForkJoinPool.commonPool +: workers.toSeq.collect { case worker: ForkJoinWorkerThread => worker.getPool }
    for {
      pool <- pools.filter(_ != null).distinct
      queues <- Fields.get(pool, "queues").toSeq
      queue <- elements(queues)
      tasks <- Fields.get(queue, "array").toSeq
      task <- elements(tasks).collect { case task: ForkJoinTask[_] => task }
    } yield task
  }

  private def elements(array: AnyRef): Seq[AnyRef] = array.asInstanceOf[Array[AnyRef]].toSeq.filter(_ != null)
}
