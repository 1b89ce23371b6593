package org.apache.spark.sql.jobserver

import scala.collection.JavaConverters._

import org.apache.spark.sql.SparkSession
import org.apache.spark.sql.internal.{SessionState, SharedState}
import org.apache.spark.sql.jobserver.Sessions.Session
import org.apache.spark.sql.streaming.StreamingQuery

/**
 * A session for jobs, with the settings, views and functions of the context's own session.
 *
 * Plain applications end with `spark.stop()`. It does nothing here, because it must not stop the context for other jobs.
 */
private[jobserver] final class JobSession(root: Session, isolated: Boolean) extends Session(root.sparkContext) {
  override lazy val sharedState: SharedState = root.sharedState
  override lazy val sessionState: SessionState = root.sessionState.clone(this)

  if (isolated) sessionState.conf.setConfString("spark.sql.artifact.isolation.enabled", "true")

  override def stop(): Unit =
    System.err.println("SparkSession.stop() has no effect: the job server owns the context")
  override def close(): Unit = stop()
}

private[jobserver] object JobSession {
  /** The streaming queries of all sessions of the application. */
  def queries(session: SparkSession): Seq[StreamingQuery] =
    session.asInstanceOf[Session].sharedState.activeStreamingQueries.values.asScala.toList
}
