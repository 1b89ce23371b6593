package spark.jobserver

import com.typesafe.config.Config
import org.apache.spark.SparkContext
import org.apache.spark.rdd.RDD
import org.apache.spark.sql.{Row, SQLContext}
import org.apache.spark.sql.types._
import org.apache.spark.storage.StorageLevel

/** Makes and forgets named objects as its configuration says; gives the names that are there afterwards. */
class NamedObjectsTestJob extends SparkJob with NamedObjectSupport {
  implicit def rddPersister: NamedObjectPersister[NamedRDD[Row]] = new RDDPersister[Row]
  implicit def dataFramePersister: NamedObjectPersister[NamedDataFrame] = new DataFramePersister
  implicit def broadcastPersister[U]: NamedObjectPersister[NamedBroadcast[U]] = new BroadcastPersister[U]

  def validate(sc: SparkContext, config: Config): SparkJobValidation = SparkJobValid

  private def rows(sc: SparkContext): RDD[Row] = sc.parallelize(List(Row(1, true), Row(2, false), Row(55, true)))

  private def wanted(config: Config, key: String) = config.hasPath(key) && config.getBoolean(key)

  def runJob(sc: SparkContext, config: Config): Array[String] = {
    if (wanted(config, "createDF")) {
      val types = StructType(StructField("i", IntegerType, true) :: StructField("b", BooleanType, false) :: Nil)
      val df = SQLContext.getOrCreate(sc).createDataFrame(rows(sc), types)
      namedObjects.update("df1", NamedDataFrame(df, true, StorageLevel.MEMORY_AND_DISK))
    }
    if (wanted(config, "createRDD")) namedObjects.update("rdd1", NamedRDD(rows(sc), true, StorageLevel.MEMORY_ONLY))
    if (wanted(config, "createBroadcast")) {
      namedObjects.update("broadcast1", NamedBroadcast(sc.broadcast(Set(1, 2, 3, 4, 5))))
    }
    if (config.hasPath("delete")) {
      config.getStringList("delete").forEach(name => namedObjects.forget(name))
    }
    namedObjects.getNames().toArray
  }
}

/** Adds up what another job left under a name: the second job of the pair, JVM or Python. */
class SumNamedRddJob extends SparkJob with NamedRddSupport {
  def validate(sc: SparkContext, config: Config): SparkJobValidation =
    if (namedRdds.get[Any](config.getString("name")).isDefined) SparkJobValid
    else SparkJobInvalid(s"Missing named RDD [${config.getString("name")}]")

  def runJob(sc: SparkContext, config: Config): Any =
    namedRdds.get[Any](config.getString("name")).get.map(_.toString.toLong).collect().sum
}

class CountNamedDataFrameJob extends SparkJob with NamedObjectSupport {
  def validate(sc: SparkContext, config: Config): SparkJobValidation = SparkJobValid

  def runJob(sc: SparkContext, config: Config): Any = {
    val NamedDataFrame(df, _, _) = namedObjects.get[NamedDataFrame](config.getString("name")).get
    df.count()
  }
}

/** Shares an RDD of values that Python has no types for. */
class ShareMixedRddJob extends SparkJob with NamedRddSupport {
  override def validate(sc: SparkContext, config: Config): SparkJobValidation = SparkJobValid

  override def runJob(sc: SparkContext, config: Config): Any = {
    val session = org.apache.spark.sql.SparkSession.builder.getOrCreate()
    val twice = session.sql("select 1 a, 'x' a").first()
    // Most of these cannot be serialized, so the task makes them.
    val values = sc.parallelize(Seq(twice), 1).flatMap(row => Iterator[Any](
      row, java.util.Optional.of(2), java.nio.file.Paths.get("/tmp/a"), Map(1 -> "one", Seq(2) -> "two"),
      Array[Byte](98), Left(3)))
    namedRdds.update("mixed", values)
    "shared"
  }
}
