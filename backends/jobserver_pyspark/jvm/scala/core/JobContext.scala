package org.apache.spark.sql.jobserver

import java.io.{File, FileNotFoundException}
import java.nio.file.Path

import com.fasterxml.jackson.databind.ObjectMapper

import org.apache.spark.SparkContext
import org.apache.spark.api.java.JavaSparkContext
import org.apache.spark.sql.{SparkSession, SQLContext}
import org.apache.spark.streaming.{JobStreamingContext, Milliseconds, StreamingContext}

/**
 * The resources of one running job: its session, the contexts derived from it, configuration, and named objects.
 *
 * The context type is `spark`, `session`, `sql`, `hive` or `streaming`, as selected by the context factory, or `any` if no
 * factory was configured. Then each job gets the type that it needs, except for streaming.
 */
final class JobContext private[jobserver] (
    val jobId: String,
    val contextType: String,
    val session: SparkSession,
    val configJson: String,
    val contextConfigJson: String,
    val namedObjects: NamedObjectTable,
    dataDir: Option[Path],
    batchIntervalMs: Long) {

  @volatile private var streaming: Option[StreamingContext] = None

  /** The context's setting `context-factory`, or the usual one for its type. */
  def factory: String = new ObjectMapper().readTree(contextConfigJson).path("context-factory")
    .asText(JobContext.Factories.getOrElse(contextType, contextType))

  def sparkContext: SparkContext = session.sparkContext
  def javaSparkContext: JavaSparkContext = new JavaSparkContext(sparkContext)
  def sqlContext: SQLContext = session.sqlContext

  /** A `HiveContext`, for jobs of the old SQL API. Deprecated in Spark. */
  def hiveContext: AnyRef = {
    val hive = Class.forName("org.apache.spark.sql.hive.HiveContext", true, session.getClass.getClassLoader)
    val make = hive.getDeclaredConstructors.find(_.getParameterTypes.toSeq.exists(_.isInstance(session)))
      .getOrElse(throw new WrongKindOfJob("this Spark has no HiveContext for a session"))
    make.setAccessible(true)
    make.newInstance(session).asInstanceOf[AnyRef]
  }

  /** The job's own StreamingContext. Each job gets a new one, because a stopped one cannot be restarted. */
  def streamingContext: StreamingContext = synchronized {
    if (contextType != "streaming")
      throw new WrongKindOfJob(s"a StreamingContext needs ${JobContext.factoriesOf(Set("streaming"))}")
    streaming.getOrElse {
      val made = new JobStreamingContext(sparkContext, Milliseconds(batchIntervalMs), jobId)
      streaming = Some(made)
      made
    }
  }

  private[jobserver] def startedStreaming: Option[StreamingContext] = streaming

  /** Returns a data file by its name on the server. Throws `FileNotFoundException`. */
  def dataFile(name: String): File = {
    val file = dataDir.map(_.toRealPath().resolve(name).normalize).filter { path =>
      path.startsWith(dataDir.get.toRealPath()) && path.toFile.isFile
    }
    file.map(_.toFile).getOrElse(throw new FileNotFoundException(s"no data file '$name'"))
  }

  /** The context for a parameter of this type, or None if the context type does not provide it. */
  private[jobserver] def contextFor(parameter: Class[_]): Option[AnyRef] = {
    val batch = contextType != "streaming"
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

  private[jobserver] def ownContext: AnyRef = contextType match {
    case "spark" => sparkContext
    case "session" | "any" => session
    case "sql" => sqlContext
    case "hive" => hiveContext
    case "streaming" => streamingContext
  }
}

private[jobserver] object JobContext {
  private val Factories = Map("spark" -> "DefaultSparkContextFactory", "session" -> "SessionContextFactory",
    "sql" -> "SQLContextFactory", "hive" -> "HiveContextFactory", "streaming" -> "StreamingContextFactory")

  /** The settings that give a context of one of these types, in the words of a request for a context. */
  def factoriesOf(kinds: Set[String]): String = {
    val given = s"context-factory = ${kinds.toSeq.sorted.map(Factories).mkString(" or ")}"
    if (kinds == Set("streaming")) given else s"$given, or a context without context-factory"
  }
}
