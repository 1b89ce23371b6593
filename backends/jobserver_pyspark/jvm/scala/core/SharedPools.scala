package org.apache.spark.sql.jobserver

import java.util.concurrent.{ForkJoinPool, ForkJoinTask, ForkJoinWorkerThread, ThreadPoolExecutor}

import scala.collection.JavaConverters._

/**
 * One job's work in the pools that all jobs of a JVM share: fork-join pools, such as the common pool and that of
 * `ExecutionContext.global`, the threads that replace the common pool on a machine with few processors, the threads that
 * call handlers of asynchronous channels, and the timer of `CompletableFuture.delayedExecutor`.
 *
 * A task that repeats itself goes in circles: from the timer's queue to the timer's thread, to the queue of a pool, to a
 * worker, and then the job's code on the worker's stack puts the next task into the timer's queue. A search that reads
 * these places one after the other can miss it every time. So the search locks the timer's queue. The task can then only
 * move forward, as far as the timer. Reading the stacks, then the queues of the pools, then the stacks again, and the
 * timer last, is enough to find it: what left a queue in between is with a worker or on a stack by then, or in the timer.
 *
 * The stack of a worker that has taken a task but not begun it shows no code of a job, so it is unknown whose task it is.
 * That also counts as something found, and the caller looks again. So does work in a class that another running job has
 * too: nothing shows whose it is, so it is neither ended nor ignored, until it is done or the other job has ended.
 *
 * See [[SharedTimer]] for the lock of the timer's queue.
 */
private[jobserver] final class SharedPools(code: OwnCode) {
  /** Removes the job's pending tasks, and interrupts its running ones. Returns whether there may have been any. */
  def end(): Boolean = SharedTimer.locked { waiting =>
    val before = SharedPools.workers
    val queued = cancelQueued(before.keys)
    Seq(endRunning(before), queued, endRunning(SharedPools.workers), removeDelayed(waiting())).contains(true)
  }

  private def removeDelayed(waiting: Seq[SharedTimer.Task]): Boolean = {
    val found = waiting.filter(task => code.mayBeIn(task.work))
    found.filter(task => code.isIn(task.work)).foreach(_.cancel())
    found.nonEmpty
  }

  private def endRunning(workers: SharedPools.Stacks): Boolean = {
    val running = workers.filter { case (_, frames) => code.mayRunIn(frames) }
    running.filter { case (_, frames) => code.runsIn(frames) }.keys.foreach(_.interrupt())
    running.nonEmpty ||
      workers.exists { case (thread, frames) => SharedPools.mayHoldTask(frames) || hasYetToStart(thread) }
  }

  /** Whether a thread was made for a task of the job, and has not reached its code yet. */
  private def hasYetToStart(thread: Thread): Boolean = JobThreads.targetOf(thread).exists(code.mayBeIn)

  private def cancelQueued(workers: Iterable[Thread]): Boolean = {
    val found = SharedPools.queued(workers).filter(task => !task.isDone && code.mayBeIn(task))
    found.filter(code.isIn).foreach(_.cancel(false))
    found.nonEmpty
  }
}

private[jobserver] object SharedPools {
  private type Stacks = collection.Map[Thread, Array[StackTraceElement]]

  private val Scheduling = Seq("java.util.concurrent.", "java.lang.Thread", "jdk.internal.", "scala.", "sun.nio.ch.")
  private val ChannelCode =
    Seq("sun.nio.ch.Invoker", "sun.nio.ch.EPollPort", "sun.nio.ch.AsynchronousChannelGroup", "sun.nio.ch.SimpleAsynchronousFile")
  private val Waiting = Set("getTask", "awaitWork", "take")

  private def workers: Stacks =
    Thread.getAllStackTraces.asScala.filter { case (thread, frames) => isWorker(thread, frames) }

  /** Whether a thread works for all jobs. */
  def isWorker(thread: Thread, frames: Array[StackTraceElement] = Array.empty): Boolean =
    thread.isInstanceOf[ForkJoinWorkerThread] || thread.getName == SharedTimer.ThreadName || isSingleTask(thread, frames) ||
      isOfChannels(thread, frames)

  /** Whether `CompletableFuture` made the thread for one task, as it does where the common pool has just one thread. */
  private def isSingleTask(thread: Thread, frames: Array[StackTraceElement]): Boolean =
    (frames.map(_.getClassName) ++ JobThreads.targetOf(thread).map(_.getClass.getName))
      .exists(_.startsWith("java.util.concurrent.CompletableFuture$Async"))

  /** Whether a thread calls handlers of asynchronous channels, or belongs to a pool of the JDK for them. */
  def isOfChannels(thread: Thread, frames: Array[StackTraceElement]): Boolean =
    frames.exists(frame => ChannelCode.exists(frame.getClassName.startsWith)) ||
      JobThreads.poolOf(JobThreads.targetOf(thread)).exists(isForChannels)

  /** Whether a pool is one that the JDK makes for the asynchronous channels of all jobs. */
  def isForChannels(pool: ThreadPoolExecutor): Boolean = pool.getThreadFactory.getClass.getName.startsWith("sun.nio.ch.")

  def mayHoldTask(frames: Array[StackTraceElement]): Boolean =
    frames.nonEmpty && !waits(frames) && frames.forall(frame => Scheduling.exists(frame.getClassName.startsWith))

  private def waits(frames: Array[StackTraceElement]): Boolean = frames.head.getClassName == "sun.nio.ch.EPoll" ||
    frames.head.getMethodName == "park" && frames.exists(frame => Waiting(frame.getMethodName))

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
