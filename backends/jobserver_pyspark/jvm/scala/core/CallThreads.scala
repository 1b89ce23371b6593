package org.apache.spark.sql.jobserver

import java.io.File
import java.lang.ref.WeakReference
import java.util.Properties
import java.util.concurrent.{Future, ThreadPoolExecutor, TimeUnit}

import scala.collection.JavaConverters._
import scala.collection.mutable
import scala.util.Try

import org.apache.spark.SparkContext

/**
 * The threads that a Python job's calls have started in this JVM, if they run code of the context's jars. The host makes
 * one when it kills the job.
 *
 * The calls of a job run on threads that also serve other jobs, one after the other. So the job has no thread group, as
 * JVM jobs do. Instead, a thread inherits the tag of the process that called, and has a higher ID than all threads that
 * began before the job. A thread that inherits nothing, as many of the JDK do, is at least in the thread group of the
 * process. Threads of Spark inherit the tag too, so only those that run code of the jars count, as in [[JobThreads]].
 *
 * All Python jobs share the classes of these jars, which are loaded only once. So a pool may be in a static field, and later
 * jobs need it. Therefore its tasks and threads are ended, but it can start new ones. Only a pool that keeps getting tasks
 * is shut down. If a pool has threads of another running job too, it is unknown whose its tasks are: they are neither ended
 * nor ignored.
 *
 * @param tag the local property [[Isolation.JobProperty]] of the process
 * @param newest the ID of the newest thread that began before the job
 * @param jars the paths of the jars, in lines
 * @param loader the class loader in which the job's calls find these jars
 */
final class CallThreads(spark: SparkContext, tag: String, newest: Long, jars: String, loader: ClassLoader) {
  import CallThreads._

  private val begun = System.nanoTime
  private val files = jars.split('\n').map(path => new File(path).getCanonicalFile).toSet
  private val emptied = mutable.Map.empty[ThreadPoolExecutor, Before]
  private val known = mutable.Map.empty[String, Boolean]

  /**
   * Tries once to end all of them. Returns why that may have failed, as a clause; an empty string if nothing was left.
   *
   * @param others the tags of other running jobs, in lines
   */
  def end(others: String): String = {
    val running = others.split('\n').filter(_.nonEmpty).toSet
    val code = new OwnCode(loader, includes, name => running.nonEmpty && includes(name))
    val own = JobThreads.running(members, code.mayHave, code.mayRunIn) ++ members.filter(JobThreads.isHttpClient)
    val (single, pooled) = own.partition(poolOf(_).isEmpty)
    single.foreach(JobThreads.cancelTimer)
    single.foreach(_.interrupt())
    for ((pool, workers) <- pooled.groupBy(poolOf(_).get) if !ownersOf(pool).exists(running)) {
      empty(pool, code)
      workers.foreach(_.interrupt())
    }
    val left = own.headOption.orElse(members.find(poolOf(_).exists(emptied.contains)))
    val served = JobThreads.endServers(members)
    val shared = Seq(new JobChannels(code).end(), new SharedPools(code).end()).contains(true)
    if (left.nonEmpty) s"its thread ${left.get.getName} ignores interrupts, or is of a pool that another running job uses"
    else if (served) "its HTTP server does not stop"
    else if (shared) "work in a pool that all jobs share may be its own"
    else {
      emptied.foreach { case (pool, before) => setIdleTime(pool, before.ofCore, before.idleNs) }
      ""
    }
  }

  private def members: Seq[Thread] = threads.filter { thread =>
    thread.getId > newest && !SharedPools.isWorker(thread) &&
      ownerOf(thread).fold(Option(thread.getThreadGroup).exists(_.getName == tag))(_ == tag)
  }

  private def ownerOf(thread: Thread): Option[String] = for {
    locals <- Fields.get(thread, "inheritableThreadLocals")
    table <- Fields.get(locals, "table")
    entry <- table.asInstanceOf[Array[WeakReference[AnyRef]]]
      .find(entry => entry != null && (entry.get eq spark.localProperties))
    properties <- Fields.get(entry, "value")
    owner <- Option(properties.asInstanceOf[Properties].getProperty(Isolation.JobProperty))
  } yield owner

  /** The tags of the jobs that have started a pool's threads. */
  private def ownersOf(pool: ThreadPoolExecutor): Seq[String] =
    threads.filter(poolOf(_).contains(pool)).flatMap(ownerOf(_))

  private def includes(name: String): Boolean =
    known.getOrElseUpdate(name, Try(Class.forName(name, false, loader)).toOption.flatMap(JobCode.fileOf).exists(files))

  /** Removes a pool's tasks, and lets its threads end once they are idle. In a pool of Spark, only the tasks of the jars. */
  private def empty(pool: ThreadPoolExecutor, code: OwnCode): Unit = {
    val factory = pool.getThreadFactory.getClass
    val ofSpark = factory.getClassLoader != null && !code.mayHave(factory)
    pool.getQueue.asScala.toList.filter(task => !ofSpark || code.mayBeIn(task)).foreach { task =>
      pool.remove(task)
      task match {
        case future: Future[_] => future.cancel(true) // for those who wait for it
        case _ =>
      }
    }
    if (!ofSpark) {
      val before = emptied.getOrElseUpdate(pool, new Before(pool))
      setIdleTime(pool, ofCore = true, ShortNs)
      // Of the tasks since then, only as many as it has threads had begun before.
      val getsTasks = pool.getCompletedTaskCount - before.completed > pool.getLargestPoolSize
      if (getsTasks && System.nanoTime - begun > PatienceNs) pool.shutdownNow()
    }
  }
}

private object CallThreads {
  private val PatienceNs = TimeUnit.SECONDS.toNanos(1)
  private val ShortNs = TimeUnit.MILLISECONDS.toNanos(1)

  /** What a pool was like before its tasks were removed. */
  private final class Before(pool: ThreadPoolExecutor) {
    val completed: Long = pool.getCompletedTaskCount
    val ofCore: Boolean = pool.allowsCoreThreadTimeOut
    val idleNs: Long = pool.getKeepAliveTime(TimeUnit.NANOSECONDS)
  }

  /** Sets after how long a pool ends idle threads, and whether it ends its core threads, too. */
  private def setIdleTime(pool: ThreadPoolExecutor, ofCore: Boolean, ns: Long): Unit = {
    pool.allowCoreThreadTimeOut(false) // any time is valid then
    pool.setKeepAliveTime(ns, TimeUnit.NANOSECONDS)
    pool.allowCoreThreadTimeOut(ofCore)
  }

  private def threads: Seq[Thread] = Thread.getAllStackTraces.keySet.asScala.toSeq

  private def poolOf(thread: Thread): Option[ThreadPoolExecutor] = JobThreads.poolOf(JobThreads.targetOf(thread))
}
