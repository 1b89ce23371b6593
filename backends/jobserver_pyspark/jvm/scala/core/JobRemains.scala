package org.apache.spark.sql.jobserver

import scala.util.control.NonFatal

import org.apache.spark.SparkContext
import org.apache.spark.scheduler.JobTasks
import org.apache.spark.sql.SparkSession
import org.apache.spark.sql.streaming.StreamingQuery
import org.apache.spark.streaming.{JobStreaming, StreamingContext}

/**
 * What a job has started and what can outlive its own thread.
 *
 * A job that says KILLED must not do anything any more. So its thread, once it is back from the job's code, stays until
 * nothing of this is left: Spark tasks, streams, threads, processes. Each method tries once to end all there is of a
 * kind and returns whether there was any; whoever calls it repeats that. What cannot be ended keeps the job RUNNING.
 *
 * Streams are ended after every job. Tasks, threads and processes are ended when a job is killed: a job that has
 * finished may well have left something for the next one, such as a pool of connections.
 */
private[jobserver] final class JobRemains(
    jobId: String, spark: SparkContext, tasks: JobTasks, threads: JobThreads) {

  def endTasks(): Boolean = {
    if (!spark.isStopped) spark.cancelJobsWithTag(jobId)
    tasks.kill(jobId)
  }

  /** The StreamingContext that the job started, be it the one that it was handed or one that it made itself. */
  def streamingContext: Option[StreamingContext] = JobStreaming.active(Isolation.JobProperty, jobId)

  /** Stops the job's StreamingContext and its structured streams; those of its neighbours go on. */
  def endStreams(session: SparkSession): Boolean = {
    val streaming = streamingContext
    val queries = queriesOf(session)
    streaming.foreach { context =>
      apart(s"stop-$jobId")(context.stop(stopSparkContext = false, stopGracefully = false))
    }
    queries.foreach(query => apart(s"stop-${query.runId}")(query.stop()))
    streaming.nonEmpty || queries.nonEmpty
  }

  /** Queries of every session of the application: the thread of each is born into the group of whoever starts it. */
  private def queriesOf(session: SparkSession): Seq[StreamingQuery] = {
    val names = threads.members.map(_.getName)
    JobSession.queries(session).filter(query => names.exists(_.contains(query.runId.toString)))
  }

  /** Stopping waits for the batch in progress, which may hear nothing: so it is waited for only a while. */
  private def apart(name: String)(stop: => Unit): Unit = {
    val stopper = new Thread(() => try stop catch {
      case _: InterruptedException =>
      case NonFatal(error) => error.printStackTrace()
    }, name)
    stopper.setDaemon(true)
    stopper.start()
    stopper.join(2000L)
  }
}
