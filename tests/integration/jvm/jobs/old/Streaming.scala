package spark.jobserver

import com.typesafe.config.Config
import org.apache.spark.rdd.RDD
import org.apache.spark.streaming.StreamingContext

import scala.collection.mutable
import scala.util.Try

/** Counts the words of a queue, batch by batch, until it is killed. */
object StreamingTestJob extends SparkStreamingJob {
  def validate(ssc: StreamingContext, config: Config): SparkJobValidation = SparkJobValid

  def runJob(ssc: StreamingContext, config: Config): Any = {
    val iterations = Try(config.getInt("streaming.test.job.maxIterations")).getOrElse(1)
    val queue = mutable.Queue[RDD[String]]()
    val counts = ssc.queueStream(queue).flatMap(_.split(" ")).countByValue()
    counts.foreachRDD(rdd => println("batch of " + rdd.count()))
    ssc.start()
    (1 to iterations).foreach { _ =>
      queue.synchronized { queue += ssc.sparkContext.makeRDD(Seq("123", "test", "test2")) }
      Thread.sleep(100)
    }
    ssc.awaitTermination()
  }
}

/** Stops its StreamingContext together with the SparkContext, which is not its own. */
object StreamStopperJob extends SparkStreamingJob {
  def validate(ssc: StreamingContext, config: Config): SparkJobValidation = SparkJobValid

  def runJob(ssc: StreamingContext, config: Config): Any = {
    ssc.stop(stopSparkContext = true, stopGracefully = false)
    Thread.sleep(600000)
  }
}
