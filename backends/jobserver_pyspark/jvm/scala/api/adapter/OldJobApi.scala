package org.apache.spark.sql.jobserver

import java.io.File

import com.typesafe.config.{Config, ConfigFactory}
import org.apache.spark.api.java.JavaSparkContext
import org.scalactic.{Bad, Good, One}

import spark.jobserver._
import spark.jobserver.api.{DataFileCache, JobEnvironment}
import spark.jobserver.context.SparkSessionContextLikeWrapper
import spark.jobserver.japi._

/** Runs jobs of the `spark.jobserver` APIs. Created by reflection, because the runner does not depend on them. */
final class OldJobApi extends JobApi {

  override def recognize(candidate: AnyRef, context: JobContext): Option[RunnableJob] = candidate match {
    case job: BaseJavaJob[_, _] => Some(new OldJavaJob(job.asInstanceOf[BaseJavaJob[Any, Any]], handed(job, context), context))
    case job: JavaSparkJob => Some(new OldestJavaJob(job, handed(job, context).asInstanceOf[JavaSparkContext], context))
    case job: api.SparkJobBase => Some(new OldScalaJob(job, handed(job, context), context))
    case _ => None
  }

  /** The context for the job. A job that needs another context type is rejected. */
  private def handed(job: AnyRef, context: JobContext): AnyRef = {
    val (kinds, make: (() => AnyRef)) = job match {
      case _: SparkJob | _: api.SparkJob | _: api.OldSparkJob => (Set("spark"), () => context.sparkContext)
      case _: JSparkJob[_] | _: JavaSparkJob => (Set("spark"), () => context.javaSparkContext)
      case _: SparkSessionJob | _: JSessionJob[_] =>
        (Set("session"), () => SparkSessionContextLikeWrapper(context.session))
      case _: SparkSqlJob | _: JSqlJob[_] => (Set("sql", "hive"), () => context.sqlContext)
      case _: SparkHiveJob | _: JHiveJob[_] => (Set("hive"), () => context.hiveContext)
      case _: SparkStreamingJob | _: JStreamingJob[_] => (Set("streaming"), () => context.streamingContext)
      case _ => (Set(context.contextType), () => context.ownContext)
    }
    if (context.contextType != "any" && !kinds.contains(context.contextType)) throw new WrongKindOfJob(
      s"${job.getClass.getName.stripSuffix("$")} needs ${JobContext.factoriesOf(kinds)}; " +
        s"this context has context-factory = ${context.factory}")
    make()
  }
}

private final class OldScalaJob(val job: api.SparkJobBase, handed: AnyRef, context: JobContext) extends RunnableJob {
  private val environment = new Environment(context)

  override def validate(): Any = {
    val config = ConfigFactory.parseString(context.configJson)
    job.validate(handed.asInstanceOf[job.C], environment, config) match {
      case Good(data) => data
      case Bad(problems) => throw new ValidationRefused(new Throwable(problems.toString))
    }
  }

  override def run(data: Any): Any =
    job.runJob(handed.asInstanceOf[job.C], environment, data.asInstanceOf[job.JobData])
}

private final class OldJavaJob(job: BaseJavaJob[Any, Any], handed: AnyRef, context: JobContext) extends RunnableJob {
  private val environment = new Environment(context)

  override def validate(): Any =
    try job.verify(handed, environment, ConfigFactory.parseString(context.configJson))
    catch { case refusal: JavaValidationException => throw new ValidationRefused(refusal) }

  override def run(data: Any): Any = job.run(handed, environment, data.asInstanceOf[Config])
}

private final class OldestJavaJob(job: JavaSparkJob, handed: JavaSparkContext, context: JobContext) extends RunnableJob {
  private val config = ConfigFactory.parseString(context.configJson)
  job.namedObjects = new SharedNamedObjects(context.namedObjects)

  override def validate(): Any = Option(job.invalidate(handed, config)).foreach { reason =>
    throw new ValidationRefused(new Throwable(One(SparkJobInvalid(reason)).toString))
  }

  override def run(data: Any): Any = job.runJob(handed, config)
}

private final class Environment(context: JobContext) extends JobEnvironment with DataFileCache {
  override val jobId: String = context.jobId
  override lazy val contextConfig: Config = ConfigFactory.parseString(context.contextConfigJson)
  override val namedObjects: NamedObjects = new SharedNamedObjects(context.namedObjects)
  override def getDataFile(dataFile: String): File = context.dataFile(dataFile)
}
