package org.apache.spark.sql.jobserver

import java.nio.channels.{AsynchronousChannel, CompletionHandler}
import java.util.concurrent.locks.ReadWriteLock

import scala.collection.JavaConverters._

/**
 * One job's asynchronous channels of sockets: those whose handlers are the job's.
 *
 * Their events come from threads that run only code of the JDK, and that serve a group of channels. The default group
 * serves all jobs. A handler goes in circles: a channel keeps it until the event occurs, a thread calls it, and the handler
 * passes itself to the next operation of the channel. So the search locks the table in which threads look up the channel
 * of an event. A handler can then only move from a thread to a channel, and is found by reading the threads first.
 *
 * Closing a channel calls the handler of a pending operation a last time, with an error. [[SharedPools]] ends handlers that
 * run, also those of files.
 */
private[jobserver] final class JobChannels(code: OwnCode) {
  /** Closes them. Returns whether there were any, or any that may be the job's. */
  def end(): Boolean = {
    val groups = JobChannels.groups
    val locks = groups.flatMap(Fields.get(_, "fdToChannelLock")).collect { case lock: ReadWriteLock => lock.writeLock }
    locks.foreach(_.lock())
    val (running, found) = try {
      val running = isRunning // first
      (running, groups.flatMap(JobChannels.channels).filter(handlers(_).exists(code.mayBeIn)))
    } finally locks.foreach(_.unlock())
    found.filter(handlers(_).exists(code.isIn))
      .foreach(channel => JobThreads.onOwnThread("close-channel")(channel.close()))
    running || found.nonEmpty
  }

  private def isRunning: Boolean = Thread.getAllStackTraces.asScala.exists { case (thread, frames) =>
    SharedPools.isOfChannels(thread, frames) && (code.mayRunIn(frames) || SharedPools.mayHoldTask(frames))
  }

  private def handlers(channel: AnyRef): Seq[AnyRef] =
    Fields.all(channel).filter(_.isInstanceOf[CompletionHandler[_, _]]).toSeq
}

private object JobChannels {
  private def groups: Seq[AnyRef] = Thread.getAllStackTraces.keySet.asScala.toSeq.flatMap(groupOf).distinct

  /** The group of channels that a thread serves. A thread of a pool has it as a local value, any other one in its task. */
  private def groupOf(thread: Thread): Option[AnyRef] = JobThreads.targetOf(thread)
    .filter(_.getClass.getName.endsWith("Port$EventHandlerTask")).flatMap(Fields.get(_, "this$0"))
    .orElse(localsOf(thread).find(_.getClass.getName.endsWith("Invoker$GroupAndInvokeCount")).flatMap(Fields.get(_, "group")))

  private def localsOf(thread: Thread): Seq[AnyRef] = for {
    locals <- Fields.get(thread, "threadLocals").toSeq
    table <- Fields.get(locals, "table").toSeq
    entry <- table.asInstanceOf[Array[AnyRef]].toSeq if entry != null
    value <- Fields.get(entry, "value")
  } yield value

  private def channels(group: AnyRef): Seq[AsynchronousChannel] =
    Fields.get(group, "fdToChannel").toSeq.flatMap(_.asInstanceOf[java.util.Map[_, _]].values.asScala)
      .collect { case channel: AsynchronousChannel if channel.isOpen => channel }
}
