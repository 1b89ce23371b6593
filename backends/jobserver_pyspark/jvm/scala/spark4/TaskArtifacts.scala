package org.apache.spark.scheduler

import java.util.Properties

import org.apache.spark.{JobArtifactSet, SparkContext}

/**
 * Chooses the artifacts of tasks without a session.
 *
 * Spark gives them the jars of all sessions. It does so on the thread that submits a Spark job, and there is no API to change
 * it. So the artifacts are replaced in the tasks, before the scheduler can offer them to executors.
 *
 * @param property the local property that marks the threads of a JVM job, and everything that they start
 * @param artifactsFor whether the tasks are of a JVM job, and their artifacts, to the new ones, or why they must not run
 */
private final class TaskArtifacts(
    inner: SchedulableBuilder, property: String, artifactsFor: (Boolean, JobArtifactSet) => Either[String, JobArtifactSet])
  extends SchedulableBuilder {

  override def rootPool: Pool = inner.rootPool
  override def buildPools(): Unit = inner.buildPools()

  override def addTaskSetManager(manager: Schedulable, properties: Properties): Unit = {
    val refusal = manager match {
      case tasks: TaskSetManager => choose(tasks, ofJob = properties != null && properties.getProperty(property) != null)
      case _ => None
    }
    inner.addTaskSetManager(manager, properties)
    refusal.foreach { case (tasks, reason) => tasks.abort(reason) }
  }

  private def choose(tasks: TaskSetManager, ofJob: Boolean): Option[(TaskSetManager, String)] =
    tasks.tasks.map(_.artifacts).find(_.state.isEmpty).map(artifactsFor(ofJob, _)).flatMap {
      case Right(artifacts) =>
        tasks.tasks.foreach(TaskArtifacts.field.set(_, artifacts))
        None
      case Left(reason) => Some((tasks, reason))
    }
}

private[spark] object TaskArtifacts {
  private val field = {
    val found = classOf[Task[_]].getDeclaredField("artifacts")
    found.setAccessible(true)
    found
  }

  /** Chooses the artifacts of the scheduler's tasks, if the scheduler has any. */
  def choose(
      context: SparkContext,
      property: String,
      artifactsFor: (Boolean, JobArtifactSet) => Either[String, JobArtifactSet]): Unit = context.taskScheduler match {
    case scheduler: TaskSchedulerImpl => JobTasks.wrapBuilder(scheduler)(new TaskArtifacts(_, property, artifactsFor))
    case _ =>
  }
}
