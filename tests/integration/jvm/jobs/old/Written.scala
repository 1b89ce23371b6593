package spark.jobserver

import com.typesafe.config.Config
import org.apache.spark.SparkContext

import spark.jobserver.api.JobEnvironment

/** Reads one setting in every way that a Config has: its text, its value, and the context's. */
object WrittenNumberJob extends api.SparkJob {
  type JobData = Config
  type JobOutput = Any

  override def validate(sc: SparkContext, runtime: JobEnvironment, config: Config): org.scalactic.Good[Config] =
    org.scalactic.Good(config)

  override def runJob(sc: SparkContext, runtime: JobEnvironment, config: Config): Any = Map(
    "text" -> config.getString("v"),
    "double" -> config.getDouble("v"),
    "long" -> config.getLong("v"),
    "int" -> scala.util.Try(config.getInt("v")).toOption,
    "listed" -> config.getStringList("list").get(0),
    "context" -> runtime.contextConfig.getString("v"))
}
