package control

import java.nio.file.{Files, Paths, StandardOpenOption}
import java.util.{Map => JMap}

import org.apache.spark.SparkContext
import org.apache.spark.rdd.RDD
import org.apache.spark.streaming.StreamingContext

import scala.collection.mutable
import scala.concurrent.{Await, Future}
import scala.concurrent.duration.Duration

object Files_ {
  def say(path: String, line: String): Unit =
    Files.write(Paths.get(path), (line + "\n").getBytes, StandardOpenOption.CREATE, StandardOpenOption.APPEND)

  def waitFor(path: String): Unit = while (!Files.exists(Paths.get(path))) Thread.sleep(20)
}

/** Says and logs something before, and something after the file `until` is there. */
class Talk {
  private val log = org.slf4j.LoggerFactory.getLogger(classOf[Talk])

  def runJob(sc: SparkContext, config: JMap[String, Object]): Any = {
    println("said before")
    log.warn("logged before")
    Files_.waitFor(config.get("until").toString)
    println("said after")
    log.warn("logged after")
    "talked"
  }
}

/** Many tasks, the last of which wait for the file `until`. */
class Steps {
  def runJob(sc: SparkContext, config: JMap[String, Object]): Any = {
    val until = config.get("until").toString
    sc.parallelize(1 to 10, 10).map { n => if (n > 8) Files_.waitFor(until); n }.sum()
  }
}

/** Batches that take `millis` each and write when they begin and when they are done; returns at once. */
class Batches {
  def runJob(ssc: StreamingContext, config: JMap[String, Object]): Any = {
    val (path, millis) = (config.get("path").toString, config.get("millis").toString.toLong)
    val queue = mutable.Queue[RDD[Int]](ssc.sparkContext.makeRDD(1 to 1, 1))
    ssc.queueStream(queue).foreachRDD(rdd => rdd.foreach { _ =>
      Files_.say(path, "begun")
      Thread.sleep(millis)
      Files_.say(path, "done")
    })
    ssc.start()
  }
}

case class Own(n: Int)

/** Starts its Spark job on a thread of a pool that everybody shares. */
class FromFuture {
  def runJob(sc: SparkContext, config: JMap[String, Object]): Any = {
    import scala.concurrent.ExecutionContext.Implicits.global
    Await.result(Future(sc.parallelize(1 to 4, 2).map(Own(_)).map(_.n).sum()), Duration.Inf)
  }
}

/** A large result: megabytes of bytes, or of JSON. */
class Large {
  def runJob(sc: SparkContext, config: JMap[String, Object]): Any = {
    val megabytes = config.get("megabytes").toString.toInt
    if (config.get("as") == "bytes") Iterator.fill(megabytes * 16)(("x" * 65536).getBytes)
    else Iterator.fill(megabytes * 16)("x" * 65533)
  }
}
