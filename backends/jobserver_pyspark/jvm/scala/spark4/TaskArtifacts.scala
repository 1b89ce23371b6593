package org.apache.spark.scheduler

import java.util.Properties

import scala.util.control.NonFatal

import org.apache.spark.{JobArtifactSet, SparkContext}
import org.apache.spark.rdd.RDD

/**
 * Replaces the artifacts (jars, files and archives) of tasks without a session.
 *
 * Spark gives such tasks the jars of all sessions. It does so on the thread that submits a Spark job, and there is no API to
 * change that. So the artifacts are replaced in the tasks, before the scheduler can offer them to executors.
 *
 * @param artifactsFor takes a function that tells whether the tasks have a local property of a given name, the RDD that they
 *   compute, and the artifacts that Spark gave them. Returns the artifacts to use instead, or the reason why the tasks must
 *   not run
 */
private final class TaskArtifacts(context: SparkContext, inner: SchedulableBuilder, artifactsFor: TaskArtifacts.Choice)
  extends SchedulableBuilder {

  override def rootPool: Pool = inner.rootPool
  override def buildPools(): Unit = inner.buildPools()

  override def addTaskSetManager(manager: Schedulable, properties: Properties): Unit = {
    val refusal = manager match {
      case tasks: TaskSetManager =>
        replaceArtifacts(tasks, name => properties != null && properties.getProperty(name) != null)
      case _ => None
    }
    inner.addTaskSetManager(manager, properties)
    refusal.foreach { case (tasks, reason) => tasks.abort(reason) }
  }

  /** The scheduler's own thread, which alone may read its stages, submits the tasks. */
  private def rddOf(tasks: TaskSetManager): RDD[_] = context.dagScheduler.stageIdToStage(tasks.stageId).rdd

  /**
   * Replaces the artifacts of tasks, or returns the tasks with the reason why they must not run. An exception here would end
   * the whole Spark application.
   */
  private def replaceArtifacts(tasks: TaskSetManager, has: String => Boolean): Option[(TaskSetManager, String)] = {
    val chosen =
      try tasks.tasks.iterator.map(_.artifacts).find(_.state.isEmpty).map(artifactsFor(has, rddOf(tasks), _))
      catch { case NonFatal(error) => Some(Left(s"the jars of this Spark job could not be determined: $error")) }
    chosen.flatMap {
      case Right(artifacts) =>
        tasks.tasks.foreach(TaskArtifacts.field.set(_, artifacts))
        None
      case Left(reason) => Some((tasks, reason))
    }
  }
}

private[spark] object TaskArtifacts {
  type Choice = (String => Boolean, RDD[_], JobArtifactSet) => Either[String, JobArtifactSet]

  private val field = {
    val found = classOf[Task[_]].getDeclaredField("artifacts")
    found.setAccessible(true)
    found
  }

  /** Has the scheduler replace the artifacts of its tasks, if it is Spark's own and not that of a plug-in. */
  def install(context: SparkContext, artifactsFor: Choice): Unit = context.taskScheduler match {
    case scheduler: TaskSchedulerImpl => JobTasks.wrapBuilder(scheduler)(new TaskArtifacts(context, _, artifactsFor))
    case _ =>
  }
}
