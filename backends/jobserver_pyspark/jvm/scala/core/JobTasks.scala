package org.apache.spark.scheduler

import org.apache.spark.SparkContext

/**
 * The tasks of one job that run or wait, whatever groups and tags its Spark jobs were given.
 *
 * A task set stays in the scheduler's pool until the last of its tasks has ended, also after its Spark job was
 * cancelled: a cancelled task goes on until it notices.
 *
 * @param property the local property whose value says whose tasks they are
 */
private[spark] final class JobTasks(context: SparkContext, property: String, value: String) {

  /** Cancels every task, with an interrupt; returns whether there were any. */
  def kill(): Boolean = {
    val found = taskSets
    found.foreach { tasks =>
      context.cancelStage(tasks.stageId)
      context.taskScheduler.killAllTaskAttempts(tasks.stageId, interruptThread = true, reason = "the job was killed")
    }
    found.nonEmpty
  }

  private def taskSets: Seq[TaskSetManager] = context.taskScheduler match {
    case scheduler: TaskSchedulerImpl if !context.isStopped =>
      scheduler.synchronized(scheduler.rootPool.getSortedTaskSetQueue.toList)
        .filter(tasks => Option(tasks.taskSet.properties).exists(_.getProperty(property) == value))
    case _ => Nil
  }
}
