package org.apache.spark.scheduler

import java.util.{Collections, LinkedHashMap => JLinkedHashMap, Map => JMap, Properties, Set => JSet}

import scala.collection.JavaConverters._

import org.apache.spark.SparkContext

/**
 * The tasks of jobs, regardless of the groups and tags of their Spark jobs.
 *
 * A task set stays in the scheduler's pool until its last task has ended, even after its Spark job was cancelled, because
 * a cancelled task continues until it notices. So the pool shows when no task of a job runs any more. Tasks that a thread
 * submitted just before it was interrupted may reach the pool later. The pool rejects them.
 *
 * @param property the local property that identifies the job of a task
 */
private[spark] final class JobTasks(context: SparkContext, property: String) {
  private val killed = JobTasks.recentIds()

  context.taskScheduler match {
    case scheduler: TaskSchedulerImpl => JobTasks.wrapBuilder(scheduler)(new KilledJobRejection(_))
    case _ =>
  }

  /** Cancels and interrupts all tasks of a job, including later ones. Returns whether there were any. */
  def kill(jobId: String): Boolean = {
    killed.add(jobId)
    val found = taskSets(jobId)
    found.foreach { tasks =>
      context.cancelStage(tasks.stageId)
      context.taskScheduler.killAllTaskAttempts(tasks.stageId, interruptThread = true, JobTasks.Reason)
    }
    found.nonEmpty
  }

  private def taskSets(jobId: String): Seq[TaskSetManager] = context.taskScheduler match {
    case scheduler: TaskSchedulerImpl if !context.isStopped =>
      scheduler.synchronized(taskSetsIn(scheduler.rootPool))
        .filter(tasks => ownerOf(tasks.taskSet.properties).contains(jobId))
    case _ => Nil
  }

  private def taskSetsIn(place: Schedulable): Seq[TaskSetManager] = place match {
    case tasks: TaskSetManager => Seq(tasks)
    case pool => pool.schedulableQueue.asScala.toList.flatMap(taskSetsIn)
  }

  private def ownerOf(properties: Properties): Option[String] =
    Option(properties).flatMap(p => Option(p.getProperty(property)))

  /** Aborts task sets of killed jobs as soon as they are submitted. */
  private final class KilledJobRejection(inner: SchedulableBuilder) extends SchedulableBuilder {
    override def rootPool: Pool = inner.rootPool
    override def buildPools(): Unit = inner.buildPools()
    override def addTaskSetManager(manager: Schedulable, properties: Properties): Unit = {
      inner.addTaskSetManager(manager, properties)
      manager match {
        case tasks: TaskSetManager if ownerOf(properties).exists(killed.contains) => tasks.abort(JobTasks.Reason)
        case _ =>
      }
    }
  }
}

private[spark] object JobTasks {
  private val Reason = "the job was killed"
  private val Remembered = 10000

  /** A set of job IDs for any thread, which forgets the oldest of very many. */
  def recentIds(): JSet[String] = Collections.newSetFromMap(Collections.synchronizedMap(
    new JLinkedHashMap[String, java.lang.Boolean] {
      override def removeEldestEntry(eldest: JMap.Entry[String, java.lang.Boolean]): Boolean = size > Remembered
    }))

  /** Wraps the scheduler's own builder of task pools, which gets every set of tasks before any of them can run. */
  def wrapBuilder(scheduler: TaskSchedulerImpl)(wrap: SchedulableBuilder => SchedulableBuilder): Unit = {
    val field = classOf[TaskSchedulerImpl].getDeclaredField("schedulableBuilder")
    field.setAccessible(true)
    field.set(scheduler, wrap(field.get(scheduler).asInstanceOf[SchedulableBuilder]))
  }
}
