package org.apache.spark.sql.jobserver

import java.util.{HashMap => JHashMap, Map => JMap}
import java.util.concurrent.{CompletableFuture, ConcurrentHashMap, ExecutionException, TimeUnit}

import scala.collection.JavaConverters._

import org.apache.spark.api.java.JavaRDD
import org.apache.spark.api.python.SerDeUtil

/**
 * The named objects of a context, as one job of it sees them.
 *
 * The objects lie in a plain map among the JVM's system properties, so that Python jobs reach them without any compiled
 * code. The layout of that map is described in `jobserver_pyspark/runner/named_objects.py`, which shares it.
 */
final class NamedObjectTable private[jobserver] (jobId: String, owner: String) {
  import NamedObjectTable._

  /** The entry of this name; waits for one that is being made. None when there is none. */
  def get(name: String, timeoutMs: Long): Option[JMap[String, AnyRef]] =
    Option(table.get(name)).map(await(name, _, timeoutMs))

  /** The entry of this name, made by `make` when there is none; made once, however many ask. */
  def getOrElseCreate(name: String, timeoutMs: Long)(make: => JMap[String, AnyRef]): JMap[String, AnyRef] = {
    val mine = new CompletableFuture[JMap[String, AnyRef]]()
    Option(table.putIfAbsent(name, mine)) match {
      case Some(other) => await(name, other, timeoutMs)
      case None => fill(name, mine)(make)
    }
  }

  /** Replaces whatever has this name. */
  def update(name: String)(make: => JMap[String, AnyRef]): JMap[String, AnyRef] = {
    val mine = new CompletableFuture[JMap[String, AnyRef]]()
    table.put(name, mine)
    fill(name, mine)(make)
  }

  /** Forgets the name and leaves the object as it is. */
  def forget(name: String): Unit = table.remove(name)

  /** Forgets the name; gives back what was there, if it had been made. */
  def remove(name: String): Option[JMap[String, AnyRef]] =
    Option(table.remove(name)).filter(made).map(_.get())

  def names: Seq[String] = table.asScala.collect { case (name, entry) if made(entry) => name }.toList.sorted

  private def fill(name: String, mine: CompletableFuture[JMap[String, AnyRef]])(make: => JMap[String, AnyRef]) = {
    creators.put(name, jobId)
    try {
      val entry = make
      entry.put("job", jobId)
      entry.put("owner", owner)
      mine.complete(entry)
      entry
    } catch {
      case error: Throwable =>
        table.remove(name, mine)
        mine.completeExceptionally(error)
        throw error
    } finally creators.remove(name, jobId)
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
  def creators: ConcurrentHashMap[String, String] = shared(CreatorsKey).asInstanceOf[ConcurrentHashMap[String, String]]

  /** A finished entry: the object itself for JVM jobs, what Python needs of it for Python jobs. */
  def entry(kind: String, value: AnyRef, jvmObject: AnyRef = null): JMap[String, AnyRef] = {
    val made = new JHashMap[String, AnyRef]()
    made.put("kind", kind)
    made.put("value", value)
    if (jvmObject != null) made.put("object", jvmObject)
    made
  }

  /** The elements of a Python job's RDD as Java objects. */
  def unpickled(entry: JMap[String, AnyRef]): JavaRDD[Any] =
    SerDeUtil.pythonToJava(entry.get("value").asInstanceOf[JavaRDD[Array[Byte]]], batched = true)

  /** Whether a class path made objects that are still there: its code is still needed then. */
  def owns(owner: String): Boolean =
    table.values.asScala.exists(entry => made(entry) && owner == entry.get().get("owner"))

  private def made(entry: CompletableFuture[JMap[String, AnyRef]]): Boolean =
    entry.isDone && !entry.isCompletedExceptionally

  // System properties are one table for the whole JVM, locked by itself: the one place that every class loader
  // and every gateway connection sees.
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
