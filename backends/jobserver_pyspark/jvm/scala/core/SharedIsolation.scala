package org.apache.spark.sql.jobserver

import scala.collection.mutable

import org.apache.spark.sql.SparkSession
import org.apache.spark.sql.jobserver.Sessions.Session

/**
 * One set of jars for the whole context: for Spark 3, and for streaming contexts, whose batches run on separate threads.
 *
 * A loaded class cannot be unloaded. So a jar that contains another version of an existing file is rejected, because
 * running the old code silently would be worse.
 */
private[jobserver] final class SharedIsolation(root: Session) extends Isolation {
  private val shared = root.sharedState.jarClassLoader
  private val added = mutable.Set[String]()
  private val contents = mutable.Map[String, (Long, String)]()

  private lazy val own = new JobSession(root, isolated = false)
  private var users = 0
  private val localExecutor = LocalExecutor.of(root.sparkContext)

  override def addLibraries(jars: Seq[JobJar]): Unit = jars.foreach(add)

  override def loaderOf(id: String): Option[ClassLoader] = Some(shared)

  override def close(): Unit = ()

  override def lease(request: JobRequest): CodeLease = {
    request.jars.foreach(add)
    localExecutor.foreach(_.useForAll(shared, Map.empty))
    synchronized {
      if (users == 0) SharedViews.replace(root, own)
      users += 1
      new Lease
    }
  }

  private final class Lease extends CodeLease {
    private val views = SharedViews.of(own)

    override def session: SparkSession = own
    override def loader: ClassLoader = shared
    override def id: String = "shared"
    override def within[T](body: => T): T = {
      val thread = Thread.currentThread
      val before = thread.getContextClassLoader
      thread.setContextClassLoader(shared)
      try body finally thread.setContextClassLoader(before)
    }
    override def release(): Unit = SharedIsolation.this.synchronized {
      try SharedViews.publish(own, views, root)
      finally users -= 1
    }
  }

  private def contextJars: collection.Map[String, Long] =
    root.sparkContext.addedJars.get("default").map(_.toMap).getOrElse(Map.empty)

  private def add(jar: JobJar): Unit = synchronized {
    if (!added.contains(jar.sha256)) {
      val files = JarFiles.of(jar)
      files.foreach { case (name, crc) =>
        contents.get(name).filter(_._1 != crc && !JarFiles.provided(name)).foreach { case (_, other) =>
          throw new ClassPathConflict(
            s"${jar.path.getFileName} holds another version of $name than $other, which this context loaded before; " +
              "this context cannot hold two versions of one class: use a new context for the new version")
        }
      }
      shared.addURL(jar.path.toUri.toURL)
      val before = contextJars.keySet
      root.sparkContext.addJar(jar.path.toUri.toString)
      localExecutor.foreach(_.useForAll(shared, contextJars.filterNot { case (name, _) => before.contains(name) }))
      files.foreach { case (name, crc) => contents.getOrElseUpdate(name, (crc, jar.path.getFileName.toString)) }
      added += jar.sha256
    }
  }
}
