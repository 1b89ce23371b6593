package org.apache.spark.sql.jobserver

import org.apache.spark.sql.SparkSession

/** What a job needs of the code of its class path. While the job holds it, that code stays loaded. */
trait CodeLease {
  def session: SparkSession
  def loader: ClassLoader

  /** Identifies the loader for [[Isolation.loaderOf]]. */
  def id: String

  /** Runs `body` so that the driver and the executors see this class path's code. */
  def within[T](body: => T): T

  /** Must be called when the job has ended. */
  def release(): Unit

  /** Reloads the code for the next job, because state that it keeps between jobs, such as thread pools, is broken. */
  def reloadNextTime(): Unit = ()
}

/** Isolates the code of different class paths in one context. */
trait Isolation {
  /** Leases the code of a job's class path, and loads it if necessary. The job must release it. */
  def lease(request: JobRequest): CodeLease

  /** Jars that all class paths see: the runner's own, and the job API's. */
  def addLibraries(jars: Seq[JobJar]): Unit

  /** The loader of a lease, by its ID, or None if it no longer exists. */
  def loaderOf(id: String): Option[ClassLoader]

  def close(): Unit
}

private[jobserver] object Isolation {
  /** The local property that carries the ID of a job's loader to its tasks, and so to the threads that receive their results. */
  val ClassPathProperty = "jobserver.classpath"

  /** The local property of tasks that prepare an executor for all class paths, and so need the jars of none. */
  val AllClassPathsProperty = "jobserver.forAll"

  /** The local property that carries a job's id to the threads, streams and tasks that it starts. */
  val JobProperty = "jobserver.job"
}
