package org.apache.spark.streaming

import org.apache.spark.SparkContext

/**
 * A job's own StreamingContext, whose batches are the job's: they can be cancelled with it, and count as its progress.
 *
 * Spark runs batches with the properties of the thread that starts the stream, but takes the job group out of them.
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
  /** The StreamingContext that runs in this JVM, which has room for one, if its starter's local property is this. */
  def active(property: String, value: String): Option[StreamingContext] =
    StreamingContext.getActive().filter(_.savedProperties.get.getProperty(property) == value)
}
