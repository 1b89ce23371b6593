package org.apache.spark.scheduler

import java.util.Properties

import org.apache.spark.SparkContext

/**
 * Fails Spark jobs of which nobody can say whose code they are, instead of running another version's.
 *
 * Tasks of a thread that carries no session see the jars of all sessions. That is right while no two of them hold the
 * same class. As soon as they do, the first one would win without a word.
 *
 * @param property the local property that a job's threads, and what they start, have and other threads have not
 * @param ambiguous whether there are several versions of a class by now
 */
private final class StrayTasks(inner: SchedulableBuilder, property: String, ambiguous: () => Boolean)
  extends SchedulableBuilder {

  override def rootPool: Pool = inner.rootPool
  override def buildPools(): Unit = inner.buildPools()

  override def addTaskSetManager(manager: Schedulable, properties: Properties): Unit = {
    inner.addTaskSetManager(manager, properties)
    manager match {
      case tasks: TaskSetManager if ambiguous() && isStray(tasks, properties) => tasks.abort(StrayTasks.Message)
      case _ =>
    }
  }

  private def isStray(manager: TaskSetManager, properties: Properties): Boolean =
    properties != null && properties.getProperty(property) != null &&
      manager.tasks.exists(_.artifacts.state.isEmpty)
}

private[spark] object StrayTasks {
  private val Message = "This Spark job was started on a thread that does not carry its job's class path, and this " +
    "context has several versions of one class: start it on the job's own thread, or use a context with " +
    "jvm.isolation = shared"

  /** Watches the scheduler's task sets, for schedulers that have any. */
  def watch(context: SparkContext, property: String, ambiguous: () => Boolean): Unit =
    context.taskScheduler match {
      case scheduler: TaskSchedulerImpl =>
        JobTasks.wrapBuilder(scheduler)(new StrayTasks(_, property, ambiguous))
      case _ =>
    }
}
