package spark.jobserver

import com.typesafe.config.{Config, ConfigFactory}
import org.apache.spark.{SparkConf, SparkContext}
import org.scalactic._

import scala.util.Try
import spark.jobserver.api.{SparkJob => NewSparkJob, _}

/** Counts the words of `input.string`; older API, with the habit of a `main` for trying it out by hand. */
object WordCountExample extends SparkJob {
  def main(args: Array[String]) {
    val sc = new SparkContext(new SparkConf().setMaster("local[4]").setAppName("WordCountExample"))
    println("Result is " + runJob(sc, ConfigFactory.parseString("")))
  }

  override def validate(sc: SparkContext, config: Config): SparkJobValidation =
    Try(config.getString("input.string"))
      .map(_ => SparkJobValid)
      .getOrElse(SparkJobInvalid("No input.string config param"))

  override def runJob(sc: SparkContext, config: Config): Any =
    sc.parallelize(config.getString("input.string").split(" ").toSeq).countByValue
}

/** The same with the newer API: `validate` hands its words to `runJob`. */
object WordCountExampleNewApi extends NewSparkJob {
  type JobData = Seq[String]
  type JobOutput = collection.Map[String, Long]

  def runJob(sc: SparkContext, runtime: JobEnvironment, data: JobData): JobOutput = sc.parallelize(data).countByValue

  def validate(sc: SparkContext, runtime: JobEnvironment, config: Config): JobData Or Every[ValidationProblem] =
    Try(config.getString("input.string").split(" ").toSeq)
      .map(words => Good(words))
      .getOrElse(Bad(One(SingleProblem("No input.string param"))))
}
