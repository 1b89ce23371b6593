package org.apache.spark.sql.jobserver

import java.io.{ByteArrayOutputStream, BufferedOutputStream, FileOutputStream, InputStream, OutputStream}
import java.nio.file.Path
import java.util.Base64

import scala.collection.JavaConverters._

import com.fasterxml.jackson.core.{JsonFactory, JsonGenerator}

/**
 * A written result: `json` or `stream`, its size in bytes, and the bytes in Base64 if they are few. Otherwise they are in
 * the file.
 */
private[jobserver] final case class WrittenResult(form: String, size: Long, inline: Option[String])

/**
 * Writes a job's result in one pass, as JSON or as the bytes of a streamed result: a large one to a file, a small one to
 * memory. Creating and deleting a file would cost more than everything else that a short job does.
 *
 * [[ResultShape]] determines the conversion of each type. The writer holds nothing in memory except the text of values
 * from JSON libraries, and the keys of maps.
 *
 * @param cancelled checked while the result is written, so that an endless result ends when its job is killed
 */
private[jobserver] final class ResultWriter(path: Path, maxBytes: Long, cancelled: () => Boolean) {

  /**
   * Throws [[ResultRefused]].
   *
   * The result is passed as a function, so that no stack frame here references the head of a lazy sequence.
   */
  def write(take: () => Any): WrittenResult = {
    val target = new SpillingStream(path)
    val out = new LimitedStream(target, maxBytes, cancelled)
    try {
      val form = ResultWriter.content(take()) match {
        case ResultWriter.Bytes(in) => copy(in, out); "stream"
        case ResultWriter.Chunks(chunks) => chunks.foreach(out.write(_)); "stream"
        case ResultWriter.Json(value) => writeJson(value, out); "json"
      }
      WrittenResult(form, out.written, target.inMemory.map(Base64.getEncoder.encodeToString))
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
    if (depth > MaxDepth) throw new ResultRefused(
      s"the result is nested more than $MaxDepth levels deep, or contains itself")
    value match {
      case text: String => whole(text, json)(json.writeString(text))
      case n: java.lang.Integer => json.writeNumber(n.intValue)
      case n: java.lang.Long => json.writeNumber(n.longValue)
      case _ => writeShape(ResultShape.of(value), json, depth)
    }
  }

  private def writeShape(shape: ResultShape, json: JsonGenerator, depth: Int): Unit = shape match {
    case ResultShape.Absent => json.writeNull()
    case ResultShape.Truth(flag) => json.writeBoolean(flag)
    case ResultShape.Quantity(number) => writeNumber(number, json)
    case ResultShape.Text(text) => whole(text, json)(json.writeString(text))
    case ResultShape.Stand(value) => writeValue(value, json, depth + 1)
    case ResultShape.Items(items) =>
      json.writeStartArray()
      items.foreach(writeValue(_, json, depth + 1))
      json.writeEndArray()
    case members: ResultShape.Members =>
      json.writeStartObject()
      ResultShape.distinct(members).foreach { case (name, value) =>
        whole(name, json)(json.writeFieldName(name))
        writeValue(value, json, depth + 1)
      }
      json.writeEndObject()
  }

  private def writeNumber(number: Number, json: JsonGenerator): Unit = number match {
    case n: java.lang.Double => json.writeNumber(n.doubleValue)
    case n: java.lang.Float => json.writeNumber(n.floatValue)
    case n: java.math.BigDecimal => json.writeNumber(n)
    case n: java.math.BigInteger => json.writeNumber(n)
    case n => json.writeNumber(n.longValue)
  }

  /** Writes a string with lone surrogates, which UTF-8 cannot encode, in ASCII with escapes. */
  private def whole(text: String, json: JsonGenerator)(write: => Unit): Unit =
    if (hasLoneSurrogate(text)) {
      json.setHighestNonEscapedChar(127)
      try write finally json.setHighestNonEscapedChar(0)
    } else write

  private def hasLoneSurrogate(text: String): Boolean = {
    var at = 0
    while (at < text.length) {
      val point = text.codePointAt(at) // a pair is one code point, half of one is itself
      if (point <= 0xFFFF && Character.isSurrogate(point.toChar)) return true
      at += Character.charCount(point)
    }
    false
  }

  private sealed trait Content
  private final case class Bytes(in: InputStream) extends Content
  private final case class Chunks(chunks: Iterator[Array[Byte]]) extends Content
  private final case class Json(value: Any) extends Content

  /**
   * Determines the kind of result. Types are erased, so it depends on the first element of a lazy sequence or iterator: a
   * byte or an array of bytes makes it a streamed result.
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
      case _: Byte => Chunks(buffered.map { case byte: Byte => byte; case other => refuseChunk(other) }
        .grouped(1 << 13).map(_.toArray))
      case _: Array[Byte] => Chunks(buffered.map { case bytes: Array[Byte] => bytes; case other => refuseChunk(other) })
      case _ => Json(buffered)
    }
  }

  private def refuseChunk(value: Any): Nothing = throw new ResultRefused(
    s"a streamed result is bytes only, but it contains ${if (value == null) "null" else s"a ${value.getClass.getName}"}")

  // Scala 2.12 has no LazyList, so lazy sequences are recognized by name.
  private def isLazy(value: Any): Boolean = Iterator
    .iterate[Class[_]](value.getClass)(_.getSuperclass).takeWhile(_ != null)
    .exists(c => c.getName == "scala.collection.immutable.Stream" || c.getName == "scala.collection.immutable.LazyList")
}

/** Keeps few bytes in memory, and writes more than that to a file. */
private[jobserver] final class SpillingStream(path: Path) extends OutputStream {
  private val memory = new ByteArrayOutputStream()
  private var file: Option[OutputStream] = None

  /** All bytes, unless they are in the file. */
  def inMemory: Option[Array[Byte]] = if (file.isEmpty) Some(memory.toByteArray) else None

  override def write(byte: Int): Unit = target(1).write(byte)
  override def write(bytes: Array[Byte], offset: Int, length: Int): Unit = target(length).write(bytes, offset, length)
  override def flush(): Unit = file.foreach(_.flush())
  override def close(): Unit = file.foreach(_.close())

  private def target(more: Int): OutputStream = file.getOrElse {
    if (memory.size + more <= SpillingStream.MaxInMemory) memory
    else {
      val opened = new BufferedOutputStream(new FileOutputStream(path.toFile), 1 << 16)
      file = Some(opened)
      memory.writeTo(opened)
      memory.reset()
      opened
    }
  }
}

private[jobserver] object SpillingStream {
  val MaxInMemory: Int = 32 * 1024
}

/** Counts the written bytes, enforces a limit (0: no limit), and stops when the job is cancelled. */
private[jobserver] final class LimitedStream(out: OutputStream, maxBytes: Long, cancelled: () => Boolean)
  extends OutputStream {

  var written = 0L

  override def write(byte: Int): Unit = { count(1); out.write(byte) }
  override def write(bytes: Array[Byte], offset: Int, length: Int): Unit = {
    count(length)
    out.write(bytes, offset, length)
  }
  override def flush(): Unit = out.flush()
  override def close(): Unit = out.close()

  private def count(length: Int): Unit = {
    if (cancelled()) throw new InterruptedException("the job was cancelled while its result was written")
    written += length
    if (maxBytes > 0 && written > maxBytes) {
      throw new ResultRefused(s"the result is larger than the limit of $maxBytes bytes")
    }
  }
}
