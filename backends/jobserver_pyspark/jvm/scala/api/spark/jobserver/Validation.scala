package spark.jobserver

import spark.jobserver.api.ValidationProblem

/** What a job of the older API says of its configuration. */
sealed trait SparkJobValidation {
  /** The first of the two that is a refusal, if one is. */
  def &&(other: SparkJobValidation): SparkJobValidation = if (this == SparkJobValid) other else this
}

case object SparkJobValid extends SparkJobValidation

case class SparkJobInvalid(reason: String) extends SparkJobValidation with ValidationProblem
