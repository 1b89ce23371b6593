package org.apache.spark.scheduler

import java.util.{Collections, LinkedHashMap => JLinkedHashMap, Map => JMap, Properties}

import scala.collection.JavaConverters._

import org.apache.spark.SparkContext

/**
 * The tasks of jobs, whatever groups and tags their Spark jobs were given.
 *
 * A task set stays in the scheduler's pool until the last of its tasks has ended, also after its Spark job was
 * cancelled: a cancelled task goes on until it notices. So the pool tells when nothing of a job runs any more. What a
 * thread had submitted when it was interrupted may reach the pool later; that is turned away there.
 *
 * @param property the local property whose value says whose tasks they are
 */
private[spark] final class JobTasks(context: SparkContext, property: String) {
  private val killed = Collections.newSetFromMap(Collections.synchronizedMap(
    new JLinkedHashMap[String, java.lang.Boolean] {
      override def removeEldestEntry(eldest: JMap.Entry[String, java.lang.Boolean]): Boolean =
        size > JobTasks.Remembered
    }))

  context.taskScheduler match {
    case scheduler: TaskSchedulerImpl => JobTasks.wrapBuilder(scheduler)(new Gate(_))
    case _ =>
  }

  /** Cancels every task of a job, with an interrupt, and all that come later; returns whether there were any. */
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

  private final class Gate(inner: SchedulableBuilder) extends SchedulableBuilder {
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

  /** Puts a builder of task pools around the scheduler's own. */
  def wrapBuilder(scheduler: TaskSchedulerImpl)(wrap: SchedulableBuilder => SchedulableBuilder): Unit = {
    val field = classOf[TaskSchedulerImpl].getDeclaredField("schedulableBuilder")
    field.setAccessible(true)
    field.set(scheduler, wrap(field.get(scheduler).asInstanceOf[SchedulableBuilder]))
  }
}
