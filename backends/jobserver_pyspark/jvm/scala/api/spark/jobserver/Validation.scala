package spark.jobserver

import spark.jobserver.api.ValidationProblem

/** The outcome of `validate` in the older API. */
sealed trait SparkJobValidation {
  /** Returns the first of the two that is invalid, or `SparkJobValid`. */
  def &&(other: SparkJobValidation): SparkJobValidation = if (this == SparkJobValid) other else this
}

case object SparkJobValid extends SparkJobValidation

case class SparkJobInvalid(reason: String) extends SparkJobValidation with ValidationProblem
