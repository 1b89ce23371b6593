package org.apache.spark.sql.jobserver

import java.util.concurrent.ConcurrentHashMap


import org.apache.spark.{SparkContext, SparkEnv}
import org.apache.spark.serializer.Serializer

/**
 * Lets broadcasts and cached blocks hold a job's own classes.
 *
 * An executor reads those with one class loader for all sessions, which knows no job's classes. Without that fixed
 * loader Spark takes the running task's, which is the right one. (A loader that merely delegates would not do: the JVM
 * remembers what a loader answered, and the second version of a class would silently be the first.)
 */
private[jobserver] final class Serializers(context: SparkContext) {
  private val prepared = ConcurrentHashMap.newKeySet[String]()

  def prepareDriver(): Unit = Serializers.useTaskLoader()

  /** Prepares executors that were not seen before: one tiny task on each, when there are any. */
  def prepareExecutors(): Unit = if (!context.isLocal) {
    val fresh = executors.filterNot { case (id, _) => prepared.contains(id) }
    if (fresh.nonEmpty) {
      val places = fresh.map { case (id, host) => (id, Seq(s"executor_${host}_$id")) }
      context.makeRDD(places).map(Serializers.prepareHere).collect().foreach(prepared.add)
    }
  }

  private def executors: Seq[(String, String)] =
    context.env.blockManager.master.getMemoryStatus.keys.filterNot(_.isDriver).map(b => (b.executorId, b.host)).toSeq
}

private[jobserver] object Serializers {
  val prepareHere: String => String = _ => {
    useTaskLoader()
    SparkEnv.get.executorId
  }

  def useTaskLoader(): Unit = {
    // `protected` in Scala is public in byte code; there is no other way to take a default loader back.
    val setter = classOf[Serializer].getMethod("defaultClassLoader_$eq", classOf[Option[_]])
    setter.invoke(SparkEnv.get.serializer, None)
  }
}
