package spark.jobserver

import com.typesafe.config.Config
import org.apache.spark.SparkContext
import org.scalactic._

import spark.jobserver.api.{JobEnvironment, OldSparkJob, SingleProblem, ValidationProblem}

/** Gives what a job is told of where it runs; refuses with as many reasons as `reasons` says. */
object EnvironmentJob extends OldSparkJob {
  def validate(sc: SparkContext, runtime: JobEnvironment, config: Config): JobData Or Every[ValidationProblem] =
    if (config.hasPath("reasons")) Bad(Every.from((1 to config.getInt("reasons")).map(n => SingleProblem(s"no $n"))).get)
    else Good(config.withValue("id", com.typesafe.config.ConfigValueFactory.fromAnyRef(runtime.jobId)))

  def runJob(sc: SparkContext, runtime: JobEnvironment, data: JobData): JobOutput = Map(
    "same job" -> (data.getString("id") == runtime.jobId),
    "setting" -> runtime.contextConfig.getString("spark.my.setting"),
    "words" -> data.getStringList("words"))
}
