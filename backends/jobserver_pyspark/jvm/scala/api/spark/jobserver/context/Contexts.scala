package spark.jobserver {

  import org.apache.spark.SparkContext

  /** A wrapper of a SparkContext that can be stopped. */
  trait ContextLike {
    def sparkContext: SparkContext
    def stop(): Unit
  }
}

package spark.jobserver.context {

  import org.apache.spark.SparkContext
  import org.apache.spark.sql.SparkSession

  import spark.jobserver.ContextLike

  /** The SparkSession for `SparkSessionJob` and `JSessionJob`. */
  case class SparkSessionContextLikeWrapper(spark: SparkSession) extends ContextLike {
    override def sparkContext: SparkContext = spark.sparkContext

    /** Stops the session's streams, but not the context, which belongs to the server. */
    override def stop(): Unit = spark.streams.active.foreach(_.stop())
  }
}
