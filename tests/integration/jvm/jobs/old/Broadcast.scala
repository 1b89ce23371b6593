package spark.jobserver

import com.typesafe.config.Config
import org.apache.spark.SparkContext

trait Rates extends SparkJob with NamedObjectSupport {
  implicit def persister: NamedObjectPersister[NamedBroadcast[Map[String, Int]]] =
    new BroadcastPersister[Map[String, Int]]

  override def validate(sc: SparkContext, config: Config): SparkJobValidation = SparkJobValid
}

/** Shares a broadcast of rates under the name `rates`. */
object ShareRatesJob extends Rates {
  override def runJob(sc: SparkContext, config: Config): Any = {
    val shared = namedObjects.getOrElseCreate("rates", NamedBroadcast(sc.broadcast(Map("one" -> 1, "two" -> 2))))
    shared.broadcast.id
  }
}

/** Looks up in the tasks what another job shared; then frees it, when told to. */
object UseRatesJob extends Rates {
  override def runJob(sc: SparkContext, config: Config): Any = {
    val found = namedObjects.get[NamedBroadcast[Map[String, Int]]]("rates").get
    val rates = found.broadcast
    val known = sc.parallelize(Seq("one", "two", "three"), 2).map(word => rates.value.getOrElse(word, 0)).collect()
    if (config.hasPath("destroy")) namedObjects.destroy(found, "rates")
    Map("id" -> rates.id, "known" -> known, "left" -> namedObjects.getNames().filter(_ == "rates"))
  }
}
