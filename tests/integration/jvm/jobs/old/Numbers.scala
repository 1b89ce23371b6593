package spark.jobserver

import com.typesafe.config.Config
import org.apache.spark._

object VeryShortDoubleJob extends SparkJob {
  private val data = Array(1, 2, 3)

  override def validate(sc: SparkContext, config: Config): SparkJobValidation = SparkJobValid

  override def runJob(sc: SparkContext, config: Config): Any = sc.parallelize(data).map(_ * 2).collect()
}

trait Unvalidated extends SparkJob {
  def validate(sc: SparkContext, config: Config): SparkJobValidation = SparkJobValid
}

class MyErrorJob extends Unvalidated {
  def runJob(sc: SparkContext, config: Config): Any = throw new IllegalArgumentException("Foobar")
}

class MyFatalErrorJob extends Unvalidated {
  def runJob(sc: SparkContext, config: Config): Any = throw new OutOfMemoryError("this is a fatal error")
}

class SleepJob extends Unvalidated {
  def runJob(sc: SparkContext, config: Config): Any = {
    val millis = config.getLong("sleep.time.millis")
    println("going to sleep")
    Thread.sleep(millis)
    millis
  }
}

class CacheRddByNameJob extends Unvalidated with NamedRddSupport {
  def runJob(sc: SparkContext, config: Config): Any = {
    import scala.concurrent.duration._
    implicit val timeout = 2000.millis
    val rdd = namedRdds.getOrElseCreate("cached by name", sc.parallelize(1 to 5))
    assert(namedRdds.get[Int]("cached by name") == Some(rdd))
    rdd.map(x => x * x).collect().sum
  }
}

case class Animal(name: String)

/** A job's own class in closures, in what tasks send back, and in a broadcast. */
class ZookeeperJob extends Unvalidated {
  def runJob(sc: SparkContext, config: Config): Any = {
    val favourite = sc.broadcast(Animal("horse"))
    sc.parallelize(Seq(Animal("dog"), Animal("cat"), Animal("horse"))).filter(_ == favourite.value).collect()
  }
}

/** Where the executors run and whether they read a persisted RDD of the job's own class back. */
class PersistedAnimalsJob extends Unvalidated {
  def runJob(sc: SparkContext, config: Config): Any = {
    import org.apache.spark.storage.StorageLevel
    val animals = sc.parallelize(Seq("dog", "cat", "horse"), 3).map(Animal(_)).persist(StorageLevel.DISK_ONLY)
    try {
      animals.count()
      animals.map(_.name.length).collect().toSeq
    } finally animals.unpersist()
  }
}
