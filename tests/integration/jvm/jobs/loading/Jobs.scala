package loading

import java.sql.DriverManager
import java.util.{Map => JMap}

import scala.io.Source

import com.typesafe.config.Config
import org.apache.spark.SparkContext
import org.apache.spark.sql.SparkSession
import org.apache.spark.sql.functions.udf
import org.apache.spark.storage.StorageLevel
import org.apache.spark.util.AccumulatorV2

import loading.base.{BaseJob, Greeting, Stamp}
import spark.jobserver._

object Shout extends BaseJob {
  override def work(sc: SparkContext, word: String): Any = sc.parallelize(Seq(word), 1).map(_ + "!").first()
}

case class Parcel(number: Int, town: String)

/** Collects towns on executors. */
class Towns(private var seen: Set[Parcel] = Set()) extends AccumulatorV2[Parcel, Set[Parcel]] {
  override def isZero: Boolean = seen.isEmpty
  override def copy(): Towns = new Towns(seen)
  override def reset(): Unit = seen = Set()
  override def add(parcel: Parcel): Unit = seen += parcel
  override def merge(other: AccumulatorV2[Parcel, Set[Parcel]]): Unit = seen ++= other.value
  override def value: Set[Parcel] = seen
}

/** A job's own class on every way that Spark sends one. Needs nothing but Spark. */
object Parcels {
  private val towns = Seq("Bern", "Łódź", "Oslo")

  def runJob(spark: SparkSession, config: JMap[String, Object]): Any = {
    import spark.implicits._
    val sc = spark.sparkContext
    val parcels = towns.zipWithIndex.map { case (town, number) => Parcel(number, town) }
    Map(
      "first" -> sc.parallelize(0 to 2, 2).map(n => Parcel(n, towns(n))).first().town,
      "collect" -> sc.parallelize(0 to 2, 2).map(n => Parcel(n, towns(n))).collect().map(_.town).toSeq,
      "given" -> sc.parallelize(parcels, 2).map(_.number).sum(),
      "shuffled" -> sc.parallelize(parcels ++ parcels, 3).map(p => p -> 1).reduceByKey(_ + _).values.sum(),
      "broadcast" -> { val sent = sc.broadcast(parcels); sc.parallelize(1 to 2, 2).map(n => sent.value(n).town).collect().toSeq },
      "cached" -> {
        val kept = sc.parallelize(parcels, 2).persist(StorageLevel.MEMORY_ONLY_SER)
        try Seq(kept.count(), kept.map(_.number).sum().toLong) finally kept.unpersist()
      },
      "accumulated" -> {
        val seen = new Towns
        sc.register(seen)
        sc.parallelize(parcels, 2).foreach(p => seen.add(p))
        seen.value.map(_.town).toSeq.sorted
      },
      "udf" -> parcels.toDF().select(udf((n: Int) => Parcel(n, "").number + 1).apply($"number")).as[Int].collect().toSeq,
      "dataset" -> spark.createDataset(parcels).map(p => p.copy(number = p.number * 2)).collect().map(_.number).toSeq,
      "kryo dataset" -> spark.createDataset(parcels)(org.apache.spark.sql.Encoders.kryo[Parcel]).map(_.town).collect().toSeq)
  }
}

/** Finds its own code and files through the class loader of its thread, on the driver and in tasks. */
object Lookup {
  def runJob(sc: SparkContext, config: JMap[String, Object]): Any =
    Seq(find(), sc.parallelize(1 to 1, 1).map(_ => find()).first())

  private def find(): Seq[String] = {
    val loader = Thread.currentThread.getContextClassLoader
    val file = Source.fromInputStream(loader.getResourceAsStream("loading/words.txt"))
    Seq(Class.forName("loading.Parcel", true, loader).getSimpleName, file.mkString.trim) ++ Greeting.all(loader)
  }
}

class Hello extends Greeting { override def text: String = "hello" }

/** A class of the context's jar, which only its registrator lets Kryo write. */
object Stamps {
  def runJob(sc: SparkContext, config: JMap[String, Object]): Any =
    sc.parallelize(Seq("a", "b"), 2).map(new Stamp(_)).collect().map(_.text).toSeq
}

object Drivers {
  def runJob(sc: SparkContext, config: JMap[String, Object]): Any =
    DriverManager.getDriver("jdbc:nothing").getMajorVersion
}

/** Uses the job API, which may be merged into its jar, where it is loaded, in closures, and in its methods alone. */
class Merged extends SparkJob with Serializable {
  private val suffix = "?"

  override def validate(sc: SparkContext, config: Config): SparkJobValidation = SparkJobValid

  override def runJob(sc: SparkContext, config: Config): Any = {
    val named = NamedRDD(sc.parallelize(Seq("hey"), 1), forceComputation = false, StorageLevel.MEMORY_ONLY)
    implicit val persister: NamedObjectPersister[NamedRDD[String]] = new RDDPersister[String]
    namedObjects.update("merged", named).rdd.map(_ + suffix).first()
  }
}

/** Looks at the job API in its body alone, so that it can be loaded without. */
object InBody {
  def runJob(sc: SparkContext, config: JMap[String, Object]): Any =
    (SparkJobValid && SparkJobInvalid("not so")).toString
}
