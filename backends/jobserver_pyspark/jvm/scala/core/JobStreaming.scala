package org.apache.spark.streaming

import org.apache.spark.SparkContext

/**
 * A job's own StreamingContext. Its batches belong to the job: they are cancelled with it, and count as its progress.
 *
 * Spark runs batches with the local properties of the thread that started the stream, except for the job group.
 */
private[spark] final class JobStreamingContext(spark: SparkContext, interval: Duration, jobId: String)
  extends StreamingContext(spark, interval) {

  override def start(): Unit = {
    super.start()
    val properties = savedProperties.get()
    properties.setProperty("spark.jobGroup.id", jobId)
    properties.setProperty("spark.job.interruptOnCancel", "true")
  }
}

private[spark] object JobStreaming {
  /** The active StreamingContext of this JVM, if it was started by a thread with this local property. */
  def active(property: String, value: String): Option[StreamingContext] =
    StreamingContext.getActive().filter(_.savedProperties.get.getProperty(property) == value)
}
