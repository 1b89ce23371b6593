package org.apache.spark.sql.jobserver

import java.lang.reflect.{InvocationTargetException, Method, Modifier}
import java.util.{LinkedHashMap => JLinkedHashMap, Map => JMap}

import scala.collection.JavaConverters._

import com.fasterxml.jackson.databind.ObjectMapper

/** A job whose class was recognized. It can validate its configuration, and then run. */
trait RunnableJob {
  /** Returns the job's data for `run`. Throws [[ValidationRefused]]. */
  def validate(): Any
  def run(data: Any): Any
}

/** Recognizes the classes of one job API. */
trait JobApi {
  /** Returns the job, or None if the class is not of this API. Throws [[WrongKindOfJob]] for the wrong context type. */
  def recognize(candidate: AnyRef, context: JobContext): Option[RunnableJob]
}

/**
 * Recognizes jobs by the signatures of their methods, using reflection. Such jobs depend only on Spark.
 *
 * Supported are `runJob(context, config)` and `runJob(context, runtime, data)`, with an optional `validate` with the same
 * first parameters, and a plain `main(String[])`.
 */
private[jobserver] object ReflectiveJobs extends JobApi {

  override def recognize(candidate: AnyRef, context: JobContext): Option[RunnableJob] =
    runMethods(candidate.getClass) match {
      case Nil => None
      case methods =>
        val fitting = methods.filter(method => context.contextFor(method.getParameterTypes.head).isDefined)
        val method = fitting.headOption.getOrElse(throw new WrongKindOfJob(
          s"${candidate.getClass.getName}.runJob takes a ${methods.head.getParameterTypes.head.getName}, " +
            s"which a context of type '${context.contextType}' does not have"))
        Some(new ReflectiveJob(candidate, method, context))
    }

  /** A plain application with a static `main`, or the `main` of a Scala object. */
  def application(cls: Class[_], context: JobContext): Option[RunnableJob] =
    cls.getMethods.find { method =>
      method.getName == "main" && Modifier.isStatic(method.getModifiers) &&
        method.getParameterTypes.toSeq == Seq(classOf[Array[String]])
    }.map(new Application(_, context))

  private def runMethods(cls: Class[_]): List[Method] = cls.getMethods.toList.filter { method =>
    method.getName == "runJob" && !method.isBridge && Set(2, 3).contains(method.getParameterCount)
  }.sortBy(method => method.getParameterTypes.count(_ == classOf[Object]))

  private[jobserver] def invoke(target: AnyRef, method: Method, arguments: AnyRef*): AnyRef =
    try {
      method.setAccessible(true)
      method.invoke(target, arguments: _*)
    } catch { case error: InvocationTargetException => throw error.getCause }
}

private final class ReflectiveJob(job: AnyRef, runMethod: Method, context: JobContext) extends RunnableJob {
  import ReflectiveJobs.invoke

  private val types = runMethod.getParameterTypes
  private val handed = context.contextFor(types.head).get

  override def validate(): Any = validateMethod match {
    case None => JobConfig.as(types.last, context.configJson)
    case Some(method) =>
      val parameters = method.getParameterTypes
      val config = JobConfig.as(parameters.last, context.configJson)
      val said =
        try invoke(job, method, arguments(config)(parameters.length): _*)
        catch { case refusal: IllegalArgumentException => throw new ValidationRefused(refusal) }
      dataFrom(said, method, config)
  }

  override def run(data: Any): Any = invoke(job, runMethod, arguments(data.asInstanceOf[AnyRef])(types.length): _*)

  private def arguments(last: AnyRef)(count: Int): Seq[AnyRef] =
    if (count == 2) Seq(handed, last) else Seq(handed, runtime, last)

  private def validateMethod: Option[Method] = job.getClass.getMethods.find { method =>
    method.getName == "validate" && !method.isBridge && method.getParameterCount == types.length &&
      method.getParameterTypes.head.isInstance(handed)
  }

  /** The meaning of `validate` depends on its return type: a string rejects the job, a boolean accepts or rejects it, and
   * any other value is the job's data. */
  private def dataFrom(said: AnyRef, method: Method, config: AnyRef): Any = {
    def refuse(why: String) = throw new ValidationRefused(new IllegalArgumentException(why))
    val declared = method.getReturnType
    if (declared == classOf[String]) {
      if (said != null && said.toString.nonEmpty) refuse(said.toString) else runConfig
    } else if (declared == java.lang.Boolean.TYPE || declared == classOf[java.lang.Boolean]) {
      if (said == java.lang.Boolean.FALSE) refuse("the job's validation returned false") else runConfig
    } else if (declared == Void.TYPE) runConfig
    else if (said == null) runConfig
    else said
  }

  private def runConfig: Any = JobConfig.as(types.last, context.configJson)

  private def runtime: AnyRef = {
    val made = new JLinkedHashMap[String, AnyRef]()
    made.put("jobId", context.jobId)
    made.put("contextConfig", JobConfig.asMap(context.contextConfigJson))
    made.put("namedObjects", context.namedObjects)
    if (types(1).isAssignableFrom(classOf[JLinkedHashMap[_, _]])) made
    else throw new WrongKindOfJob(
      s"runJob's second parameter must be a java.util.Map, not a ${types(1).getName}: " +
        "only classes of the job API are handed a JobEnvironment")
  }
}

private final class Application(main: Method, context: JobContext) extends RunnableJob {
  override def validate(): Any = JobConfig.asMap(context.configJson).get("args") match {
    case null => Array.empty[String]
    case text: String => text.split("\\s+").filter(_.nonEmpty)
    case items: java.util.List[_] => items.asScala.map(String.valueOf(_: Any)).toArray
    case other => throw new ValidationRefused(
      new IllegalArgumentException(s"args must be a list or a string, not $other"))
  }

  override def run(arguments: Any): Any = {
    ReflectiveJobs.invoke(null, main, arguments.asInstanceOf[AnyRef])
    null
  }
}

/** Converts the job's configuration to the type of a parameter. */
private[jobserver] object JobConfig {
  private val mapper = new ObjectMapper()

  def asMap(json: String): JMap[String, AnyRef] =
    mapper.readValue(json, classOf[JLinkedHashMap[String, AnyRef]])

  /** A `java.util.Map`, a Typesafe `Config` (from the library that the job's class loader finds), or the JSON text. */
  def as(parameter: Class[_], json: String): AnyRef = parameter.getName match {
    case "com.typesafe.config.Config" =>
      val factory = Class.forName("com.typesafe.config.ConfigFactory", true, parameter.getClassLoader)
      ReflectiveJobs.invoke(null, factory.getMethod("parseString", classOf[String]), json)
    case "java.lang.String" => json
    case _ if parameter.isAssignableFrom(classOf[JLinkedHashMap[_, _]]) => asMap(json)
    case "scala.collection.immutable.Map" | "scala.collection.Map" => asMap(json).asScala.toMap
    case other => throw new WrongKindOfJob(
      s"the configuration can be a java.util.Map, a com.typesafe.config.Config or a String, not a $other")
  }
}
