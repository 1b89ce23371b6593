package org.apache.spark.sql.jobserver

import java.nio.file.{Path, Paths}

import scala.collection.JavaConverters._

import com.fasterxml.jackson.databind.JsonNode

/** A jar on this machine and the SHA-256 of its content, in hexadecimal. */
private[jobserver] final case class JobJar(path: Path, sha256: String)

/**
 * A request to run a job, parsed from the host's JSON: `JvmJobRequest` in `jobserver_pyspark.protocol.jvm_messages`.
 *
 * The two configurations remain JSON text, so that a job can read numbers exactly as they were written.
 */
private[jobserver] final case class JobRequest(
    jobId: String,
    mainClass: String,
    jars: Seq[JobJar],
    contextType: String,
    config: String,
    contextConfig: String,
    resultPath: Path,
    logPath: Path,
    maxResultBytes: Long,
    maxLogBytes: Long,
    dataDir: Option[Path]) {

  /** Identifies the job's class path by the contents of its jars, in order. */
  val classPathKey: String = jars.map(_.sha256).mkString("+")

  /** The context's settings for streams. */
  lazy val streaming: JsonNode = Outcome.mapper.readTree(contextConfig).path("streaming")
}

private[jobserver] object JobRequest {
  def parseJars(json: String): Seq[JobJar] = parseJars(Outcome.mapper.readTree(json))

  private def parseJars(message: JsonNode): Seq[JobJar] = message.required("jars").elements.asScala
    .map(jar => JobJar(Paths.get(jar.required("path").asText), jar.required("sha256").asText)).toList

  def parse(json: String): JobRequest = {
    val node = Outcome.mapper.readTree(json)
    def text(name: String): String = node.required(name).asText()
    JobRequest(
      jobId = text("job_id"),
      mainClass = text("main_class"),
      jars = parseJars(node),
      contextType = text("context_type"),
      config = text("config"),
      contextConfig = text("context_config"),
      resultPath = Paths.get(text("result_path")),
      logPath = Paths.get(text("log_path")),
      maxResultBytes = node.required("max_result_bytes").asLong,
      maxLogBytes = node.required("max_log_bytes").asLong,
      dataDir = Option(node.get("data_dir")).filterNot(_.isNull).map(dir => Paths.get(dir.asText)))
  }
}
