package org.apache.spark.sql.jobserver

import java.io.{File, FileNotFoundException}
import java.nio.file.Path

import org.apache.spark.SparkContext
import org.apache.spark.api.java.JavaSparkContext
import org.apache.spark.sql.{SparkSession, SQLContext}
import org.apache.spark.streaming.{JobStreamingContext, Milliseconds, StreamingContext}

/**
 * What one running job may ask for: its session, the contexts made from it, configuration, named objects.
 *
 * Kinds of context are `spark`, `session`, `sql`, `hive` and `streaming`, as the context's factory says, and
 * `any`, where none was named: there each job gets what it wants, but for a stream.
 */
final class JobContext private[jobserver] (
    val jobId: String,
    val kind: String,
    val session: SparkSession,
    val configJson: String,
    val contextConfigJson: String,
    val namedObjects: NamedObjectTable,
    dataDir: Option[Path],
    batchIntervalMs: Long) {

  @volatile private var streaming: Option[StreamingContext] = None

  def sparkContext: SparkContext = session.sparkContext
  def javaSparkContext: JavaSparkContext = new JavaSparkContext(sparkContext)
  def sqlContext: SQLContext = session.sqlContext

  /** A `HiveContext`, for jobs of the old SQL API; Spark deprecates it, and may drop it some day. */
  def hiveContext: AnyRef = {
    val hive = Class.forName("org.apache.spark.sql.hive.HiveContext", true, session.getClass.getClassLoader)
    val make = hive.getDeclaredConstructors.find(_.getParameterTypes.toSeq.exists(_.isInstance(session)))
      .getOrElse(throw new WrongKindOfJob("this Spark has no HiveContext for a session"))
    make.setAccessible(true)
    make.newInstance(session).asInstanceOf[AnyRef]
  }

  /** This job's own StreamingContext: one that was stopped cannot be started again, so each job gets a new one. */
  def streamingContext: StreamingContext = synchronized {
    if (kind != "streaming") throw new WrongKindOfJob("a StreamingContext needs a streaming context")
    streaming.getOrElse {
      val made = new JobStreamingContext(sparkContext, Milliseconds(batchIntervalMs), jobId)
      streaming = Some(made)
      made
    }
  }

  private[jobserver] def startedStreaming: Option[StreamingContext] = streaming

  /** A data file by the name that the server gave it. Throws `FileNotFoundException`. */
  def dataFile(name: String): File = {
    val file = dataDir.map(_.toRealPath().resolve(name).normalize).filter { path =>
      path.startsWith(dataDir.get.toRealPath()) && path.toFile.isFile
    }
    file.map(_.toFile).getOrElse(throw new FileNotFoundException(s"no data file '$name'"))
  }

  /** The context for a parameter of this type, or none when this kind of context has no such thing. */
  private[jobserver] def contextFor(parameter: Class[_]): Option[AnyRef] = {
    val batch = kind != "streaming"
    parameter.getName match {
      case "java.lang.Object" => Some(ownContext)
      case "org.apache.spark.SparkContext" if batch => Some(sparkContext)
      case "org.apache.spark.api.java.JavaSparkContext" if batch => Some(javaSparkContext)
      case "org.apache.spark.sql.SparkSession" if batch => Some(session)
      case "org.apache.spark.sql.SQLContext" if batch => Some(sqlContext)
      case "org.apache.spark.sql.hive.HiveContext" if batch => Some(hiveContext)
      case "org.apache.spark.streaming.StreamingContext" if !batch => Some(streamingContext)
      case _ => None
    }
  }

  private[jobserver] def ownContext: AnyRef = kind match {
    case "spark" => sparkContext
    case "session" | "any" => session
    case "sql" => sqlContext
    case "hive" => hiveContext
    case "streaming" => streamingContext
  }
}
