package versions

import java.util.{Map => JMap}
import org.apache.spark.SparkContext
import org.apache.spark.sql.SparkSession
import org.apache.spark.sql.functions.col

import scala.concurrent.{Await, ExecutionContext, Future}
import scala.concurrent.duration.Duration

case class Tag(label: String) {
  def said: String = "one " + label
}

object Job {
  def version: String = "one"

  /** Runs on its own thread, or on one of a pool that all code of the JVM shares. */
  def runJob(sc: SparkContext, config: JMap[String, Object]): Any =
    if (config.containsKey("future")) Await.result(Future(work(sc, config))(ExecutionContext.global), Duration.Inf)
    else work(sc, config)

  /** Spark builds the small side of a join on threads of its own. */
  private def joined(sc: SparkContext): Seq[String] = {
    val spark = SparkSession.active
    import spark.implicits._
    val small = spark.range(2).map(_ => Job.version).toDF("v").distinct()
    small.hint("broadcast").join(small.select(col("v").as("w")), col("v") === col("w")).as[(String, String)]
      .collect().map(_._1).toSeq
  }

  private def work(sc: SparkContext, config: JMap[String, Object]): Any = {
    if (config.containsKey("sleep")) Thread.sleep(config.get("sleep").toString.toLong)
    if (config.containsKey("gate")) {
      println("waiting")
      while (!java.nio.file.Files.exists(java.nio.file.Paths.get(config.get("gate").toString))) Thread.sleep(20)
    }
    val tag = sc.broadcast(Tag("broadcast"))
    val tags = sc.parallelize(1 to 4, 2).map(n => Tag("sent")).collect()
    Map(
      "driver" -> version,
      "joined" -> joined(sc),
      "executors" -> sc.parallelize(1 to 4, 2).map(_ => Job.version).collect().distinct.sorted.toSeq,
      "sent" -> tags.map(_.said).distinct.toSeq,
      "broadcast" -> sc.parallelize(1 to 4, 2).map(_ => tag.value.said).collect().distinct.toSeq)
  }
}
