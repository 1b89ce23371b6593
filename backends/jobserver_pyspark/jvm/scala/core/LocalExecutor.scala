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
 * There a broadcast is not copied: a task is handed the driver's very object. Its class must be the one that the task
 * knows by that name, so the executor is told to take a class path's classes from the driver's loader of them, rather
 * than to load them anew. Spark offers no way to say so: its executor is found and told by reflection.
 */
private[jobserver] final class LocalExecutor private (executor: AnyRef) {
  import LocalExecutor.call

  /** Tasks of this session use this loader, which has these of the session's jars. */
  def useForSession(state: JobArtifactState, loader: ClassLoader, jars: collection.Map[String, Long]): Unit = {
    val cache = call(executor, "isolatedSessionCache")
    val known = call(cache, "getIfPresent", state.uuid)
    if (known == null || (call(known, "replClassLoader") ne loader)) {
      val made = call(executor, "org$apache$spark$executor$Executor$$newSessionState", state)
      adopt(made, loader, jars)
      call(cache, "put", state.uuid, made)
    }
  }

  /** Tasks of no session look into this loader first, which has these of the context's jars. */
  def useForAll(loader: ClassLoader, jars: collection.Map[String, Long]): Unit = {
    val state = call(executor, "defaultSessionState")
    val all = call(state, "replClassLoader") match {
      case mine: FirstOf => mine
      case other: ClassLoader => new FirstOf(loader, other)
    }
    adopt(state, all, jars)
  }

  /** The executor makes a new loader when it meets a jar that it does not know: it is told that it knows them. */
  private def adopt(state: AnyRef, loader: ClassLoader, jars: collection.Map[String, Long]): Unit = {
    call(state, "currentJars").asInstanceOf[mutable.HashMap[String, Long]] ++= jars
    call(state, "replClassLoader_$eq", loader)
  }
}

/** Looks into one loader, then into another. */
private final class FirstOf(first: ClassLoader, second: ClassLoader) extends ClassLoader(first) {
  override def findClass(name: String): Class[_] = second.loadClass(name)
}

private[jobserver] object LocalExecutor {
  /** None for masters whose executors are processes of their own. */
  def of(context: SparkContext): Option[LocalExecutor] = if (!context.isLocal) None else {
    val dispatcher = call(context.env.rpcEnv, "dispatcher")
    val endpoints = call(dispatcher, "endpointRefs").asInstanceOf[JMap[AnyRef, AnyRef]]
    endpoints.keySet.asScala.find(_.getClass.getName == "org.apache.spark.scheduler.local.LocalEndpoint")
      .map(call(_, "org$apache$spark$scheduler$local$LocalEndpoint$$executor"))
      .map(new LocalExecutor(_))
  }

  private def call(owner: AnyRef, name: String, arguments: AnyRef*): AnyRef = {
    val method = known.computeIfAbsent((owner.getClass, name, arguments.size), _ => find(owner.getClass, name, arguments.size))
    method.invoke(owner, arguments: _*)
  }

  /** Every job asks for the same few methods, and to look one up means to list all of its class. */
  private val known = new ConcurrentHashMap[(Class[_], String, Int), Method]()

  private def find(owner: Class[_], name: String, count: Int): Method = {
    val method = methods(owner).find(m => m.getName == name && m.getParameterCount == count)
      .getOrElse(throw new IllegalStateException(s"this version of Spark is not known: ${owner.getName} has no $name"))
    (method: AccessibleObject).setAccessible(true)
    method
  }

  // A class that is not public hides its public methods: those of its public parents come first.
  private def methods(owner: Class[_]): Seq[Method] = {
    val parents = Iterator.iterate[Class[_]](owner)(_.getSuperclass).takeWhile(_ != null).toList
    val all = parents.flatMap(c => c +: c.getInterfaces).distinct
    all.flatMap(_.getDeclaredMethods)
      .sortBy(m => if (java.lang.reflect.Modifier.isPublic(m.getDeclaringClass.getModifiers)) 0 else 1)
  }
}
