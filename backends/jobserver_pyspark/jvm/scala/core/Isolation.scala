package org.apache.spark.sql.jobserver

import org.apache.spark.sql.SparkSession

/** The environment for the code of one class path, while a job of it runs. */
trait CodeHome {
  def session: SparkSession
  def loader: ClassLoader

  /** Runs `body` so that the driver and the executors see this class path's code. */
  def within[T](body: => T): T

  /** Must be called when the job has ended. */
  def leave(): Unit

  /** Reloads the code for the next job, because state that it keeps between jobs, such as thread pools, is broken. */
  def retire(): Unit = ()
}

/** Isolates the code of different class paths in one context. */
trait Isolation {
  /** The environment of a job's class path. The job must `leave` it. */
  def enter(request: JobRequest): CodeHome

  /** Jars that all class paths see: the runner's own, and the job API's. */
  def addLibraries(jars: Seq[JobJar]): Unit

  /** The loader of a class path, by its key, or None if it no longer exists. */
  def loaderOf(key: String): Option[ClassLoader]

  def close(): Unit
}

private[jobserver] object Isolation {
  /** The local property that carries a class path's key to the threads that receive its tasks' results. */
  val Property = "jobserver.classpath"

  /** The local property of tasks that executors run for all class paths, and so without any. */
  val ForAll = "jobserver.forAll"

  /** The local property that carries a job's id to the threads, streams and tasks that it starts. */
  val JobProperty = "jobserver.job"
}
