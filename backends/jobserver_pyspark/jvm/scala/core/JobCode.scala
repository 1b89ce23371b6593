package org.apache.spark.sql.jobserver

import java.io.File
import java.lang.reflect.{Field, Modifier}
import java.net.URI
import java.util.{ArrayDeque, Collections, IdentityHashMap}
import java.util.concurrent.Executor

import scala.util.Try

import org.apache.spark.SparkContext

/** Distinguishes code of jobs and of their contexts' jars from code of Spark, the JDK and the server. */
private[jobserver] object JobCode {
  private val spark = locationOf(classOf[SparkContext]).map(jar => jar.substring(0, jar.lastIndexOf('/') + 1))
  private val server = locationOf(getClass)

  def isForeign(cls: Class[_]): Boolean =
    cls.getClassLoader != null && cls.getClassLoader != ClassLoader.getPlatformClassLoader &&
      locationOf(cls).exists(place => !spark.exists(place.startsWith) && !server.contains(place))

  def isForeign(frame: StackTraceElement, loader: ClassLoader): Boolean =
    Try(Class.forName(frame.getClassName, false, loader)).toOption.exists(isForeign)

  /** The name of a class, or of the class whose source contains it if it is a lambda. */
  def writtenIn(cls: Class[_]): String = cls.getName.split("\\$\\$Lambda", 2).head

  /** The file of a class. */
  def fileOf(cls: Class[_]): Option[File] =
    locationOf(cls).flatMap(place => Try(new File(new URI(place)).getCanonicalFile).toOption)

  private def locationOf(cls: Class[_]): Option[String] =
    Option(cls.getProtectionDomain.getCodeSource).flatMap(source => Option(source.getLocation)).map(_.toString)
}

/**
 * The classes of one job's jars. What runs in a class that another running job has too may be that job's. The methods
 * that begin with `may` accept it, the others do not.
 *
 * @param loader the job's class loader
 * @param includes whether a class of this name is in the job's jars
 * @param isShared whether another running job has a class of this name
 */
private[jobserver] final class OwnCode(
    val loader: ClassLoader, includes: String => Boolean, isShared: String => Boolean) {
  def has(cls: Class[_]): Boolean = !isShared(JobCode.writtenIn(cls)) && mayHave(cls)

  def mayHave(cls: Class[_]): Boolean = {
    val name = JobCode.writtenIn(cls)
    includes(name) && JobCode.isForeign(cls) &&
      Try(Class.forName(name, false, loader)).toOption.exists(_.getClassLoader eq cls.getClassLoader)
  }

  def runsIn(frames: Array[StackTraceElement]): Boolean =
    frames.exists(frame => !isShared(frame.getClassName) && isOwn(frame))

  /** A stack with a class that only another job has is that job's. */
  def mayRunIn(frames: Array[StackTraceElement]): Boolean = frames.exists(isOwn) &&
    !frames.map(_.getClassName).exists(name => isShared(name) && !includes(name))

  private def isOwn(frame: StackTraceElement): Boolean =
    includes(frame.getClassName) && JobCode.isForeign(frame, loader)

  /** Whether a pending task is the job's. Futures and executors wrap it in objects of their own, many deep. */
  def isIn(task: AnyRef): Boolean = contains(task, has)

  def mayBeIn(task: AnyRef): Boolean = contains(task, mayHave)

  private def contains(task: AnyRef, isWanted: Class[_] => Boolean): Boolean = {
    val seen = Collections.newSetFromMap(new IdentityHashMap[AnyRef, java.lang.Boolean])
    val open = new ArrayDeque[AnyRef](Collections.singleton(task))
    var found = false
    while (!found && !open.isEmpty && seen.size < OwnCode.Deepest) {
      val next = open.remove()
      found = isWanted(next.getClass)
      if (seen.add(next) && OwnCode.wraps(next)) Fields.all(next).foreach(open.add)
    }
    found
  }
}

private object OwnCode {
  private val Deepest = 200

  /** An executor knows the tasks of all jobs, so the search does not go through it. */
  private def wraps(value: AnyRef): Boolean =
    Seq("java.util.concurrent.", "scala.concurrent.").exists(value.getClass.getName.startsWith) &&
      !value.isInstanceOf[Executor] && !value.isInstanceOf[Thread] && !value.isInstanceOf[java.util.Collection[_]]
}

/** Private fields of JDK classes: the only way to see the pending tasks of a timer or a pool. */
private object Fields {
  def get(target: AnyRef, name: String): Option[AnyRef] =
    field(target, name).flatMap(found => Try { found.setAccessible(true); found.get(target) }.toOption).flatMap(Option(_))

  /** The values of all fields that are objects. */
  def all(target: AnyRef): Iterator[AnyRef] = fields(target)
    .filter(field => !Modifier.isStatic(field.getModifiers) && !field.getType.isPrimitive)
    .flatMap(field => Try { field.setAccessible(true); field.get(target) }.toOption).filter(_ != null)

  def set(target: AnyRef, name: String, value: AnyRef): Unit = field(target, name).foreach { found =>
    found.setAccessible(true)
    found.set(target, value)
  }

  def call(target: AnyRef, name: String): Unit = {
    val method = target.getClass.getDeclaredMethod(name)
    method.setAccessible(true)
    method.invoke(target)
  }

  /** Makes the fields and methods of a package of the JDK accessible here, without an option of the JVM. */
  def open(cls: Class[_]): Unit = {
    val method = classOf[Module].getDeclaredMethod("implAddOpens", classOf[String], classOf[Module])
    method.setAccessible(true)
    method.invoke(cls.getModule, cls.getPackageName, getClass.getModule)
  }

  private def field(target: AnyRef, name: String): Option[Field] = fields(target).find(_.getName == name)

  private def fields(target: AnyRef): Iterator[Field] =
    Iterator.iterate[Class[_]](target.getClass)(_.getSuperclass).takeWhile(_ != null).flatMap(_.getDeclaredFields)
}
