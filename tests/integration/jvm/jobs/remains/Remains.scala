package remains

import java.net.{InetAddress, InetSocketAddress, ServerSocket, URI, URL}
import java.net.http.{HttpClient, HttpRequest, HttpResponse}
import java.nio.ByteBuffer
import java.nio.channels.{AsynchronousChannelGroup, AsynchronousFileChannel, AsynchronousServerSocketChannel}
import java.nio.channels.{AsynchronousSocketChannel, CompletionHandler}
import java.nio.file.{Files, Paths, StandardOpenOption}
import java.util.{Map => JMap, Timer, TimerTask}
import java.time.Duration
import java.util.concurrent.{CompletableFuture, Executor, Executors, ForkJoinPool, TimeUnit}

import com.sun.net.httpserver.{HttpExchange, HttpServer}
import org.apache.spark.SparkContext
import org.apache.spark.scheduler.{SparkListener, SparkListenerJobStart}
import org.apache.spark.sql.{functions, DataFrame, SparkSession}
import org.apache.spark.sql.execution.QueryExecution
import org.apache.spark.sql.streaming.StreamingQueryListener
import org.apache.spark.sql.util.QueryExecutionListener
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

/** Writes a line for each Spark job of the context. */
class WriterListener(path: String) extends SparkListener {
  override def onJobStart(event: SparkListenerJobStart): Unit = new Writer(path).line()
}

class WriterQueryListener(path: String) extends QueryExecutionListener {
  override def onSuccess(name: String, query: QueryExecution, duration: Long): Unit = new Writer(path).line()
  override def onFailure(name: String, query: QueryExecution, error: Exception): Unit = new Writer(path).line()
}

class WriterStreamListener(path: String) extends StreamingQueryListener {
  override def onQueryStarted(event: StreamingQueryListener.QueryStartedEvent): Unit = new Writer(path).line()
  override def onQueryProgress(event: StreamingQueryListener.QueryProgressEvent): Unit = new Writer(path).line()
  override def onQueryTerminated(event: StreamingQueryListener.QueryTerminatedEvent): Unit = new Writer(path).line()
}

class Handler[T](writer: Writer, next: (T, Handler[T]) => Unit) extends CompletionHandler[T, Object] {
  override def completed(result: T, attachment: Object): Unit = {
    writer.line()
    next(result, this)
  }
  override def failed(error: Throwable, attachment: Object): Unit = ()
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
      case "delayed" => delayed(writer, ForkJoinPool.commonPool)
      case "delayed without pool" => delayed(writer)
      case "delayed future" => delayed(writer, task => ExecutionContext.global.execute(task))
      case "delayed completion" => completed(writer)
      case "listener" =>
        spark.sparkContext.addSparkListener(new WriterListener(path))
        spark.sparkContext.parallelize(1 to 1, 1).count()
      case "query listener" =>
        spark.listenerManager.register(new WriterQueryListener(path))
        spark.range(1).collect()
      case "stream listener" =>
        spark.streams.addListener(new WriterStreamListener(path))
        spark.range(1).collect()
        query(spark, path)
      case "http server" => serve(writer, path)
      case "http client" => request(writer)
      case "channels" => accept(writer, path, null)
      case "channels of a group" =>
        accept(writer, path, AsynchronousChannelGroup.withFixedThreadPool(2, Executors.defaultThreadFactory))
      case "file channel" =>
        import StandardOpenOption.{CREATE, READ, WRITE}
        read(writer, AsynchronousFileChannel.open(Paths.get(path + ".read"), CREATE, READ, WRITE))
      case "process" => new ProcessBuilder("sh", "-c", script).start()
      case "process of a thread" => new Thread(() => {
        new ProcessBuilder("sh", "-c", script).start()
        Thread.sleep(600000)
      }).start()
      case "process of an ended thread" =>
        val thread = new Thread(() => new ProcessBuilder("sh", "-c", script).start())
        thread.start()
        thread.join()
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

  /** A task that schedules itself again, and waits for that in the one timer of the JVM. */
  private def delayed(writer: Writer, pool: Executor): Unit = CompletableFuture.runAsync(
    () => { writer.line(); delayed(writer, pool) }, CompletableFuture.delayedExecutor(10, TimeUnit.MILLISECONDS, pool))

  private def delayed(writer: Writer): Unit = CompletableFuture.runAsync(
    () => { writer.line(); delayed(writer) }, CompletableFuture.delayedExecutor(1, TimeUnit.MILLISECONDS))

  private def completed(writer: Writer): Unit = new CompletableFuture[String]()
    .completeOnTimeout("", 10, TimeUnit.MILLISECONDS).thenRun(() => { writer.line(); completed(writer) })

  private def serve(writer: Writer, path: String): Unit = {
    val server = HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress, 0), 0)
    server.createContext("/", (exchange: HttpExchange) => {
      writer.line()
      exchange.sendResponseHeaders(204, -1)
      exchange.close()
    })
    server.start()
    val address = s"http://127.0.0.1:${server.getAddress.getPort}/"
    Files.write(Paths.get(path + ".address"), address.getBytes)
    new URL(address).openStream().close()
  }

  /** Sends a request again and again, to a server that does not answer for a second. */
  private def request(writer: Writer): Unit = {
    val socket = new ServerSocket(0, 10, InetAddress.getLoopbackAddress)
    val client = HttpClient.newHttpClient()
    val request = HttpRequest.newBuilder(URI.create(s"http://127.0.0.1:${socket.getLocalPort}/"))
      .timeout(Duration.ofSeconds(1)).build()
    def send(): Unit = client.sendAsync(request, HttpResponse.BodyHandlers.discarding)
      .whenComplete((_, _) => { writer.line(); send() })
    send()
  }

  /** Writes for each connection, and for each byte that arrives. */
  private def accept(writer: Writer, path: String, group: AsynchronousChannelGroup): Unit = {
    val server = AsynchronousServerSocketChannel.open(group)
      .bind(new InetSocketAddress(InetAddress.getLoopbackAddress, 0))
    server.accept(null, new Handler[AsynchronousSocketChannel](writer, { (channel, handler) =>
      server.accept(null, handler)
      val buffer = ByteBuffer.allocate(1)
      channel.read(buffer, null, new Handler[Integer](writer, { (count, again) =>
        buffer.clear()
        if (count > 0) channel.read(buffer, null, again)
      }))
    }))
    val port = server.getLocalAddress.asInstanceOf[InetSocketAddress].getPort
    Files.write(Paths.get(path + ".port"), port.toString.getBytes)
    writer.line()
  }

  private def read(writer: Writer, channel: AsynchronousFileChannel): Unit = {
    val buffer = ByteBuffer.allocate(1)
    channel.read(buffer, 0L, null, new Handler[Integer](writer, { (_, again) =>
      Thread.sleep(1)
      channel.read(buffer, 0L, null, again)
    }))
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

/** A query with a broadcast join, which Spark executes on threads of its own. */
object Join {
  def runJob(spark: SparkSession, config: JMap[String, Object]): Any =
    spark.range(10).join(functions.broadcast(spark.range(5)), "id").collect().length
}
