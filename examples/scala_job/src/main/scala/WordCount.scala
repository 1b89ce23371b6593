package examples

import com.typesafe.config.Config
import org.apache.spark.SparkContext
import spark.jobserver.{SparkJob, SparkJobInvalid, SparkJobValid, SparkJobValidation}

object WordCount extends SparkJob {
  override def validate(sc: SparkContext, config: Config): SparkJobValidation =
    if (config.hasPath("input.string")) SparkJobValid else SparkJobInvalid("No input.string config param")

  override def runJob(sc: SparkContext, config: Config): Any =
    sc.parallelize(config.getString("input.string").split(" ").toSeq).countByValue()
}
