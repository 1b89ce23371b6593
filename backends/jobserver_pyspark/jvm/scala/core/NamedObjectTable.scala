package org.apache.spark.sql.jobserver

import java.util.{HashMap => JHashMap, Map => JMap}
import java.util.concurrent.{CompletableFuture, ConcurrentHashMap, ExecutionException, TimeUnit}

import scala.collection.JavaConverters._

import org.apache.spark.api.java.JavaRDD
import org.apache.spark.api.python.SerDeUtil

/**
 * The named objects of a context, for one of its jobs.
 *
 * The objects are stored in a plain map in the JVM's system properties, so that Python jobs can access them without
 * compiled code. `jobserver_pyspark/runner/named_objects.py` describes the layout of the map.
 */
final class NamedObjectTable private[jobserver] (jobId: String, classPathKey: String) {
  import NamedObjectTable._

  /** Returns the entry with this name, or None. Waits if it is being created. */
  def get(name: String, timeoutMs: Long): Option[JMap[String, AnyRef]] =
    existing(name).map(await(name, _, timeoutMs))

  /** Returns the entry with this name. If there is none, `make` creates it; concurrent calls create it only once. */
  def getOrElseCreate(name: String, timeoutMs: Long)(make: => JMap[String, AnyRef]): JMap[String, AnyRef] = {
    def other(mine: CompletableFuture[JMap[String, AnyRef]]) =
      existing(name).orElse(Option(table.putIfAbsent(name, mine)))
    val made = creating(name)(mine => other(mine).toLeft(fill(name, mine)(make)))
    made.fold(await(name, _, timeoutMs), identity)
  }

  /** Stores an entry under this name, replacing any other. */
  def update(name: String)(make: => JMap[String, AnyRef]): JMap[String, AnyRef] = {
    creating(name) { mine =>
      table.put(name, mine)
      fill(name, mine)(make)
    }
  }

  /** Removes the name, without freeing the object. */
  def forget(name: String): Unit = table.remove(name)

  /** Removes the name, and returns its entry if it was complete. */
  def remove(name: String): Option[JMap[String, AnyRef]] =
    Option(table.remove(name)).filter(made).map(_.get())

  def names: Seq[String] = table.asScala.collect { case (name, entry) if made(entry) => name }.toList.sorted

  /**
   * The future with this name, if there is one. The last call of a killed Python job may arrive after the job was
   * cleaned up, so a cancelled future can be there.
   */
  private def existing(name: String): Option[CompletableFuture[JMap[String, AnyRef]]] =
    Option(table.get(name)).filterNot(entry => entry.isCancelled && table.remove(name, entry))

  /** Calls `block` with a new future, which is cancelled if the job is ended within the block. */
  private def creating[T](name: String)(block: CompletableFuture[JMap[String, AnyRef]] => T): T = {
    val mine = new CompletableFuture[JMap[String, AnyRef]]()
    val key = s"$jobId $name"
    creators.put(key, mine)
    try block(mine)
    finally creators.remove(key, mine)
  }

  private def fill(name: String, mine: CompletableFuture[JMap[String, AnyRef]])(make: => JMap[String, AnyRef]) =
    try {
      val entry = make
      entry.put("job", jobId)
      entry.put("classPath", classPathKey)
      mine.complete(entry)
      entry
    } catch {
      case error: Throwable =>
        table.remove(name, mine)
        mine.completeExceptionally(error)
        throw error
    }

  private def await(name: String, entry: CompletableFuture[JMap[String, AnyRef]], timeoutMs: Long) =
    try entry.get(timeoutMs, TimeUnit.MILLISECONDS)
    catch { case error: ExecutionException => throw error.getCause }
}

private[jobserver] object NamedObjectTable {
  val TableKey = "jobserver.namedObjects"
  val CreatorsKey = "jobserver.namedObjects.creators"
  type Table = ConcurrentHashMap[String, CompletableFuture[JMap[String, AnyRef]]]

  def table: Table = shared(TableKey).asInstanceOf[Table]
  def creators: Table = shared(CreatorsKey).asInstanceOf[Table]

  /** A complete entry: the object for JVM jobs, and its representation for Python jobs. */
  def entry(kind: String, value: AnyRef, jvmObject: AnyRef = null): JMap[String, AnyRef] = {
    val made = new JHashMap[String, AnyRef]()
    made.put("kind", kind)
    made.put("value", value)
    if (jvmObject != null) made.put("object", jvmObject)
    made
  }

  /** Converts the elements of a Python job's RDD to Java objects. */
  def unpickled(entry: JMap[String, AnyRef]): JavaRDD[Any] =
    SerDeUtil.pythonToJava(entry.get("value").asInstanceOf[JavaRDD[Array[Byte]]], batched = true)

  /** Whether objects that a class path created still exist, so that its code is still needed. */
  def hasObjectsOf(classPathKey: String): Boolean = entriesOf(classPathKey).nonEmpty

  /** The IDs of the RDDs among these objects, as Python jobs get them. */
  def rddsOf(classPathKey: String): Iterator[Int] =
    entriesOf(classPathKey).map(_.get("value")).collect { case rdd: JavaRDD[_] => rdd.id }

  private def entriesOf(classPathKey: String): Iterator[JMap[String, AnyRef]] =
    table.values.asScala.iterator.filter(made).map(_.get()).filter(entry => classPathKey == entry.get("classPath"))

  private def made(entry: CompletableFuture[JMap[String, AnyRef]]): Boolean =
    entry.isDone && !entry.isCompletedExceptionally

  // System properties are a synchronized table for the whole JVM, and the only place that all class loaders and all
  // gateway connections share.
  private def shared(key: String): AnyRef = {
    val properties = System.getProperties
    properties.synchronized {
      Option(properties.get(key)).getOrElse {
        val made = new ConcurrentHashMap[String, AnyRef]()
        properties.put(key, made)
        made
      }
    }
  }
}
