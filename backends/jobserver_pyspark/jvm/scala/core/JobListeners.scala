package org.apache.spark.scheduler

import java.util.concurrent.CopyOnWriteArrayList

import scala.collection.JavaConverters._
import scala.util.Try

import com.codahale.metrics.Timer

import org.apache.spark.SparkContext
import org.apache.spark.util.ListenerBus

/**
 * Listeners that a job registered: for Spark's events, or for those of streams and SQL queries, whose buses are listeners
 * of Spark's bus themselves.
 *
 * A removed listener may still get the event that its thread is passing around. That counts as running, until the next
 * event or until the thread waits for one. It is not interrupted: if it waited already, the context would stop.
 */
private[spark] final class JobListeners(context: SparkContext) {
  private var passing = Seq.empty[Passing]

  /** Removes the listeners of the classes that `isOwn` accepts. Returns whether any of them may still be running. */
  def end(isOwn: Class[_] => Boolean): Boolean = if (context.isStopped) false else {
    val changed = JobListeners.queues(context.listenerBus).filter(removed(_, isOwn))
    passing = passing.filter(_.goesOn) ++ changed.map(new Passing(_))
    passing.nonEmpty
  }

  private def removed(bus: ListenerBus[_ <: AnyRef, _], isOwn: Class[_] => Boolean): Boolean = {
    val listeners = bus.listeners.asScala.toList
    val own = listeners.filter(listener => isOwn(listener.getClass))
    own.foreach(bus.asInstanceOf[ListenerBus[AnyRef, _]].removeListener(_))
    val buses = listeners.collect { case inner: ListenerBus[_, _] => inner.asInstanceOf[ListenerBus[AnyRef, _]] }
    buses.map(removed(_, isOwn)).contains(true) || own.nonEmpty
  }

  /** An event that a queue may have been passing to its listeners when one of them was removed. */
  private final class Passing(queue: AsyncEventQueue) {
    private val before = JobListeners.passed(queue)

    def goesOn: Boolean = JobListeners.passed(queue) == before && JobListeners.isPassing(queue)
  }
}

private[spark] object JobListeners {
  /** Whether a thread delivers Spark's events. Spark starts it with the first listener of its kind, often a job's. */
  def isDispatcher(thread: Thread): Boolean = thread.getName.startsWith("spark-listener-group-")

  private def queues(bus: LiveListenerBus): Seq[AsyncEventQueue] =
    field[CopyOnWriteArrayList[AsyncEventQueue]](bus, "queues").toSeq.flatMap(_.asScala)

  /** The number of events that all listeners of a queue have got. */
  private def passed(queue: AsyncEventQueue): Option[Long] = field[Timer](queue, "processingTime").map(_.getCount)

  private def isPassing(queue: AsyncEventQueue): Boolean =
    field[Thread](queue, "dispatchThread").exists(_.getStackTrace.exists(_.getMethodName == "postToAll"))

  private def field[T](owner: AnyRef, name: String): Option[T] = Try {
    val found = owner.getClass.getDeclaredField(name)
    found.setAccessible(true)
    found.get(owner).asInstanceOf[T]
  }.toOption
}
