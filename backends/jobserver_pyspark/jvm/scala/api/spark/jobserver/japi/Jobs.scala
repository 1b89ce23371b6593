package spark.jobserver.japi

import com.typesafe.config.Config
import org.apache.spark.api.java.JavaSparkContext
import org.apache.spark.sql.{SparkSession, SQLContext}
import org.apache.spark.sql.hive.HiveContext
import org.apache.spark.streaming.StreamingContext

import spark.jobserver.api.{JobEnvironment, ValidationProblem}
import spark.jobserver.context.SparkSessionContextLikeWrapper

/** The Java API: `verify` returns the configuration for `run`, or throws a [[JavaValidationException]]. */
trait BaseJavaJob[R, C] {
  def run(sc: C, runtime: JobEnvironment, data: Config): R
  def verify(sc: C, runtime: JobEnvironment, config: Config): Config
}

trait JSparkJob[R] extends BaseJavaJob[R, JavaSparkContext]

trait JSqlJob[R] extends BaseJavaJob[R, SQLContext]

trait JHiveJob[R] extends BaseJavaJob[R, HiveContext]

trait JStreamingJob[R] extends BaseJavaJob[R, StreamingContext]

abstract class JSessionJob[R] extends BaseJavaJob[R, SparkSessionContextLikeWrapper] {
  def run(sparkSession: SparkSession, runtime: JobEnvironment, data: Config): R
  def verify(sparkSession: SparkSession, runtime: JobEnvironment, config: Config): Config

  override def run(sc: SparkSessionContextLikeWrapper, runtime: JobEnvironment, data: Config): R =
    run(sc.spark, runtime, data)

  override def verify(sc: SparkSessionContextLikeWrapper, runtime: JobEnvironment, config: Config): Config =
    verify(sc.spark, runtime, config)
}

/** A Java job rejects its configuration. Unchecked, because `verify` declares no exceptions. */
case class JavaValidationException(reason: String, t: Throwable)
  extends RuntimeException(reason, t) with ValidationProblem
