package spark.jobserver

import com.typesafe.config.Config
import org.apache.spark.SparkContext
import org.apache.spark.sql.{SparkSession, SQLContext}
import org.apache.spark.sql.hive.HiveContext
import org.apache.spark.streaming.StreamingContext
import org.scalactic.{Bad, Every, Good, One, Or}

import spark.jobserver.api.{JobEnvironment, ValidationProblem}
import spark.jobserver.context.SparkSessionContextLikeWrapper

/** The older API: `validate(context, config)` and `runJob(context, config)`. */
trait SparkJobBase extends api.SparkJobBase {
  type JobOutput = Any
  type JobData = Config

  /** The context's named objects, set before `validate` is called. Transient, as a closure may capture the job. */
  @transient var namedObjects: NamedObjects = _

  def runJob(sc: C, jobConfig: Config): Any
  def validate(sc: C, config: Config): SparkJobValidation

  override def runJob(sc: C, runtime: JobEnvironment, data: JobData): JobOutput = runJob(sc, data)

  override def validate(sc: C, runtime: JobEnvironment, config: Config): JobData Or Every[ValidationProblem] = {
    namedObjects = runtime.namedObjects
    validate(sc, config) match {
      case SparkJobValid => Good(config)
      case refusal: SparkJobInvalid => Bad(One(refusal))
    }
  }
}

trait SparkJob extends SparkJobBase {
  override type C = SparkContext
}

trait SparkSqlJob extends SparkJobBase {
  override type C = SQLContext
}

trait SparkHiveJob extends SparkJobBase {
  override type C = HiveContext
}

trait SparkStreamingJob extends SparkJobBase {
  override type C = StreamingContext
}

/** A job of the newer API that gets a SparkSession. */
trait SparkSessionJob extends api.SparkJobBase {
  override type C = SparkSessionContextLikeWrapper

  def runJob(sparkSession: SparkSession, runtime: JobEnvironment, data: JobData): JobOutput
  def validate(
      sparkSession: SparkSession, runtime: JobEnvironment, config: Config): JobData Or Every[ValidationProblem]

  override def runJob(sc: C, runtime: JobEnvironment, data: JobData): JobOutput = runJob(sc.spark, runtime, data)

  override def validate(sc: C, runtime: JobEnvironment, config: Config): JobData Or Every[ValidationProblem] =
    validate(sc.spark, runtime, config)
}

/**
 * The oldest Java API. Subclasses override `runJob`, and `invalidate`, which returns null or the reason for a rejection.
 *
 * It does not extend [[SparkJob]], because javac rejects subclasses of a class that defines a Scala type member of a trait.
 */
class JavaSparkJob {
  import org.apache.spark.api.java.JavaSparkContext

  /** The context's named objects, set before `invalidate` is called. Transient, as a closure may capture the job. */
  @transient var namedObjects: NamedObjects = _

  def runJob(jsc: JavaSparkContext, jobConfig: Config): Any = ()
  def invalidate(jsc: JavaSparkContext, config: Config): String = null
}
