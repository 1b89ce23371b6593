package spark.jobserver

import com.typesafe.config.Config
import org.apache.spark._
import org.scalactic._

import scala.util.Try
import spark.jobserver.api._

/** Throws darts at a circle for `stress.test.longpijob.duration` seconds, five if not said. */
object LongPiJob extends api.SparkJob {
  type JobData = Int
  type JobOutput = Double

  private val dice = new java.util.Random()

  def validate(sc: SparkContext, runtime: JobEnvironment, config: Config): JobData Or Every[ValidationProblem] =
    Good(Try(config.getInt("stress.test.longpijob.duration")).getOrElse(5))

  def runJob(sc: SparkContext, runtime: JobEnvironment, seconds: JobData): JobOutput = {
    val end = System.currentTimeMillis + seconds * 1000L
    var (hits, throws) = (0L, 0L)
    while (System.currentTimeMillis < end) {
      val (hit, thrown) = sc.parallelize(1 to 1000)
        .map(_ => (if (hitsCircle()) 1 else 0, 1))
        .reduce((a, b) => (a._1 + b._1, a._2 + b._2))
      hits += hit
      throws += thrown
    }
    4.0 * hits / throws
  }

  private def hitsCircle(): Boolean = {
    val (x, y) = (dice.nextDouble() * 2 - 1, dice.nextDouble() * 2 - 1)
    x * x + y * y <= 1
  }
}
