package org.apache.spark.sql.jobserver

import java.nio.file.{Path, Paths}

import scala.collection.JavaConverters._

import com.fasterxml.jackson.databind.JsonNode

/** A jar on this machine and the SHA-256 of its content, in hexadecimal. */
private[jobserver] final case class JobJar(path: Path, sha256: String)

/**
 * What the host asks for, read from its JSON.
 *
 * The two configurations stay JSON text, so that a job can read their numbers as they were written.
 */
private[jobserver] final case class JobRequest(
    jobId: String,
    mainClass: String,
    jars: Seq[JobJar],
    kind: String,
    config: String,
    contextConfig: String,
    resultPath: Path,
    logPath: Path,
    maxResultBytes: Long,
    maxLogBytes: Long,
    dataDir: Option[Path]) {

  /** The identity of the job's class path: its jars' contents, in order. */
  val classPathKey: String = jars.map(_.sha256).mkString("+")

  /** The context's settings for streams. */
  lazy val streaming: JsonNode = Outcome.mapper.readTree(contextConfig).path("streaming")
}

private[jobserver] object JobRequest {
  def parse(json: String): JobRequest = {
    val node = Outcome.mapper.readTree(json)
    def text(name: String): String = node.required(name).asText()
    JobRequest(
      jobId = text("jobId"),
      mainClass = text("mainClass"),
      jars = node.required("jars").elements.asScala
        .map(jar => JobJar(Paths.get(jar.required("path").asText), jar.required("sha256").asText)).toList,
      kind = text("kind"),
      config = text("config"),
      contextConfig = text("contextConfig"),
      resultPath = Paths.get(text("resultPath")),
      logPath = Paths.get(text("logPath")),
      maxResultBytes = node.required("maxResultBytes").asLong,
      maxLogBytes = node.required("maxLogBytes").asLong,
      dataDir = Option(node.get("dataDir")).filterNot(_.isNull).map(dir => Paths.get(dir.asText)))
  }
}
