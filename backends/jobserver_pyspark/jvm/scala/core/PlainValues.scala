package org.apache.spark.sql.jobserver

import java.util.{ArrayList => JArrayList, LinkedHashMap => JLinkedHashMap, Map => JMap}

import scala.collection.JavaConverters._

import org.apache.spark.api.java.JavaRDD
import org.apache.spark.rdd.RDD
import org.apache.spark.sql.Row

/**
 * A JVM job's values as Python can have them: rows become dictionaries by column name, tuples, case classes and all
 * sequences lists, options their content, and what is not understood its string.
 */
private[jobserver] object PlainValues {

  def of(rdd: RDD[_]): JavaRDD[Any] = rdd.map(plain(_: Any)).toJavaRDD()

  def plain(value: Any): Any = value match {
    case null | None | () => null
    case Some(content) => plain(content)
    case simple @ (_: String | _: Boolean | _: java.lang.Byte | _: java.lang.Short | _: java.lang.Integer |
        _: java.lang.Long | _: java.lang.Float | _: java.lang.Double | _: java.math.BigDecimal |
        _: java.math.BigInteger | _: Array[Byte]) => simple
    case number: BigDecimal => number.bigDecimal
    case number: BigInt => number.bigInteger
    case row: Row if row.schema != null => map(row.schema.fieldNames.iterator.zip(row.toSeq.iterator))
    case row: Row => list(row.toSeq.iterator)
    case entries: scala.collection.Map[_, _] => map(entries.iterator)
    case entries: JMap[_, _] => map(entries.entrySet.iterator.asScala.map(e => (e.getKey, e.getValue)))
    case items: scala.collection.Iterable[_] => list(items.iterator)
    case items: java.lang.Iterable[_] => list(items.iterator.asScala)
    case items: Array[_] => list(items.iterator)
    case product: Product if product.productArity > 0 => list(product.productIterator)
    case other => other.toString
  }

  private def list(items: Iterator[_]): Any = {
    val made = new JArrayList[Any]()
    items.foreach(item => made.add(plain(item)))
    made
  }

  private def map(entries: Iterator[(Any, Any)]): Any = {
    val made = new JLinkedHashMap[Any, Any]()
    entries.foreach { case (key, value) => made.put(plain(key), plain(value)) }
    made
  }
}
