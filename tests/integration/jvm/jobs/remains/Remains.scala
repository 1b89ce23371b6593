package remains

import java.nio.file.{Files, Paths, StandardOpenOption}
import java.util.{Map => JMap, Timer, TimerTask}
import java.util.concurrent.{CompletableFuture, Executors, TimeUnit}

import org.apache.spark.SparkContext
import org.apache.spark.sql.{DataFrame, SparkSession}
import org.apache.spark.streaming.{Milliseconds, StreamingContext}

import scala.collection.mutable
import scala.concurrent.{ExecutionContext, Future}

/** Writes to a file, every few milliseconds, for as long as nobody stops it. */
class Writer(path: String) extends Runnable with Serializable {
  def line(): Unit =
    Files.write(Paths.get(path), "written\n".getBytes, StandardOpenOption.CREATE, StandardOpenOption.APPEND)

  override def run(): Unit = while (true) {
    line()
    Thread.sleep(10)
  }
}

class WriterThread(path: String) extends Thread {
  private val writer = new Writer(path)
  override def run(): Unit = writer.run()
}

/** Starts one thing of the named kind that writes, and waits until it is interrupted, or returns. */
object Start {
  def runJob(spark: SparkSession, config: JMap[String, Object]): Any = {
    val path = config.get("path").toString
    start(config.get("kind").toString, path, spark)
    while (!Files.exists(Paths.get(path))) Thread.sleep(10)
    println("now it writes")
    if (config.get("wait") != false) Thread.sleep(600000)
    "left"
  }

  private def start(kind: String, path: String, spark: SparkSession): Unit = {
    val writer = new Writer(path)
    val script = s"while :; do echo written >> $path; sleep 0.01; done"
    kind match {
      case "thread" => new Thread(writer).start()
      case "subclass" => new WriterThread(path).start()
      case "pool" => Executors.newFixedThreadPool(2).submit(writer)
      case "scheduled" => Executors.newScheduledThreadPool(1)
        .scheduleAtFixedRate(() => writer.line(), 0, 10, TimeUnit.MILLISECONDS)
      case "timer" => new Timer().schedule(new TimerTask { override def run(): Unit = writer.line() }, 0L, 10L)
      case "future" => Future(writer.run())(ExecutionContext.global)
      case "common pool" => CompletableFuture.runAsync(writer)
      case "process" => new ProcessBuilder("sh", "-c", script).start()
      case "process of a thread" => new Thread(() => {
        new ProcessBuilder("sh", "-c", script).start()
        Thread.sleep(600000)
      }).start()
      case "grandchild" => new ProcessBuilder("sh", "-c", s"setsid sh -c '$script' & wait").start()
      case "orphan" => new ProcessBuilder("sh", "-c", s"setsid sh -c '$script' & exit 0").start()
      case "orphan without environment" =>
        new ProcessBuilder("sh", "-c", s"env -i setsid sh -c '$script' & exit 0").start().waitFor()
      case "spark job" => new Thread(() => {
        spark.sparkContext.setJobGroup("mine", "mine")
        spark.sparkContext.parallelize(1 to 1, 1).foreach(_ => writer.run())
      }).start()
      case "query" => query(spark, path)
      case "query of another session" => query(spark.newSession(), path)
      case "stream" => stream(spark.sparkContext, path)
      case "deaf thread" => new Thread(() => while (System.getProperty("remains.deaf") == null) writer.line()).start()
    }
  }

  private def query(spark: SparkSession, path: String): Unit = {
    val write: (DataFrame, Long) => Unit = (_, _) => new Writer(path).line()
    spark.readStream.format("rate").load().writeStream.foreachBatch(write).start()
  }

  private def stream(sc: SparkContext, path: String): Unit = {
    val streaming = new StreamingContext(sc, Milliseconds(50))
    val queue = mutable.Queue(sc.parallelize(1 to 1, 1))
    streaming.queueStream(queue, oneAtATime = true, defaultRDD = sc.parallelize(1 to 1, 1))
      .foreachRDD(rdd => rdd.foreach(_ => new Writer(path).line()))
    streaming.start()
  }
}
