package spark.jobserver.api

import java.io.{File, IOException}

import com.typesafe.config.Config
import org.apache.spark.SparkContext
import org.scalactic.{Every, Or}

import spark.jobserver.NamedObjects

/** What a job may know of where it runs. */
trait JobEnvironment {
  def jobId: String
  def namedObjects: NamedObjects
  def contextConfig: Config
}

/** Hands out data files that were uploaded to the server; every [[JobEnvironment]] is one. */
trait DataFileCache {
  @throws(classOf[IOException])
  def getDataFile(dataFile: String): File
}

/** One reason for a job to refuse its configuration. */
trait ValidationProblem

case class SingleProblem(problem: String) extends ValidationProblem

/** The newer API: `validate` turns the configuration into data of the job's own type, with which `runJob` is called. */
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
