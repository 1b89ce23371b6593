package org.apache.spark.sql.jobserver

import org.apache.spark.SparkContext
import org.apache.spark.scheduler.{JobListeners, JobTasks}
import org.apache.spark.sql.SparkSession
import org.apache.spark.sql.streaming.StreamingQuery
import org.apache.spark.streaming.{JobStreaming, StreamingContext}

/**
 * Everything that a job has started and that can outlive its own thread.
 *
 * A job in the state KILLED must not do anything any more. So when the job's code has returned, its thread waits until no
 * Spark tasks, streams, listeners, threads or processes of the job are left. Each method tries once to end all of one
 * kind, and returns whether there were any; the caller repeats it. If something cannot be ended, the job stays RUNNING.
 *
 * Streams are ended after every job. Tasks, listeners, threads and processes are ended only if the job was killed,
 * because a finished job may leave something for the next one, such as a connection pool.
 */
private[jobserver] final class JobRemains(
    jobId: String, spark: SparkContext, tasks: JobTasks, threads: JobThreads) {
  private val listeners = new JobListeners(spark)

  def endTasks(): Boolean = {
    if (!spark.isStopped) spark.cancelJobsWithTag(jobId)
    tasks.kill(jobId)
  }

  def endListeners(code: OwnCode): Boolean = listeners.end(
    isOwn = (cls, job) => job.fold(code.has(cls))(_ == jobId && code.mayHave(cls)),
    mayBeOwn = (cls, job) => job.isEmpty && code.mayHave(cls))

  def endThreads(code: OwnCode): Boolean =
    Seq(threads.end(code), new JobChannels(code).end(), new SharedPools(code).end()).contains(true)

  /** The StreamingContext that the job started: the one that it got, or one that it created itself. */
  def streamingContext: Option[StreamingContext] = JobStreaming.active(Isolation.JobProperty, jobId)

  /** Stops the job's StreamingContext and its structured streams, but not those of other jobs. */
  def endStreams(session: SparkSession): Boolean = {
    val streaming = streamingContext
    val queries = queriesOf(session)
    // Stopping waits for the batch in progress, which may ignore interrupts.
    streaming.foreach { context =>
      JobThreads.onOwnThread(s"stop-$jobId")(context.stop(stopSparkContext = false, stopGracefully = false))
    }
    queries.foreach(query => JobThreads.onOwnThread(s"stop-${query.runId}")(query.stop()))
    streaming.nonEmpty || queries.nonEmpty
  }

  /** Queries of all sessions. The thread of each query belongs to the thread group of the job that started it. */
  private def queriesOf(session: SparkSession): Seq[StreamingQuery] = {
    val names = threads.members.map(_.getName)
    JobSession.queries(session).filter(query => names.exists(_.contains(query.runId.toString)))
  }
}
