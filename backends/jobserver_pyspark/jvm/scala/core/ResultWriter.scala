package org.apache.spark.sql.jobserver

import java.io.{BufferedOutputStream, FileOutputStream, InputStream, OutputStream}
import java.nio.file.Path
import java.util.{Map => JMap}

import scala.collection.JavaConverters._

import com.fasterxml.jackson.core.{JsonFactory, JsonGenerator}

import org.apache.spark.api.java.JavaRDDLike
import org.apache.spark.rdd.RDD
import org.apache.spark.sql.{Dataset, Row}

/**
 * Writes a job's result to a file in one pass: JSON, or the bytes themselves of a streamed result.
 *
 * Maps become objects (keys their strings), collections, arrays, iterators, tuples and case classes lists, options
 * their content or null, rows objects by column name, and what is not understood its string. Not-a-number and the
 * infinities become strings. Nothing is held in memory beyond what the job itself holds.
 */
private[jobserver] final class ResultWriter(path: Path, maxBytes: Long) {

  /**
   * Writes the file; gives `json` or `stream`, and its size in bytes. Throws [[ResultRefused]].
   *
   * The result is handed over by a function, so that no frame here holds on to the head of a lazy sequence.
   */
  def write(take: () => Any): (String, Long) = {
    val out = new LimitedStream(new BufferedOutputStream(new FileOutputStream(path.toFile), 1 << 16), maxBytes)
    try {
      val kind = ResultWriter.content(take()) match {
        case ResultWriter.Bytes(in) => copy(in, out); "stream"
        case ResultWriter.Chunks(chunks) => chunks.foreach(out.write(_)); "stream"
        case ResultWriter.Json(value) => writeJson(value, out); "json"
      }
      out.flush()
      (kind, out.written)
    } finally out.close()
  }

  private def copy(in: InputStream, out: OutputStream): Unit =
    try {
      val buffer = new Array[Byte](1 << 16)
      Iterator.continually(in.read(buffer)).takeWhile(_ >= 0).foreach(out.write(buffer, 0, _))
    } finally in.close()

  private def writeJson(value: Any, out: OutputStream): Unit = {
    val json = ResultWriter.factory.createGenerator(out).disable(JsonGenerator.Feature.AUTO_CLOSE_TARGET)
    json.disable(JsonGenerator.Feature.AUTO_CLOSE_JSON_CONTENT)
    ResultWriter.writeValue(value, json, 0)
    json.close()
  }
}

private[jobserver] object ResultWriter {
  private val factory = new JsonFactory()
  private val MaxDepth = 500

  private def writeValue(value: Any, json: JsonGenerator, depth: Int): Unit = {
    if (depth > MaxDepth) throw new ResultRefused(s"the result is nested more than $MaxDepth levels deep")
    value match {
      case null | None | () => json.writeNull()
      case text: CharSequence => json.writeString(text.toString)
      case flag: Boolean => json.writeBoolean(flag)
      case number: Number => writeNumber(number, json)
      case symbol: Symbol => json.writeString(symbol.name)
      case Some(content) => writeValue(content, json, depth)
      case option: java.util.Optional[_] => writeValue(option.orElse(null.asInstanceOf[Nothing]), json, depth)
      case other => writeNested(other, json, depth + 1)
    }
  }

  private def writeNested(value: Any, json: JsonGenerator, depth: Int): Unit = value match {
    case _: Dataset[_] | _: RDD[_] | _: JavaRDDLike[_, _] => throw new ResultRefused(
      s"a job cannot return a distributed ${value.getClass.getSimpleName}: return its rows, for example " +
        "collect() or take(n), or write it somewhere and return the place")
    case map: scala.collection.Map[_, _] => writeMap(map.iterator, json, depth)
    case map: JMap[_, _] => writeMap(map.entrySet.iterator.asScala.map(e => (e.getKey, e.getValue)), json, depth)
    case row: Row => writeRow(row, json, depth)
    case items: scala.collection.Iterable[_] => writeList(items.iterator, json, depth)
    case items: Iterator[_] => writeList(items, json, depth)
    case items: java.lang.Iterable[_] => writeList(items.iterator.asScala, json, depth)
    case items: java.util.Iterator[_] => writeList(items.asScala, json, depth)
    case items: java.util.stream.BaseStream[_, _] => writeList(items.iterator.asScala, json, depth)
    case items: Array[_] => writeList(items.iterator, json, depth)
    case product: Product if product.productArity > 0 => writeList(product.productIterator, json, depth)
    case other => json.writeString(other.toString)
  }

  private def writeNumber(number: Number, json: JsonGenerator): Unit = number match {
    case n: java.lang.Integer => json.writeNumber(n.intValue)
    case n: java.lang.Long => json.writeNumber(n.longValue)
    case n: java.lang.Double if n.isNaN || n.isInfinite => json.writeString(n.toString)
    case n: java.lang.Double => json.writeNumber(n.doubleValue)
    case n: java.lang.Float if n.isNaN || n.isInfinite => json.writeString(n.toString)
    case n: java.lang.Float => json.writeNumber(n.floatValue)
    case n @ (_: java.lang.Short | _: java.lang.Byte) => json.writeNumber(n.intValue)
    case n: java.math.BigDecimal => json.writeNumber(n)
    case n: java.math.BigInteger => json.writeNumber(n)
    case n: BigDecimal => json.writeNumber(n.bigDecimal)
    case n: BigInt => json.writeNumber(n.bigInteger)
    case n @ (_: java.util.concurrent.atomic.AtomicInteger | _: java.util.concurrent.atomic.AtomicLong) =>
      json.writeNumber(n.longValue)
    case other => json.writeString(other.toString)
  }

  private def writeMap(entries: Iterator[(Any, Any)], json: JsonGenerator, depth: Int): Unit = {
    json.writeStartObject()
    entries.foreach { case (key, value) =>
      json.writeFieldName(key match {
        case symbol: Symbol => symbol.name
        case other => String.valueOf(other)
      })
      writeValue(value, json, depth)
    }
    json.writeEndObject()
  }

  private def writeRow(row: Row, json: JsonGenerator, depth: Int): Unit = {
    val names = Option(row.schema).map(_.fieldNames.toSeq).filter(names => names.distinct.size == names.size)
    names match {
      case Some(fields) => writeMap(fields.iterator.zip(row.toSeq.iterator), json, depth)
      case None => writeList(row.toSeq.iterator, json, depth)
    }
  }

  private def writeList(items: Iterator[_], json: JsonGenerator, depth: Int): Unit = {
    json.writeStartArray()
    items.foreach(writeValue(_, json, depth))
    json.writeEndArray()
  }

  private sealed trait Content
  private final case class Bytes(in: InputStream) extends Content
  private final case class Chunks(chunks: Iterator[Array[Byte]]) extends Content
  private final case class Json(value: Any) extends Content

  /**
   * What kind of result this is. Types are erased, so the first element of a lazy sequence or an iterator is looked
   * at: a byte or an array of bytes makes it a streamed result.
   */
  private def content(value: Any): Content = value match {
    case in: InputStream => Bytes(in)
    case iterator: Iterator[_] => lazyContent(iterator)
    case iterator: java.util.Iterator[_] => lazyContent(iterator.asScala)
    case stream: java.util.stream.BaseStream[_, _] => lazyContent(stream.iterator.asScala)
    case items: scala.collection.Iterable[_] if isLazy(items) => lazyContent(items.iterator)
    case other => Json(other)
  }

  private def lazyContent(items: Iterator[Any]): Content = {
    val buffered = items.buffered
    if (!buffered.hasNext) Json(Nil)
    else buffered.head match {
      case _: Byte => Chunks(buffered.asInstanceOf[Iterator[Byte]].grouped(1 << 13).map(_.toArray))
      case _: Array[Byte] => Chunks(buffered.asInstanceOf[Iterator[Array[Byte]]])
      case _ => Json(buffered)
    }
  }

  // LazyList is not there before Scala 2.13, so the two lazy sequences are known by name.
  private def isLazy(value: Any): Boolean = Iterator
    .iterate[Class[_]](value.getClass)(_.getSuperclass).takeWhile(_ != null)
    .exists(c => c.getName == "scala.collection.immutable.Stream" || c.getName == "scala.collection.immutable.LazyList")
}

/** Counts what is written and refuses more than a limit (0: no limit). */
private[jobserver] final class LimitedStream(out: OutputStream, maxBytes: Long) extends OutputStream {
  var written = 0L

  override def write(byte: Int): Unit = { count(1); out.write(byte) }
  override def write(bytes: Array[Byte], offset: Int, length: Int): Unit = {
    count(length)
    out.write(bytes, offset, length)
  }
  override def flush(): Unit = out.flush()
  override def close(): Unit = out.close()

  private def count(length: Int): Unit = {
    written += length
    if (maxBytes > 0 && written > maxBytes) {
      throw new ResultRefused(s"the result is larger than the limit of $maxBytes bytes")
    }
  }
}
