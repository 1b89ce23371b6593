package org.apache.spark.scheduler

import java.nio.ByteBuffer
import java.util.{List => JList}
import java.util.concurrent.{AbstractExecutorService, ExecutorService, TimeUnit}

import org.apache.spark.{SparkContext, SparkEnv}
import org.apache.spark.TaskState.TaskState
import org.apache.spark.serializer.{Serializer, SerializerInstance}
import org.apache.spark.util.ThreadUtils

/**
 * Deserializes the results of tasks with the class loader of their job.
 *
 * Spark deserializes all results on a few threads of the scheduler, whose class loader does not know the classes of jobs:
 * an `rdd.collect()` of a job's own case class would fail there, or use another version of the class. So each stage
 * carries the ID of the job's loader as a local property, by which the right loader is found here.
 */
private[spark] final class JobResultGetter(
    env: SparkEnv, scheduler: TaskSchedulerImpl, property: String, loaderOf: String => Option[ClassLoader])
  extends TaskResultGetter(env, scheduler) {

  private val loader = new ThreadLocal[ClassLoader]

  // A serializer instance keeps the class loader of the thread that created it, so each use creates a new one.
  override protected val serializer: ThreadLocal[SerializerInstance] = fresh(env.closureSerializer)
  override protected val taskResultSerializer: ThreadLocal[SerializerInstance] = fresh(env.serializer)

  override protected val getTaskResultExecutor: ExecutorService =
    new LoaderKeepingPool(ThreadUtils.newDaemonFixedThreadPool(4, "job-result-getter"), loader)

  override def enqueueSuccessfulTask(tasks: TaskSetManager, taskId: Long, data: ByteBuffer): Unit =
    withLoaderOf(tasks)(super.enqueueSuccessfulTask(tasks, taskId, data))

  override def enqueueFailedTask(tasks: TaskSetManager, taskId: Long, state: TaskState, data: ByteBuffer): Unit =
    withLoaderOf(tasks)(super.enqueueFailedTask(tasks, taskId, state, data))

  private def withLoaderOf(tasks: TaskSetManager)(enqueue: => Unit): Unit = {
    Option(tasks.taskSet.properties).flatMap(p => Option(p.getProperty(property))).flatMap(loaderOf).foreach(loader.set)
    try enqueue finally loader.remove()
  }

  private def fresh(serializer: Serializer) = new ThreadLocal[SerializerInstance] {
    override def get(): SerializerInstance = serializer.newInstance()
  }
}

private[spark] object JobResultGetter {
  /** Replaces the scheduler's own, if the scheduler has one. */
  def install(context: SparkContext, property: String, loaderOf: String => Option[ClassLoader]): Unit =
    context.taskScheduler match {
      case scheduler: TaskSchedulerImpl =>
        scheduler.taskResultGetter = new JobResultGetter(context.env, scheduler, property, loaderOf)
      case _ =>
    }
}

/** Runs each task with the context class loader of the thread that submitted it. */
private final class LoaderKeepingPool(pool: ExecutorService, loader: ThreadLocal[ClassLoader])
  extends AbstractExecutorService {

  override def execute(task: Runnable): Unit = {
    val wanted = loader.get()
    pool.execute(() => {
      val thread = Thread.currentThread
      val before = thread.getContextClassLoader
      if (wanted != null) thread.setContextClassLoader(wanted)
      try task.run() finally thread.setContextClassLoader(before)
    })
  }

  override def shutdown(): Unit = pool.shutdown()
  override def shutdownNow(): JList[Runnable] = pool.shutdownNow()
  override def isShutdown: Boolean = pool.isShutdown
  override def isTerminated: Boolean = pool.isTerminated
  override def awaitTermination(timeout: Long, unit: TimeUnit): Boolean = pool.awaitTermination(timeout, unit)
}
