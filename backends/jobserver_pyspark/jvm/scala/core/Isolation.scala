package org.apache.spark.sql.jobserver

import org.apache.spark.sql.SparkSession

/** Where one class path's code lives, for as long as a job of it runs. */
trait CodeHome {
  def session: SparkSession
  def loader: ClassLoader

  /** Runs `body` such that the driver and the executors see this class path's code. */
  def within[T](body: => T): T

  /** The job is over. */
  def leave(): Unit

  /** What the code keeps between jobs, such as pools of threads, is broken: the next job needs it loaded anew. */
  def spoil(): Unit = ()
}

/** How the code of different class paths is kept apart in one context. */
trait Isolation {
  /** The name by which the results of tasks find back to the code that they belong to. */
  def enter(request: JobRequest): CodeHome

  /** Jars that every class path sees: the runner's own, and the job API's. */
  def addLibraries(jars: Seq[JobJar]): Unit

  /** The loader of a class path, by its key; none when it is gone. */
  def loaderOf(key: String): Option[ClassLoader]

  def close(): Unit
}

private[jobserver] object Isolation {
  /** The local property that carries a class path's key to the threads that receive its tasks' results. */
  val Property = "jobserver.classpath"

  /** The local property that carries a job's id to the threads, streams and tasks that it starts. */
  val JobProperty = "jobserver.job"
}
