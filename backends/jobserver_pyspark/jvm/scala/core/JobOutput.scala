package org.apache.spark.sql.jobserver

import java.io.{BufferedOutputStream, FileOutputStream, OutputStream, PrintStream}
import java.nio.charset.StandardCharsets.UTF_8
import java.nio.file.Path

import org.apache.logging.log4j.{Level, LogManager}
import org.apache.logging.log4j.core.{Filter, LogEvent, LoggerContext}
import org.apache.logging.log4j.core.appender.AbstractAppender
import org.apache.logging.log4j.core.config.Property
import org.apache.logging.log4j.core.layout.PatternLayout

import org.apache.spark.SparkContext
import org.apache.spark.internal.Logging.SparkShellLoggingFilter

/**
 * A job's log file of limited size, which the first output creates. Output beyond the limit is dropped, and the file says
 * how much.
 */
private[jobserver] final class JobLog(path: Path, maxBytes: Long) {
  // Not a channel: a channel is closed when an interrupted thread writes to it.
  private lazy val out = new BufferedOutputStream(new FileOutputStream(path.toFile, true))
  private var written = 0L
  private var dropped = 0L
  private var created = false
  @volatile private var open = true

  def isOpen: Boolean = open

  def write(bytes: Array[Byte], offset: Int, length: Int): Unit = synchronized {
    if (open && length > 0) {
      val fits = math.min(length.toLong, math.max(0L, maxBytes - written)).toInt
      out.write(bytes, offset, fits)
      created = true
      written += fits
      dropped += length - fits
    }
  }

  def flush(): Unit = synchronized { if (open && created) out.flush() }

  def close(): Unit = synchronized {
    if (open) {
      open = false
      if (dropped > 0) out.write(s"\n[$dropped bytes more than the limit of $maxBytes were dropped]\n".getBytes(UTF_8))
      if (created) out.close()
    }
  }
}

/**
 * Writes the output and log of each job to the job's own file.
 *
 * `System.out`, `System.err` and the root logger are shared by the whole JVM. Each line goes to the job whose thread
 * wrote it, or to its original destination if the thread does not belong to a job.
 */
private[jobserver] object JobOutput {
  private var installed = false
  private val originalOut = System.out
  private val originalErr = System.err
  val out = new PrintStream(new Routed(originalOut), true, "UTF-8")
  val err = new PrintStream(new Routed(originalErr), true, "UTF-8")

  def install(): Unit = synchronized {
    if (!installed) {
      System.setOut(out)
      System.setErr(err)
      attachAppender()
      installed = true
    }
  }

  /** Scala's `println` caches the original stream, so it has to be redirected separately. */
  def capturing[T](body: => T): T = Console.withOut(out)(Console.withErr(err)(body))

  private def attachAppender(): Unit =
    LogManager.getContext(classOf[SparkContext].getClassLoader, false) match {
      case context: LoggerContext =>
        val appender = new JobAppender(context)
        appender.start()
        context.getConfiguration.addAppender(appender)
        context.getConfiguration.getRootLogger.addAppender(appender, null, null)
        context.updateLoggers()
      case _ => // another logging back end; its lines remain in the driver's log
    }

  private final class Routed(original: OutputStream) extends OutputStream {
    override def write(byte: Int): Unit = write(Array(byte.toByte), 0, 1)
    override def write(bytes: Array[Byte], offset: Int, length: Int): Unit = JobThreads.current match {
      case Some(job) => job.log.write(bytes, offset, length)
      case None => original.write(bytes, offset, length)
    }
    override def flush(): Unit = JobThreads.current match {
      case Some(job) => job.log.flush()
      case None => original.flush()
    }
  }

  private def layout(context: LoggerContext, exception: String): PatternLayout = PatternLayout.newBuilder()
    .withPattern(s"%d{yy/MM/dd HH:mm:ss} %p %c{1}: %m%n$exception").withConfiguration(context.getConfiguration).build()

  private final class JobAppender(context: LoggerContext)
    extends AbstractAppender("job-log", null, layout(context, "%ex"), true, Property.EMPTY_ARRAY) {
    /** Of a warning of Spark, the driver's log has the stack. Here it would hide the job's own error, which often follows. */
    private val withoutStack = layout(context, "%ex{1}")

    /** Spark gives this filter to its console only, whose level is WARN unless a logger is configured. */
    private val asOnConsole = new SparkShellLoggingFilter

    override def append(event: LogEvent): Unit = JobThreads.current.foreach { job =>
      if (!ofSpark(event) || asOnConsole.filter(event) != Filter.Result.DENY) {
        val warns = ofSpark(event) && event.getLevel == Level.WARN
        val bytes = (if (warns) withoutStack else getLayout).toByteArray(event)
        job.log.write(bytes, 0, bytes.length)
        job.log.flush()
      }
    }

    /** Whether Spark or one of its libraries logs, and not the job itself. */
    private def ofSpark(event: LogEvent): Boolean =
      Seq("org.apache.", "org.sparkproject.").exists(prefix => String.valueOf(event.getLoggerName).startsWith(prefix))
  }
}
