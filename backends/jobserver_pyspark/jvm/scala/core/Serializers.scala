package org.apache.spark.sql.jobserver

import java.util.{Collections, WeakHashMap}
import java.util.concurrent.ConcurrentHashMap

import scala.util.control.NonFatal

import com.esotericsoftware.kryo.Kryo
import com.esotericsoftware.kryo.pool.{KryoCallback, KryoPool}

import org.apache.spark.{SparkContext, SparkEnv}
import org.apache.spark.scheduler.{SparkListener, SparkListenerBlockManagerAdded}
import org.apache.spark.serializer.{KryoSerializer, Serializer}

/**
 * Lets broadcasts, shuffles, cached blocks and results hold a job's own classes.
 *
 * An executor reads those with one class loader for all sessions, which knows no job's classes. Without that fixed
 * loader Spark takes the running task's, which is the right one. (A loader that merely delegates would not do: the JVM
 * remembers what a loader answered, and the second version of a class would silently be the first.)
 *
 * Kryo needs more. Its instances are expensive, so Spark keeps them in a pool; but each remembers the loader of the
 * thread that made it, and classes that it met. Without care an instance made for one job would read another job's
 * data, or outlive a class path that was uploaded anew. So there is a pool for each class loader.
 */
private[jobserver] final class Serializers(context: SparkContext) {
  private val prepared = ConcurrentHashMap.newKeySet[String]()

  def prepareDriver(): Unit = {
    Serializers.useTaskLoader()
    if (!context.isLocal) context.addSparkListener(new SparkListener {
      override def onBlockManagerAdded(added: SparkListenerBlockManagerAdded): Unit =
        if (!added.blockManagerId.isDriver) prepareLate()
    })
  }

  /** Forgets which executors are prepared: there are jars that every class path sees and they have not loaded. */
  def prepareAnew(): Unit = prepared.clear()

  /**
   * Prepares executors that were not seen before: one tiny task on each, when there are any.
   *
   * The task carries the jars of the whole context. An executor keeps those in the loader that is the parent of each
   * session's, where classes of the context's jars find the job API.
   */
  def prepareExecutors(): Unit = if (!context.isLocal) {
    val fresh = executors.filterNot { case (id, _) => prepared.contains(id) }
    if (fresh.nonEmpty) {
      val places = fresh.map { case (id, host) => (id, Seq(s"executor_${host}_$id")) }
      context.makeRDD(places).map(Serializers.prepareHere).collect().foreach(prepared.add)
    }
  }

  /** An executor that comes while jobs run: the next job would be too late for their tasks. */
  private def prepareLate(): Unit = {
    val thread = new Thread(() => try prepareExecutors() catch {
      case NonFatal(_) if context.isStopped =>
      case NonFatal(error) => error.printStackTrace() // the next job tries again
    }, "prepare-executors")
    thread.setDaemon(true)
    thread.start()
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
    val serializer = SparkEnv.get.serializer
    // `protected` in Scala is public in byte code; there is no other way to take a default loader back.
    classOf[Serializer].getMethod("defaultClassLoader_$eq", classOf[Option[_]]).invoke(serializer, None)
    serializer match {
      case kryo: KryoSerializer => useLoaderPools(kryo)
      case _ =>
    }
  }

  private def useLoaderPools(serializer: KryoSerializer): Unit = {
    val wrapper = serializer.pool
    val current = wrapper.getClass.getDeclaredField("pool")
    current.setAccessible(true)
    // Not a match on the class: on an executor each session loads this code for itself.
    if (current.get(wrapper).getClass.getName != classOf[LoaderPools].getName)
      current.set(wrapper, new LoaderPools(() => serializer.newKryo()))
  }
}

/** A pool of Kryo instances for each class loader; both may be collected when nothing else needs them. */
private[jobserver] final class LoaderPools(make: () => Kryo) extends KryoPool {
  private val pools = Collections.synchronizedMap(new WeakHashMap[ClassLoader, KryoPool]())

  override def borrow(): Kryo = poolOf(Thread.currentThread.getContextClassLoader).borrow()
  override def release(kryo: Kryo): Unit = poolOf(kryo.getClassLoader).release(kryo)
  override def run[T](callback: KryoCallback[T]): T = {
    val kryo = borrow()
    try callback.execute(kryo) finally release(kryo)
  }

  // The instances are held softly: a value of this map that held its key would keep it for ever.
  private def poolOf(loader: ClassLoader): KryoPool =
    pools.computeIfAbsent(loader, _ => new KryoPool.Builder(() => make()).softReferences().build())
}
