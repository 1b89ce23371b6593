package spark.jobserver {

  import org.apache.spark.SparkContext

  /** Something made of a SparkContext that can be stopped. */
  trait ContextLike {
    def sparkContext: SparkContext
    def stop(): Unit
  }
}

package spark.jobserver.context {

  import org.apache.spark.SparkContext
  import org.apache.spark.sql.SparkSession

  import spark.jobserver.ContextLike

  /** The session, as `SparkSessionJob` and `JSessionJob` hand it through. */
  case class SparkSessionContextLikeWrapper(spark: SparkSession) extends ContextLike {
    override def sparkContext: SparkContext = spark.sparkContext

    /** Stops the session's streams; the context itself belongs to the server. */
    override def stop(): Unit = spark.streams.active.foreach(_.stop())
  }
}
