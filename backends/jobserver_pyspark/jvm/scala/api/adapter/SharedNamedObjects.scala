package org.apache.spark.sql.jobserver

import java.util.{Map => JMap}

import scala.concurrent.duration.{DurationInt, FiniteDuration}

import org.apache.spark.api.java.JavaRDD
import org.apache.spark.broadcast.Broadcast
import org.apache.spark.sql.DataFrame
import org.apache.spark.storage.StorageLevel

import spark.jobserver._

/** Implements the API's named objects with the table that Python jobs use as well. */
private final class SharedNamedObjects(table: NamedObjectTable) extends NamedObjects {

  override val defaultTimeout: FiniteDuration = 60.seconds

  override def getOrElseCreate[O <: NamedObject](name: String, objGen: => O)(
      implicit timeout: FiniteDuration, persister: NamedObjectPersister[O]): O =
    named(table.getOrElseCreate(name, timeout.toMillis)(made(name, objGen)))

  override def get[O <: NamedObject](name: String)(implicit timeout: FiniteDuration): Option[O] =
    table.get(name, timeout.toMillis).map(named[O])

  override def update[O <: NamedObject](name: String, objGen: => O)(
      implicit timeout: FiniteDuration, persister: NamedObjectPersister[O]): O =
    named(table.update(name)(made(name, objGen)))

  override def forget(name: String): Unit = table.forget(name)

  override def destroy[O <: NamedObject](objOfType: O, name: String)(
      implicit persister: NamedObjectPersister[O]): Unit =
    table.remove(name).foreach(entry => persister.unpersist(named[O](entry)))

  override def getNames(): Iterable[String] = table.names

  private def made[O <: NamedObject](name: String, make: => O)(implicit persister: NamedObjectPersister[O]) = {
    val made = make
    persister.persist(made, name)
    made match {
      case NamedRDD(rdd, _, _) =>
        val entry = NamedObjectTable.entry("rdd", PlainValues.of(rdd), made)
        entry.put("source", rdd.toJavaRDD())
        entry
      case NamedDataFrame(df, _, _) => NamedObjectTable.entry("dataframe", df, made)
      case NamedBroadcast(broadcast) => NamedObjectTable.entry("broadcast", broadcast, made)
      case other => NamedObjectTable.entry("object", other, made)
    }
  }

  /** Converts to the API's type. An object of a Python job is wrapped, and its storage level is kept. */
  private def named[O <: NamedObject](entry: JMap[String, AnyRef]): O = {
    val there = Option(entry.get("object")).getOrElse(entry.get("kind") match {
      case "dataframe" =>
        NamedDataFrame(entry.get("value").asInstanceOf[DataFrame], forceComputation = false, StorageLevel.NONE)
      case "rdd" =>
        NamedRDD(entry.get("value").asInstanceOf[JavaRDD[Any]].rdd, forceComputation = false, StorageLevel.NONE)
      case "python-rdd" =>
        NamedRDD(NamedObjectTable.unpickled(entry).rdd, forceComputation = false, StorageLevel.NONE)
      case "broadcast" => NamedBroadcast(entry.get("value").asInstanceOf[Broadcast[Any]])
      case _ => entry.get("value")
    })
    there.asInstanceOf[O]
  }
}
