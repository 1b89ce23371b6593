package shapes

import java.util.{Map => JMap}

import org.apache.spark.SparkContext
import org.apache.spark.api.java.JavaSparkContext
import org.apache.spark.sql.SparkSession

import scala.collection.JavaConverters._

class WordCount {
  def validate(sc: SparkContext, config: JMap[String, Object]): String =
    if (config.containsKey("words")) null else "words is missing"

  def runJob(sc: SparkContext, config: JMap[String, Object]): Any =
    sc.parallelize(config.get("words").toString.split(" ").toSeq).countByValue
}

object Runtime {
  def runJob(spark: SparkSession, runtime: JMap[String, Object], data: JMap[String, Object]): Any = Map(
    "id" -> runtime.get("jobId"),
    "setting" -> runtime.get("contextConfig").asInstanceOf[JMap[String, Object]].get("setting"),
    "group" -> spark.sparkContext.getLocalProperty("spark.jobGroup.id"))
}

class Data {
  def validate(sc: JavaSparkContext, config: JMap[String, Object]): List[Int] = {
    if (!config.containsKey("n")) throw new IllegalArgumentException("n is missing")
    (1 to config.get("n").toString.toInt).toList
  }

  def runJob(sc: JavaSparkContext, numbers: Object): Any = numbers.asInstanceOf[List[Int]].sum
}

case class Pair(name: String, value: Double)

/** One result of each kind that JSON is made of. */
object Results {
  def runJob(spark: SparkSession, config: JMap[String, Object]): Any = config.get("what") match {
    case "everything" => Map(
      "option" -> Some(1), "none" -> None, "tuple" -> ((1, "two", 3.5)), "case" -> Pair("x", Double.NaN),
      "infinite" -> Double.PositiveInfinity, "array" -> Array(1L, 2L), "java" -> Seq(1, 2).asJava, 'symbol -> 'it,
      "nested" -> Map(1 -> Seq(Map("a" -> true))), "decimal" -> BigDecimal("1.50"), "unit" -> (), "set" -> Set(7),
      "class" -> new java.util.UUID(1, 2), "bytes" -> Array[Byte](1, -1), "null" -> null, "char" -> 'c',
      "javaMap" -> Map("k" -> 1).asJava, "date" -> java.sql.Date.valueOf("2020-02-03"))
    case "rows" => spark.sql("select 1 as a, struct('x' as y) as b, array(1, 2) as c").collect()
    case "dataset" => spark.range(3)
    case "rdd" => Seq(spark.sparkContext.parallelize(Seq(1)))
    case "bytes" => "streamed ".getBytes.iterator ++ "result".getBytes.iterator
    case "stream" => Stream.continually("0123456789").take(200000).flatMap(_.getBytes.toSeq)
    case "chunks" => Iterator.fill(3)("chunk ".getBytes)
    case "numbers" => Iterator.range(0, 1000000)
    case "input" => new java.io.ByteArrayInputStream("from a stream".getBytes)
    case "deep" => Iterator.iterate[Any](1)(Seq(_)).drop(1000).next()
    case "499 lists" => Iterator.iterate[Any](1)(Seq(_)).drop(499).next()
    case "249 maps" => Iterator.iterate[Any](1)(value => Map("k" -> value)).drop(249).next()
    case "499 options" => Iterator.iterate[Any](1)(Some(_)).drop(499).next()
    case "endless" => Iterator.continually("x" * 1000)
    case "failed future" => scala.concurrent.Future.failed(new IllegalStateException("not today"))
    case "failed stage" =>
      java.util.concurrent.CompletableFuture.supplyAsync[Int](() => throw new IllegalStateException("not today"))
    case "failing" => Iterator.range(0, 10).map(i => 1 / (5 - i))
    case other => other
  }
}

object ReadText {
  def runJob(spark: SparkSession, config: JMap[String, Object]): Any =
    spark.read.text(config.get("path").toString).count()
}

object Application {
  def main(arguments: Array[String]): Unit = {
    val spark = SparkSession.builder.appName("mine").getOrCreate()
    println(s"said ${arguments.mkString("+")} ${spark.range(10).count()}")
    spark.stop()
  }
}

class Printing {
  private val log = org.slf4j.LoggerFactory.getLogger(classOf[Printing])

  def runJob(sc: SparkContext, config: JMap[String, Object]): Any = {
    val who = config.get("who")
    println(s"$who prints")
    System.err.println(s"$who complains")
    log.error(s"$who logs")
    val thread = new Thread(() => System.out.println(s"$who in a thread"))
    thread.start()
    thread.join()
    if (config.containsKey("much")) println("x" * config.get("much").toString.toInt)
    who
  }
}

/** Ends when its thread is interrupted, and only then. */
class Waiting {
  def runJob(sc: SparkContext, config: JMap[String, Object]): Any = {
    println("waiting")
    Thread.sleep(600000)
  }
}

class SlowTasks {
  def runJob(sc: SparkContext, config: JMap[String, Object]): Any = {
    println("waiting")
    sc.parallelize(1 to 2, 2).map { n => Thread.sleep(600000); n }.collect()
  }
}

/** Looks at nothing but a flag that the test can set: interrupts do not reach it. */
object Deaf {
  val flag = "jobserver.test.deaf"

  def runJob(sc: SparkContext, config: JMap[String, Object]): Any = {
    println("waiting")
    while (System.getProperty(flag) == null) {}
    "came back"
  }
}

class StructuredStream {
  def runJob(spark: SparkSession, config: JMap[String, Object]): Any = {
    val query = spark.readStream.format("rate").load().writeStream.format("noop").queryName(config.get("name").toString).start()
    println("waiting")
    query.awaitTermination()
  }
}

class Broken {
  throw new IllegalStateException("cannot be made")
  def runJob(sc: SparkContext, config: JMap[String, Object]): Any = 1
}

class NotAJob

class TaskFailure {
  def runJob(sc: SparkContext, config: JMap[String, Object]): Any =
    sc.parallelize(1 to 2).map(n => if (n > 1) throw new IllegalStateException("in a task") else n).collect()
}
