package spark.jobserver

import com.typesafe.config.Config
import org.apache.spark.sql.Row
import org.apache.spark.sql.hive.HiveContext
import org.scalactic._

import scala.util.Try
import spark.jobserver.api.{JobEnvironment, ValidationProblem}

/** Loads the file `path` of addresses into a table of Hive's own format; gives how many there are. */
object HiveLoaderJob extends SparkHiveJob {
  override def validate(hive: HiveContext, config: Config): SparkJobValidation =
    Try(config.getString("path")).map(_ => SparkJobValid).getOrElse(SparkJobInvalid("No path"))

  override def runJob(hive: HiveContext, config: Config): Any = {
    hive.sql("DROP TABLE IF EXISTS `default`.`test_addresses`")
    hive.sql("CREATE TABLE `default`.`test_addresses` (`firstName` String, `city` String) " +
      "ROW FORMAT DELIMITED FIELDS TERMINATED BY '|' STORED AS TextFile")
    hive.sql(s"LOAD DATA LOCAL INPATH '${config.getString("path")}' OVERWRITE INTO TABLE `default`.`test_addresses`")
    hive.sql("SELECT * FROM `default`.`test_addresses`").count()
  }
}

/** Runs `sql`; as of the old server's 0.7, where Hive jobs had the newer API's three parameters. */
object HiveTestJob extends api.SparkJobBase {
  type C = HiveContext
  type JobData = Config
  type JobOutput = Array[Row]

  def validate(hive: HiveContext, runtime: JobEnvironment, config: Config): JobData Or Every[ValidationProblem] =
    Good(config)

  def runJob(hive: HiveContext, runtime: JobEnvironment, config: JobData): JobOutput =
    hive.sql(config.getString("sql")).collect()
}
