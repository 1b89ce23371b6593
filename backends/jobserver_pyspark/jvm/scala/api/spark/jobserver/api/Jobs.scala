package spark.jobserver.api

import java.io.{File, IOException}

import com.typesafe.config.Config
import org.apache.spark.SparkContext
import org.scalactic.{Every, Or}

import spark.jobserver.NamedObjects

/** The environment of a running job. */
trait JobEnvironment {
  def jobId: String
  def namedObjects: NamedObjects
  def contextConfig: Config
}

/** Provides uploaded data files. Every [[JobEnvironment]] is one. */
trait DataFileCache {
  @throws(classOf[IOException])
  def getDataFile(dataFile: String): File
}

/** A reason why a job rejects its configuration. */
trait ValidationProblem

case class SingleProblem(problem: String) extends ValidationProblem

/** The newer API: `validate` converts the configuration to the job's own data type, which `runJob` gets. */
trait SparkJobBase {
  type C
  type JobData
  type JobOutput

  def runJob(sc: C, runtime: JobEnvironment, data: JobData): JobOutput
  def validate(sc: C, runtime: JobEnvironment, config: Config): JobData Or Every[ValidationProblem]
}

trait SparkJob extends SparkJobBase {
  override type C = SparkContext
}

trait OldSparkJob extends SparkJobBase {
  override type C = SparkContext
  override type JobOutput = Any
  override type JobData = Config
}
