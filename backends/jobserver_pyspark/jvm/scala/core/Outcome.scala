package org.apache.spark.sql.jobserver

import java.io.{PrintWriter, StringWriter}

import com.fasterxml.jackson.databind.ObjectMapper

/** The state of a job, as reported to the host: `JvmJobState` in `jobserver_pyspark.protocol.jvm_messages`. */
private[jobserver] final case class Outcome(
    status: String,
    failure: String = null,
    error: ErrorDetails = null,
    result: String = null,
    size: Long = 0L,
    inline: String = null,
    validated: Boolean = false) {

  def toJson: String = {
    val node = Outcome.mapper.createObjectNode()
      .put("kind", "JvmJobState").put("status", status).put("failure", failure).put("result", result).put("size", size)
      .put("inline", inline).put("validated", validated)
    if (error == null) node.putNull("error")
    else {
      node.putObject("error")
        .put("message", error.message).put("error_class", error.errorClass).put("stack", error.stack)
    }
    node.toString
  }
}

private[jobserver] object Outcome {
  val mapper = new ObjectMapper()

  /** `RESULT_REFUSED` of `jobserver_core.results`. */
  val ResultRefused = "ResultRefused"

  /** The job has passed its own validation, and runs now. */
  val running: Outcome = Outcome("running")
  val killed: Outcome = Outcome("killed")

  def finished(written: WrittenResult): Outcome =
    Outcome("finished", result = written.form, size = written.size, inline = written.inline.orNull)
  def failed(failure: String, error: Throwable): Outcome = Outcome("failed", failure, ErrorDetails.of(error))

  /** The server's own reason: the exceptions of this package mean nothing to the job's author. */
  def refused(failure: String, message: String, detail: String = "", errorClass: String = ""): Outcome =
    Outcome("failed", failure, ErrorDetails(message, errorClass, detail))
}

/** An exception as data: message, Java class, Java stack; `ErrorDetails` of the protocol. */
private[jobserver] final case class ErrorDetails(message: String, errorClass: String, stack: String)

private[jobserver] object ErrorDetails {
  def of(error: Throwable): ErrorDetails = {
    val text = new StringWriter()
    error.printStackTrace(new PrintWriter(text, true))
    ErrorDetails(Option(error.getMessage).getOrElse(error.toString), error.getClass.getName, text.toString)
  }
}

/** The class exists, but is not a job, or needs another context type. */
private[jobserver] final class WrongKindOfJob(message: String) extends Exception(message)

/** The job's own validation rejected its configuration. `shown` is the message for the caller. */
private[jobserver] final class ValidationRefused(val shown: Throwable) extends Exception(shown)

/** Two different jars that cannot be used in the same context. */
final class ClassPathConflict(message: String) extends Exception(message)

/** A job's result that cannot be converted to JSON, or exceeds a limit. */
final class ResultRefused(message: String) extends Exception(message)
