package org.apache.spark.sql.jobserver

import java.lang.reflect.{AccessibleObject, Method}
import java.util.{Map => JMap}
import java.util.concurrent.ConcurrentHashMap

import scala.collection.JavaConverters._
import scala.collection.mutable

import org.apache.spark.{JobArtifactState, SparkContext}

/**
 * The executor of a `local` master, which lives in the driver's own JVM.
 *
 * It does not copy broadcasts: a task gets the driver's own object. So the task must use the same class as the driver,
 * and the executor must take the classes of a class path from the driver's class loader instead of loading them again.
 * Spark has no API for this, so the executor is found and configured by reflection.
 */
private[jobserver] final class LocalExecutor private (executor: AnyRef) {
  import LocalExecutor.call

  /** Makes tasks of this session use this loader, which has these jars of the session. */
  def useForSession(state: JobArtifactState, loader: ClassLoader, jars: collection.Map[String, Long]): Unit = {
    val cache = call(executor, "isolatedSessionCache")
    val known = call(cache, "getIfPresent", state.uuid)
    if (known == null || (call(known, "replClassLoader") ne loader)) {
      val made = call(executor, "org$apache$spark$executor$Executor$$newSessionState", state)
      adopt(made, loader, jars)
      call(cache, "put", state.uuid, made)
    }
  }

  /** Makes tasks without a session search this loader first, which has these jars of the context. */
  def useForAll(loader: ClassLoader, jars: collection.Map[String, Long]): Unit = {
    val state = call(executor, "defaultSessionState")
    val all = call(state, "replClassLoader") match {
      case mine: FirstOf => mine
      case other: ClassLoader => new FirstOf(loader, other)
    }
    adopt(state, all, jars)
  }

  /** Marks the jars as known. Otherwise, the executor would create a new loader for them. */
  private def adopt(state: AnyRef, loader: ClassLoader, jars: collection.Map[String, Long]): Unit = {
    call(state, "currentJars").asInstanceOf[mutable.HashMap[String, Long]] ++= jars
    call(state, "replClassLoader_$eq", loader)
  }
}

/** Searches one loader, then another. */
private final class FirstOf(first: ClassLoader, second: ClassLoader) extends ClassLoader(first) {
  override def findClass(name: String): Class[_] = second.loadClass(name)
}

private[jobserver] object LocalExecutor {
  /** None for masters whose executors are separate processes. */
  def of(context: SparkContext): Option[LocalExecutor] = if (!context.isLocal) None else {
    val dispatcher = call(context.env.rpcEnv, "dispatcher")
    val endpoints = call(dispatcher, "endpointRefs").asInstanceOf[JMap[AnyRef, AnyRef]]
    endpoints.keySet.asScala.find(_.getClass.getName == "org.apache.spark.scheduler.local.LocalEndpoint")
      .map(call(_, "org$apache$spark$scheduler$local$LocalEndpoint$$executor"))
      .map(new LocalExecutor(_))
  }

  private def call(target: AnyRef, name: String, arguments: AnyRef*): AnyRef = {
    val method = known.computeIfAbsent((target.getClass, name, arguments.size), _ => find(target.getClass, name, arguments.size))
    method.invoke(target, arguments: _*)
  }

  /** Caches methods, because every job needs the same few, and a look-up lists all methods of a class. */
  private val known = new ConcurrentHashMap[(Class[_], String, Int), Method]()

  private def find(cls: Class[_], name: String, count: Int): Method = {
    val method = methods(cls).find(m => m.getName == name && m.getParameterCount == count)
      .getOrElse(throw new IllegalStateException(s"this version of Spark is not known: ${cls.getName} has no $name"))
    (method: AccessibleObject).setAccessible(true)
    method
  }

  // Public methods of a non-public class are inaccessible, so prefer those of its public parents.
  private def methods(cls: Class[_]): Seq[Method] = {
    val parents = Iterator.iterate[Class[_]](cls)(_.getSuperclass).takeWhile(_ != null).toList
    val all = parents.flatMap(c => c +: c.getInterfaces).distinct
    all.flatMap(_.getDeclaredMethods)
      .sortBy(m => if (java.lang.reflect.Modifier.isPublic(m.getDeclaringClass.getModifiers)) 0 else 1)
  }
}
