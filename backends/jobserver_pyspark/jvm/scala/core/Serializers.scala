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
 * Allows a job's own classes in broadcasts, shuffles, cached blocks and results.
 *
 * An executor deserializes those with one class loader for all sessions, which does not know the classes of jobs. Without
 * this fixed loader, Spark uses the running task's loader, which is the right one. (A loader that merely delegates would
 * not work: the JVM caches the classes of a loader, and would silently use the first version of a class as the second.)
 *
 * Kryo needs more. Spark pools its instances, because they are expensive. But each instance keeps the class loader of the
 * thread that created it, and the classes that it has seen. So an instance created for one job could deserialize another
 * job's data, or outlive a class path that was uploaded again. To prevent this, there is a pool for each class loader.
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

  /** Marks all executors as unprepared, because there are new jars for all class paths that they have not loaded. */
  def prepareAnew(): Unit = prepared.clear()

  /**
   * Prepares new executors by running a tiny task on each.
   *
   * The task carries the jars of the whole context. An executor keeps them in the parent of all session loaders, where
   * classes of the context's jars find the job API.
   */
  def prepareExecutors(): Unit = if (!context.isLocal) {
    val fresh = executors.filterNot { case (id, _) => prepared.contains(id) }
    if (fresh.nonEmpty) {
      val places = fresh.map { case (id, host) => (id, Seq(s"executor_${host}_$id")) }
      context.setLocalProperty(Isolation.AllClassPathsProperty, "true")
      try context.makeRDD(places).map(Serializers.prepareHere).collect().foreach(prepared.add)
      finally context.setLocalProperty(Isolation.AllClassPathsProperty, null)
    }
  }

  /** Prepares an executor that is added while jobs run. Waiting for the next job would be too late for their tasks. */
  private def prepareLate(): Unit = {
    val thread = new Thread(() => try prepareExecutors() catch {
      case NonFatal(_) if context.isStopped =>
      case NonFatal(error) => error.printStackTrace() // retried by the next job
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
    // `protected` in Scala is public in byte code. There is no other way to remove a default loader.
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
    // Does not match on the class, because each session of an executor loads its own copy of this code.
    if (current.get(wrapper).getClass.getName != classOf[LoaderPools].getName)
      current.set(wrapper, new LoaderPools(() => serializer.newKryo()))
  }
}

/** A pool of Kryo instances for each class loader. Both can be garbage-collected when they are no longer needed. */
private[jobserver] final class LoaderPools(make: () => Kryo) extends KryoPool {
  private val pools = Collections.synchronizedMap(new WeakHashMap[ClassLoader, KryoPool]())

  override def borrow(): Kryo = poolOf(Thread.currentThread.getContextClassLoader).borrow()
  override def release(kryo: Kryo): Unit = poolOf(kryo.getClassLoader).release(kryo)
  override def run[T](callback: KryoCallback[T]): T = {
    val kryo = borrow()
    try callback.execute(kryo) finally release(kryo)
  }

  // Soft references, because a value of this map with a strong reference to its key would prevent its collection.
  private def poolOf(loader: ClassLoader): KryoPool =
    pools.computeIfAbsent(loader, _ => new KryoPool.Builder(() => make()).softReferences().build())
}
