package org.apache.spark.scheduler

import java.util.Properties

import org.apache.spark.SparkContext

/**
 * Fails Spark jobs that cannot be attributed to a class path, instead of running the wrong version of their code.
 *
 * Tasks of a thread without a session see the jars of all sessions. That is correct as long as no two of them contain the
 * same class. Otherwise, the first one would be used silently.
 *
 * @param property the local property that marks the threads of a job, and everything that they start
 * @param ambiguous whether there are several versions of a class at the moment
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

  /** Watches the scheduler's task sets, if the scheduler has any. */
  def watch(context: SparkContext, property: String, ambiguous: () => Boolean): Unit =
    context.taskScheduler match {
      case scheduler: TaskSchedulerImpl =>
        JobTasks.wrapBuilder(scheduler)(new StrayTasks(_, property, ambiguous))
      case _ =>
    }
}
