package org.apache.spark.scheduler

import java.lang.reflect.Field
import java.util.{Collections, IdentityHashMap}
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
 * Two jobs of one jar register listeners of the same class, so the class does not show whose a listener is. Therefore
 * [[JobListeners.watch]] replaces the lists in which Spark keeps its buses and their listeners by lists that note the
 * calling job with each listener. Only registering one costs more. Passing an event to a list's listeners does not.
 *
 * A removed listener may still get the event that its thread is passing around. That counts as running, until the next
 * event or until the thread waits for one. It is not interrupted: if it waited already, the context would stop.
 */
private[spark] final class JobListeners(context: SparkContext) {
  private var passing = Seq.empty[Passing]

  /**
   * Removes the listeners that `isOwn` accepts, by their class and the job that registered them, if known. Returns whether
   * any of them may still be running, or any is left that `mayBeOwn` accepts.
   */
  def end(isOwn: JobListeners.Claim, mayBeOwn: JobListeners.Claim): Boolean = if (context.isStopped) false else {
    val queues = JobListeners.queues(context.listenerBus)
    val changed = queues.filter(removed(_, isOwn))
    passing = passing.filter(_.goesOn) ++ changed.map(new Passing(_))
    passing.nonEmpty || queues.exists(has(_, mayBeOwn))
  }

  private def removed(bus: JobListeners.Bus, isOwn: JobListeners.Claim): Boolean = {
    val list = JobListeners.listOf(bus)
    list.buses.map(removed(_, isOwn)).contains(true) | list.removeOwn(isOwn)
  }

  private def has(bus: JobListeners.Bus, mayBeOwn: JobListeners.Claim): Boolean = {
    val list = JobListeners.listOf(bus)
    list.claimed(mayBeOwn).nonEmpty || list.buses.exists(has(_, mayBeOwn))
  }

  /** An event that a queue may have been passing to its listeners when one of them was removed. */
  private final class Passing(queue: AsyncEventQueue) {
    private val before = JobListeners.passed(queue)

    def goesOn: Boolean = JobListeners.passed(queue) == before && JobListeners.isPassing(queue)
  }
}

private[spark] object JobListeners {
  /** Whether a listener belongs to a job, by its class and the ID of the job that registered it, if known. */
  type Claim = (Class[_], Option[String]) => Boolean

  type Bus = ListenerBus[_ <: AnyRef, _]

  /** Notes from now on which job registers a listener. `caller` returns the ID of the calling thread's job. */
  def watch(context: SparkContext, caller: () => Option[String]): Unit = {
    val bus = context.listenerBus
    bus.synchronized {
      val field = fieldOf(bus, "queues")
      field.set(bus, new WatchedQueues(listIn[AsyncEventQueue](field, bus), watch(_, caller)))
    }
  }

  /** Whether a thread delivers Spark's events. Spark starts it with the first listener of its kind, often a job's. */
  def isDispatcher(thread: Thread): Boolean = thread.getName.startsWith("spark-listener-group-")

  private def watch(bus: Bus, caller: () => Option[String]): Unit = {
    val field = fieldOf(bus, "listenersPlusTimers")
    if (!field.get(bus).isInstanceOf[OwnedListeners])
      field.set(bus, new OwnedListeners(listIn[OwnedListeners.Entry](field, bus), caller, watch(_, caller)))
  }

  private def listOf(bus: Bus): OwnedListeners = fieldOf(bus, "listenersPlusTimers").get(bus).asInstanceOf[OwnedListeners]

  private def queues(bus: LiveListenerBus): Seq[AsyncEventQueue] =
    listIn[AsyncEventQueue](fieldOf(bus, "queues"), bus).asScala.toSeq

  /** The number of events that all listeners of a queue have got. */
  private def passed(queue: AsyncEventQueue): Option[Long] =
    Try(fieldOf(queue, "processingTime").get(queue).asInstanceOf[Timer].getCount).toOption

  private def isPassing(queue: AsyncEventQueue): Boolean =
    Try(fieldOf(queue, "dispatchThread").get(queue).asInstanceOf[Thread]).toOption
      .exists(_.getStackTrace.exists(_.getMethodName == "postToAll"))

  private def listIn[T](field: Field, target: AnyRef): CopyOnWriteArrayList[T] =
    field.get(target).asInstanceOf[CopyOnWriteArrayList[T]]

  /** A private field. Scala puts the name of the trait before that of a trait's field. */
  private def fieldOf(target: AnyRef, name: String): Field = {
    val field = Iterator.iterate[Class[_]](target.getClass)(_.getSuperclass).takeWhile(_ != null)
      .flatMap(_.getDeclaredFields).find(field => field.getName == name || field.getName.endsWith(s"$$$name"))
      .getOrElse(throw new NoSuchFieldException(s"$name of ${target.getClass.getName}"))
    field.setAccessible(true)
    field
  }
}

/** The queues of Spark's bus. Spark makes each with its first listener. */
private final class WatchedQueues(before: CopyOnWriteArrayList[AsyncEventQueue], watch: JobListeners.Bus => Unit)
  extends CopyOnWriteArrayList[AsyncEventQueue](before) {
  before.forEach(watch(_))

  override def add(queue: AsyncEventQueue): Boolean = {
    watch(queue)
    super.add(queue)
  }
}

/** The listeners of one bus, each with the job that registered it. */
private final class OwnedListeners(
    before: CopyOnWriteArrayList[OwnedListeners.Entry], caller: () => Option[String], watch: JobListeners.Bus => Unit)
  extends CopyOnWriteArrayList[OwnedListeners.Entry](before) {
  private val owners = Collections.synchronizedMap(new IdentityHashMap[OwnedListeners.Entry, String])

  before.forEach(register(_))

  override def add(entry: OwnedListeners.Entry): Boolean = {
    register(entry)
    super.add(entry)
  }

  override def remove(entry: Object): Boolean = {
    owners.remove(entry)
    super.remove(entry)
  }

  def buses: Seq[JobListeners.Bus] =
    entries.map(_._1).collect { case bus: ListenerBus[_, _] => bus.asInstanceOf[JobListeners.Bus] }

  def claimed(claim: JobListeners.Claim): Seq[OwnedListeners.Entry] =
    entries.filter(entry => claim(entry._1.getClass, Option(owners.get(entry))))

  /** Two jobs may have registered the same object, so an entry is removed by its identity. */
  def removeOwn(isOwn: JobListeners.Claim): Boolean = {
    val found = claimed(isOwn)
    found.foreach { entry =>
      owners.remove(entry)
      removeIf(_ eq entry)
    }
    found.nonEmpty
  }

  private def entries: Seq[OwnedListeners.Entry] = this.iterator.asScala.toList

  private def register(entry: OwnedListeners.Entry): Unit = {
    caller().foreach(owners.put(entry, _))
    entry._1 match {
      case bus: ListenerBus[_, _] => watch(bus.asInstanceOf[JobListeners.Bus])
      case _ =>
    }
  }
}

private object OwnedListeners {
  /** As Spark keeps it: a listener, and the timer of its class. */
  type Entry = (AnyRef, Option[Timer])
}
