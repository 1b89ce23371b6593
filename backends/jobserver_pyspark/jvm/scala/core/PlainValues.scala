package org.apache.spark.sql.jobserver

import java.util.{ArrayList => JArrayList, LinkedHashMap => JLinkedHashMap}

import org.apache.spark.api.java.JavaRDD
import org.apache.spark.rdd.RDD

/** Converts a JVM job's values for Python: like results, but bytes and keys are kept. */
private[jobserver] object PlainValues {
  private val MaxDepth = 500

  def of(rdd: RDD[_]): JavaRDD[Any] = rdd.map(plain(_: Any)).toJavaRDD()

  def plain(value: Any): Any = plain(value, 0)

  private def plain(value: Any, depth: Int): Any = {
    if (depth > MaxDepth) throw new ResultRefused(
      s"a value is nested more than $MaxDepth levels deep, or contains itself")
    value match {
      case simple @ (_: String | _: Boolean | _: java.lang.Byte | _: java.lang.Short | _: java.lang.Integer |
          _: java.lang.Long | _: java.lang.Float | _: java.lang.Double | _: Array[Byte]) => simple
      case _ => ofShape(ResultShape.of(value), depth)
    }
  }

  private def ofShape(shape: ResultShape, depth: Int): Any = shape match {
    case ResultShape.Absent => null
    case ResultShape.Truth(flag) => flag
    case ResultShape.Quantity(number) => number
    case ResultShape.Text(text) => text
    case ResultShape.Stand(value) => plain(value, depth + 1)
    case ResultShape.Items(items) =>
      val made = new JArrayList[Any]()
      items.foreach(item => made.add(plain(item, depth + 1)))
      made
    case ResultShape.Members(entries, _) =>
      val made = new JLinkedHashMap[Any, Any]()
      entries.foreach { case (name, value) =>
        val text = key(name)
        if (made.containsKey(text)) throw new ResultRefused(s"two keys of one map are both $text")
        made.put(text, plain(value, depth + 1))
      }
      made
  }

  /** In Python, numbers and booleans can be keys too, but lists cannot. */
  private def key(value: Any): Any = value match {
    case null => null
    case _: Number | _: Boolean => plain(value)
    case _ => ResultShape.keyText(value)
  }
}
