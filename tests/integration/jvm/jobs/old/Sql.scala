package spark.jobserver

import com.typesafe.config.Config
import org.apache.spark.sql.{Row, SparkSession, SQLContext}
import org.scalactic._

import spark.jobserver.api.{JobEnvironment, ValidationProblem}

case class Address(firstName: String, lastName: String, address: String, city: String)

/** Puts a few addresses into a temporary table; gives how many. */
object SqlLoaderJob extends SparkSqlJob {
  def validate(sql: SQLContext, config: Config): SparkJobValidation = SparkJobValid

  def runJob(sql: SQLContext, config: Config): Any = {
    import sql.implicits._
    val addresses = Seq(
      Address("Bob", "Charles", "101 A St.", "San Jose"),
      Address("Sandy", "Charles", "10200 Ranch Rd", "Purple City"),
      Address("Randy", "Charles", "101 A St.", "San Jose"))
    val df = sql.sparkContext.parallelize(addresses).toDF()
    df.createOrReplaceTempView("addresses")
    df.count()
  }
}

/** Runs the query `sql` against what is there. */
object SqlTestJob extends SparkSqlJob {
  def validate(sql: SQLContext, config: Config): SparkJobValidation = SparkJobValid

  def runJob(sql: SQLContext, config: Config): Any = sql.sql(config.getString("sql")).collect()
}

object SessionLoaderTestJob extends SparkSessionJob {
  type JobData = Config
  type JobOutput = Long

  def validate(spark: SparkSession, runtime: JobEnvironment, config: Config): JobData Or Every[ValidationProblem] =
    Good(config)

  def runJob(spark: SparkSession, runtime: JobEnvironment, config: JobData): JobOutput = {
    import spark.implicits._
    Seq(("Bob", "San Jose"), ("Sandy", "Purple City")).toDF("name", "city").createOrReplaceTempView("test_addresses")
    spark.table("test_addresses").count()
  }
}

object SessionTestJob extends SparkSessionJob {
  type JobData = Config
  type JobOutput = Array[Row]

  def validate(spark: SparkSession, runtime: JobEnvironment, config: Config): JobData Or Every[ValidationProblem] =
    Good(config)

  def runJob(spark: SparkSession, runtime: JobEnvironment, config: JobData): JobOutput =
    spark.sql(config.getString("sql")).collect()
}
