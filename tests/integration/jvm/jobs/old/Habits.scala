package spark.jobserver

import com.typesafe.config.Config
import org.apache.spark.SparkContext
import org.apache.spark.sql.SparkSession
import org.apache.spark.storage.StorageLevel
import org.scalactic._

import spark.jobserver.api.{JobEnvironment, SingleProblem, ValidationProblem}

/** Persisters without a type of their own, names looked up without one, verdicts put together with `&&`. */
object HabitsJob extends SparkJob with NamedObjectSupport {
  implicit def ofRdds[T]: NamedObjectPersister[NamedRDD[T]] = new RDDPersister[T]
  implicit val ofFrames = new DataFramePersister

  private def need(config: Config, key: String): SparkJobValidation =
    if (config.hasPath(key)) SparkJobValid else SparkJobInvalid(s"$key is missing")

  override def validate(sc: SparkContext, config: Config): SparkJobValidation = {
    val taken = if (namedObjects.get("habits").isDefined) SparkJobInvalid("habits is taken") else SparkJobValid
    need(config, "one") && need(config, "two") && taken
  }

  override def runJob(sc: SparkContext, config: Config): Any = {
    val made = namedObjects.getOrElseCreate(
      "habits", NamedRDD(sc.parallelize(1 to 4), forceComputation = true, StorageLevel.MEMORY_ONLY))
    val frame = SparkSession.builder.getOrCreate().range(3).toDF()
    namedObjects.update("frame of habits", NamedDataFrame(frame, forceComputation = false, StorageLevel.NONE))
    val NamedRDD(numbers, _, _) = namedObjects.get[NamedRDD[Int]]("habits").get
    val NamedDataFrame(rows, _, _) = namedObjects.get[NamedDataFrame]("frame of habits").get
    val sums = Seq(numbers.sum().toInt, rows.count().toInt)
    namedObjects.destroy(made, "habits")
    namedObjects.forget("frame of habits")
    sums ++ namedObjects.getNames().filter(_.contains("habits"))
  }
}

/** A problem with more to say than its text. */
class Located(problem: String, val place: Int) extends SingleProblem(s"$problem at $place")

object LocatedProblemJob extends api.SparkJob {
  type JobData = Config
  type JobOutput = Nothing

  override def validate(sc: SparkContext, runtime: JobEnvironment, config: Config): JobData Or Every[ValidationProblem] =
    Bad(Every(new Located("bad", 1), new Located("worse", 2)))

  override def runJob(sc: SparkContext, runtime: JobEnvironment, config: JobData): JobOutput =
    throw new IllegalStateException("was refused")
}
