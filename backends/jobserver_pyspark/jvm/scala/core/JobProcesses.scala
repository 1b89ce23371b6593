package org.apache.spark.sql.jobserver

import java.nio.charset.StandardCharsets.UTF_8
import java.nio.file.{Files, Path, Paths}

import scala.collection.JavaConverters._
import scala.util.Try

/**
 * The processes that one job of this JVM has started, including their descendants.
 *
 * A process does not record which of the JVM's jobs it belongs to. But Linux knows the thread that forked it, as long as
 * that thread lives, and the first 15 characters of the thread's name. If this gives no answer, the process belongs to
 * the job if no other running job ran when it was started. Spark's own Python workers belong to no job.
 */
private[jobserver] final class JobProcesses(threads: JobThreads) {
  @volatile private var begun = Long.MaxValue

  /** Records the start of the job. Must be called on the job's own thread. */
  def begin(): Unit = begun = JobProcesses.startOf("thread-self").getOrElse(Long.MaxValue)

  /**
   * Kills all of them. Returns whether there were any, or any that may belong to the job or to another one.
   *
   * @param others those of the other running jobs
   */
  def end(others: Seq[JobProcesses]): Boolean = {
    val forkers = JobProcesses.forkers
    def started(process: ProcessHandle)(job: JobProcesses): Boolean = forkers.get(process.pid).exists(job.has)
    val found = ProcessHandle.current.children.iterator.asScala.filter { process =>
      coversStartOf(process) && !JobProcesses.isSparks(process) && !others.exists(started(process))
    }.toList
    val (unknown, own) = found.partition { process =>
      !started(process)(this) && others.exists(_.coversStartOf(process))
    }
    val killed = own.flatMap(process => process.descendants.iterator.asScala.toSeq :+ process)
    killed.foreach(_.destroyForcibly())
    (killed ++ unknown).exists(_.isAlive)
  }

  /** Whether the process was started after the job. */
  private def coversStartOf(process: ProcessHandle): Boolean =
    JobProcesses.startOf(process.pid.toString).exists(_ >= begun)

  private def has(thread: String): Boolean = threads.members.exists(_.getName.take(JobProcesses.NameLength) == thread)
}

private[jobserver] object JobProcesses {
  private val NameLength = 15

  /** Of Spark's Python processes: its own modules, and the launcher's daemon. */
  private val SparksModules = "(jobserver_)?pyspark\\.".r

  /** The start time of a process or thread in clock ticks since boot. Java's own value can be off by a second. */
  private def startOf(name: String): Option[Long] =
    Try(read(Paths.get("/proc", name, "stat")).split(')').last.trim.split(' ')(19).toLong).toOption

  /** The name of the thread that forked each child of this process. */
  private def forkers: Map[Long, String] = {
    val tasks = Try(Files.list(Paths.get("/proc/self/task"))).toOption
    try tasks.toSeq.flatMap(_.iterator.asScala).flatMap { task =>
      val name = read(task.resolve("comm"))
      read(task.resolve("children")).split(' ').filter(_.nonEmpty).map(pid => pid.toLong -> name)
    }.toMap finally tasks.foreach(_.close())
  }

  /** The content of a file of `/proc`; empty for a thread that has just ended. */
  private def read(file: Path): String = Try(new String(Files.readAllBytes(file), UTF_8).stripLineEnd).getOrElse("")

  private def isSparks(process: ProcessHandle): Boolean =
    process.info.arguments.map[Boolean](_.exists(SparksModules.findPrefixOf(_).nonEmpty)).orElse(false)
}
