package org.apache.spark.sql.jobserver

import java.util.{Map => JMap}

import scala.collection.JavaConverters._
import scala.concurrent.Await
import scala.concurrent.duration.Duration
import scala.util.{Failure, Success}
import scala.util.control.NonFatal

import com.fasterxml.jackson.databind.{DeserializationFeature, JsonNode, ObjectMapper}
import com.fasterxml.jackson.databind.node.{JsonNodeFactory, POJONode}

import org.apache.spark.api.java.JavaRDDLike
import org.apache.spark.broadcast.Broadcast
import org.apache.spark.rdd.RDD
import org.apache.spark.sql.{Dataset, KeyValueGroupedDataset, RelationalGroupedDataset, Row}
import org.apache.spark.sql.types.{DataType, Decimal, Metadata, StructField}
import org.apache.spark.streaming.api.java.JavaDStreamLike
import org.apache.spark.streaming.dstream.DStream
import org.apache.spark.util.AccumulatorV2

/**
 * Classifies the values of JVM jobs, from any library: the only table of conversions on the JVM.
 *
 * A job may return anything. Its value is converted step by step: [[ResultShape.of]] classifies only the outermost
 * value, and the writer of the result continues with the parts, and limits the depth. Three rules keep the table
 * correct:
 *
 *  - Some values are iterable although they are not collections: a `Path` yields itself, an `SQLException` its causes,
 *    an XML element itself. They come first, so that the rule for collections does not apply to them.
 *  - A job's jar may contain JSON or XML libraries, whose classes cannot be referenced here. They are recognized by the
 *    names of their ancestors. A value whose string is JSON is parsed and written as data.
 *  - All other values are converted to strings.
 */
private[jobserver] sealed trait ResultShape

private[jobserver] object ResultShape {
  case object Absent extends ResultShape
  final case class Truth(flag: Boolean) extends ResultShape
  final case class Quantity(number: Number) extends ResultShape
  final case class Text(text: String) extends ResultShape
  final case class Items(items: Iterator[_]) extends ResultShape

  /** Members of an object. `named` means that all keys are distinct strings, as those of a map may not be. */
  final case class Members(entries: Iterator[(Any, Any)], named: Boolean) extends ResultShape

  /** The value is converted to another value. */
  final case class Stand(value: Any) extends ResultShape

  /** Classifies a value. Throws [[ResultRefused]] for a distributed dataset or a future. */
  def of(value: Any): ResultShape = value match {
    case null | None | () => Absent
    case text: CharSequence => Text(text.toString)
    case flag: Boolean => Truth(flag)
    case number: Number => quantity(number)
    case Some(content) => Stand(content)
    case _ => notIterated(value)
  }

  private def notIterated(value: Any): ResultShape = value match {
    case shape: ResultShape => shape // of a part that this table has made, such as the row of a table
    case symbol: Symbol => Text(symbol.name)
    case _: Throwable | _: java.nio.file.Path | _: Enum[_] => Text(value.toString)
    case node: JsonNode => document(node)
    case handle @ (_: Dataset[_] | _: RDD[_] | _: JavaRDDLike[_, _] | _: DStream[_] | _: JavaDStreamLike[_, _, _] |
        _: RelationalGroupedDataset | _: KeyValueGroupedDataset[_, _]) => refuseDistributed(handle)
    case _: java.io.InputStream | _: java.io.Reader => throw new ResultRefused(
      s"a ${value.getClass.getName} inside a result cannot be read: return an InputStream alone, or its content")
    case _ => foreign(value).orElse(ofSpark(value)).orElse(wrapped(value)).getOrElse(collection(value))
  }

  private def refuseDistributed(handle: Any): Nothing = throw new ResultRefused(
    s"a job cannot return a distributed ${handle.getClass.getSimpleName}: return its rows, for example " +
      "collect() or take(n), or write it somewhere and return its location")

  // -- numbers ---------------------------------------------------------------------------------------------------

  private val MaxIntegerDigits = 4300
  private val MaxIntegerBits = java.math.BigInteger.TEN.pow(MaxIntegerDigits).bitLength - 1

  private def quantity(number: Number): ResultShape = number match {
    case n: java.lang.Double if n.isNaN || n.isInfinite => Text(n.toString)
    case n: java.lang.Float if n.isNaN || n.isInfinite => Text(n.toString)
    case n: java.math.BigInteger if n.bitLength > MaxIntegerBits => throw new ResultRefused(
      s"an integer of more than $MaxIntegerDigits digits is too long for most readers of JSON: return its string")
    case _: java.lang.Integer | _: java.lang.Long | _: java.lang.Double | _: java.lang.Float | _: java.lang.Short |
        _: java.lang.Byte | _: java.math.BigDecimal | _: java.math.BigInteger => Quantity(number)
    case n: BigDecimal => Quantity(n.bigDecimal)
    case n: BigInt => quantity(n.bigInteger)
    case other => // counters, adders and numbers of other libraries
      try Quantity(new java.math.BigDecimal(other.toString)) catch { case _: NumberFormatException => Text(other.toString) }
  }

  // -- values of Spark -------------------------------------------------------------------------------------------

  private def ofSpark(value: Any): Option[ResultShape] = Option(value).collect {
    case row: Row => ofRow(row)
    case field: StructField => Members(Iterator(
      "name" -> field.name, "type" -> field.dataType, "nullable" -> field.nullable, "metadata" -> field.metadata), true)
    case kind: DataType => json(kind.json)
    case metadata: Metadata => json(metadata.json)
    case decimal: Decimal => Quantity(decimal.toJavaBigDecimal)
    case accumulator: AccumulatorV2[_, _] => Stand(accumulator.value)
    case broadcast: Broadcast[_] => Stand(broadcast.value)
    case optional: org.apache.spark.api.java.Optional[_] => Stand(optional.orNull)
  }

  /** A row is an object with its columns as keys, or a list of values if column names are duplicate or missing. */
  private def ofRow(row: Row): ResultShape =
    Option(row.schema).map(_.fieldNames.toSeq).filter(names => names.distinct.size == names.size) match {
      case Some(names) => Members(names.iterator.zip(row.toSeq.iterator), named = true)
      case None => Items(row.toSeq.iterator)
    }

  // -- values around others, and times ---------------------------------------------------------------------------

  private def wrapped(value: Any): Option[ResultShape] = Option(value).collect {
    case option: java.util.Optional[_] => if (option.isPresent) Stand(option.get) else Absent
    case option: java.util.OptionalInt => if (option.isPresent) Stand(option.getAsInt) else Absent
    case option: java.util.OptionalLong => if (option.isPresent) Stand(option.getAsLong) else Absent
    case option: java.util.OptionalDouble => if (option.isPresent) Stand(option.getAsDouble) else Absent
    // Scala's own futures are AtomicReferences as well, to their state.
    case future: scala.concurrent.Future[_] => Stand(Await.result(future, Duration.Inf))
    case stage: java.util.concurrent.CompletionStage[_] => awaited(stage.toCompletableFuture)
    case future: java.util.concurrent.Future[_] => awaited(future)
    case reference: java.util.concurrent.atomic.AtomicReference[_] => Stand(reference.get)
    case reference: java.lang.ref.Reference[_] => Stand(reference.get)
    case flag: java.util.concurrent.atomic.AtomicBoolean => Truth(flag.get)
    case Left(content) => Members(Iterator("left" -> content), named = true)
    case Right(content) => Members(Iterator("right" -> content), named = true)
    case Success(content) => Members(Iterator("success" -> content), named = true)
    case Failure(error) => Members(Iterator("failure" -> error), named = true)
    case calendar: java.util.Calendar =>
      Text(calendar.toInstant.atZone(calendar.getTimeZone.toZoneId).toOffsetDateTime.toString)
    case date: java.util.Date if date.getClass == classOf[java.util.Date] => Text(date.toInstant.toString)
    case entry: JMap.Entry[_, _] => Items(Iterator(entry.getKey, entry.getValue))
    case values: java.util.concurrent.atomic.AtomicIntegerArray => indexed(0, values.length, values.get)
    case values: java.util.concurrent.atomic.AtomicLongArray => indexed(0, values.length, values.get)
    case values: java.util.concurrent.atomic.AtomicReferenceArray[_] => indexed(0, values.length, values.get)
    case buffer: java.nio.Buffer => ofBuffer(buffer)
  }

  private def indexed(from: Int, until: Int, get: Int => Any): ResultShape = Items((from until until).iterator.map(get))

  /** What is left to read in a buffer, without reading it. A buffer of characters is a text. */
  private def ofBuffer(buffer: java.nio.Buffer): ResultShape = indexed(buffer.position, buffer.limit, buffer match {
    case bytes: java.nio.ByteBuffer => bytes.get(_)
    case shorts: java.nio.ShortBuffer => shorts.get(_)
    case ints: java.nio.IntBuffer => ints.get(_)
    case longs: java.nio.LongBuffer => longs.get(_)
    case floats: java.nio.FloatBuffer => floats.get(_)
    case doubles: java.nio.DoubleBuffer => doubles.get(_)
  })

  private def awaited(future: java.util.concurrent.Future[_]): ResultShape =
    try Stand(future.get()) catch { case error: java.util.concurrent.ExecutionException => throw error.getCause }

  /** All properties, including defaults, which are not among the entries. */
  private def ofProperties(properties: java.util.Properties): ResultShape = {
    val names = properties.stringPropertyNames.asScala.toSeq
    val others = properties.entrySet.iterator.asScala.map(e => (e.getKey: Any, e.getValue: Any))
      .filterNot { case (key, _) => names.contains(key) }
    Members(names.iterator.map(name => (name, properties.getProperty(name))) ++ others, named = false)
  }

  // -- collections -----------------------------------------------------------------------------------------------

  private def collection(value: Any): ResultShape = value match {
    case map: scala.collection.Map[_, _] => Members(map.iterator, named = false)
    case properties: java.util.Properties => ofProperties(properties)
    case map: JMap[_, _] => Members(map.entrySet.iterator.asScala.map(e => (e.getKey, e.getValue)), named = false)
    case items: scala.collection.Iterable[_] => Items(items.iterator)
    case items: Iterator[_] => Items(items)
    case items: java.lang.Iterable[_] => Items(items.iterator.asScala)
    case items: java.util.Iterator[_] => Items(items.asScala)
    case items: java.util.Enumeration[_] => Items(items.asScala)
    case items: java.util.stream.BaseStream[_, _] => Items(items.iterator.asScala)
    case items: Array[_] => Items(items.iterator)
    case product: Product if product.productArity > 0 => Items(product.productIterator)
    case other: AnyRef if other.getClass.isRecord => ofRecord(other)
    case other => Option(other.toString).fold[ResultShape](Absent)(Text)
  }

  private def ofRecord(record: AnyRef): ResultShape =
    Members(record.getClass.getRecordComponents.iterator.map { component =>
      component.getName -> ReflectiveJobs.invoke(record, component.getAccessor)
    }, named = true)

  // -- values of libraries that only the job can name ------------------------------------------------------------

  private type Rule = AnyRef => ResultShape
  private val jsonText: Rule = value => json(value.toString)
  private def result(method: String): Rule = value => Stand(called(value, method))
  private def called(value: AnyRef, method: String): AnyRef =
    ReflectiveJobs.invoke(value, value.getClass.getMethod(method))

  private val rules: Map[String, Rule] = Map(
    "com.fasterxml.jackson.core.TreeNode" -> jsonText, // of a Jackson in the job's own jar
    "tools.jackson.core.TreeNode" -> jsonText,
    "org.codehaus.jackson.JsonNode" -> jsonText,
    "com.google.gson.JsonElement" -> jsonText,
    "org.json.JSONObject" -> jsonText,
    "org.json.JSONArray" -> jsonText,
    "javax.json.JsonValue" -> jsonText,
    "jakarta.json.JsonValue" -> jsonText,
    "play.api.libs.json.JsValue" -> jsonText,
    "spray.json.JsValue" -> jsonText,
    "io.circe.Json" -> jsonText,
    "ujson.Value" -> jsonText,
    "zio.json.ast.Json" -> jsonText,
    "org.json4s.JValue" -> ofJson4s,
    "org.json4s.JsonAST$JValue" -> ofJson4s,
    "org.apache.spark.unsafe.types.VariantVal" -> jsonText,
    "org.apache.spark.ml.linalg.Vector" -> result("toArray"),
    "org.apache.spark.ml.linalg.Matrix" -> result("rowIter"),
    "org.apache.spark.mllib.linalg.Vector" -> result("toArray"),
    "org.apache.spark.mllib.linalg.Matrix" -> result("rowIter"),
    "com.typesafe.config.Config" -> result("root"),
    "com.typesafe.config.ConfigValue" -> result("unwrapped"),
    "com.google.common.base.Optional" -> result("orNull"),
    "org.apache.spark.mllib.linalg.distributed.DistributedMatrix" -> refuseDistributed,
    "org.apache.spark.graphx.Graph" -> refuseDistributed,
    "org.apache.arrow.vector.ValueVector" -> (vector => Items(ofArrowVector(vector))), // its own iterator is empty
    "org.apache.arrow.vector.VectorSchemaRoot" -> ofArrowTable,
    "scala.collection.MapView" -> (view => Members(view.asInstanceOf[Iterable[(Any, Any)]].iterator, named = false)),
    "scala.xml.NodeSeq" -> (value => Text(value.toString)))

  /**
   * The rule for a class, by its name in [[rules]]; empty if there is none. The rule of the nearest ancestor applies. Fat
   * jars move libraries to other packages, so prefixes of a name are ignored.
   */
  private val ruled = new ClassValue[String] {
    override def computeValue(cls: Class[_]): String = ancestors(cls).map(_.getName).flatMap { name =>
      rules.keysIterator.find(known => name == known || name.endsWith("." + known))
    }.take(1).toList.headOption.getOrElse("")
  }

  private def ancestors(cls: Class[_]): Iterator[Class[_]] =
    if (cls == null) Iterator.empty
    else Iterator(cls) ++ cls.getInterfaces.iterator.flatMap(ancestors) ++ ancestors(cls.getSuperclass)

  private def foreign(value: Any): Option[ResultShape] =
    rules.get(ruled.get(value.getClass)).map(_(value.asInstanceOf[AnyRef]))

  private def ofArrowVector(vector: AnyRef): Iterator[Any] = {
    val get = vector.getClass.getMethod("getObject", classOf[Int])
    (0 until called(vector, "getValueCount").asInstanceOf[Int]).iterator
      .map(at => ReflectiveJobs.invoke(vector, get, Int.box(at)))
  }

  private def ofArrowTable(table: AnyRef): ResultShape = {
    val columns = called(table, "getFieldVectors").asInstanceOf[java.util.List[AnyRef]].asScala.toSeq
    val values = columns.map(column => (called(column, "getName"), ofArrowVector(column)))
    Items((0 until called(table, "getRowCount").asInstanceOf[Int]).iterator
      .map(_ => Members(values.iterator.map { case (name, column) => (name, column.next()) }, named = false)))
  }

  private def ofJson4s(value: AnyRef): ResultShape = value match {
    case empty: Product if empty.productArity == 0 => Absent // JNull and JNothing
    case fields: Product if fields.productPrefix == "JObject" =>
      Members(fields.productElement(0).asInstanceOf[Seq[(Any, Any)]].iterator, named = false)
    case other: Product => Stand(other.productElement(0))
  }

  // -- JSON ------------------------------------------------------------------------------------------------------

  private val mapper = new ObjectMapper()
    .enable(DeserializationFeature.USE_BIG_DECIMAL_FOR_FLOATS)
    .enable(DeserializationFeature.FAIL_ON_TRAILING_TOKENS)
    .setNodeFactory(JsonNodeFactory.withExactBigDecimals(true))

  /** Parses a JSON text. If it is not valid JSON, returns the text itself. */
  private def json(text: String): ResultShape =
    try Stand(mapper.readTree(text)) catch { case NonFatal(_) => Text(text) }

  private def document(node: JsonNode): ResultShape = node match {
    case holder: POJONode => Stand(holder.getPojo)
    case _ if node.isObject => Members(node.fieldNames.asScala.map(name => name -> node.get(name)), named = true)
    case _ if node.isArray => Items(node.elements.asScala)
    case _ if node.isNull || node.isMissingNode => Absent
    case _ if node.isBoolean => Truth(node.booleanValue)
    case _ if node.isNumber => quantity(node.numberValue)
    case _ => Text(node.asText)
  }

  // -- keys ------------------------------------------------------------------------------------------------------

  private val MaxKeyDepth = 100

  /** Converts a key of a map to a string: its JSON value, or the string of a collection. Throws [[ResultRefused]]. */
  def keyText(key: Any): String = keyText(key, 0)

  private def keyText(key: Any, depth: Int): String = {
    if (depth > MaxKeyDepth) throw new ResultRefused(
      s"a key of a map is nested more than $MaxKeyDepth levels deep, or contains itself")
    key match {
      case text: String => text
      case array: Array[_] => array.iterator.map(keyText(_, depth + 1)).mkString("[", ", ", "]")
      case _ => of(key) match {
        case Absent => "null"
        case Truth(flag) => flag.toString
        case Quantity(number) => number.toString
        case Text(text) => text
        case Stand(value) => keyText(value, depth + 1)
        case _ => key.toString
      }
    }
  }

  /** Converts the keys of all entries to strings. Throws [[ResultRefused]] if two keys become equal. */
  def distinct(members: Members): Iterator[(String, Any)] =
    if (members.named) members.entries.map { case (key, value) => (key.asInstanceOf[String], value) }
    else {
      val seen = scala.collection.mutable.HashMap.empty[String, Any]
      members.entries.map { case (key, value) =>
        val text = keyText(key)
        seen.put(text, key).foreach(other => throw new ResultRefused(
          s"""two keys of one map are both "$text" in JSON: a ${typeName(other)} and a ${typeName(key)}"""))
        (text, value)
      }
    }

  private def typeName(value: Any): String = if (value == null) "null" else value.getClass.getName
}
