package org.apache.spark.sql.jobserver

import java.nio.file.Paths

import scala.collection.mutable

import org.apache.spark.JobArtifactSet
import org.apache.spark.scheduler.StrayTasks
import org.apache.spark.sql.SparkSession
import org.apache.spark.sql.classic

private[jobserver] object Isolations {
  def make(name: String, root: SparkSession, maxSessions: Int): Isolation = name match {
    case "shared" => new SharedIsolation(root.asInstanceOf[classic.SparkSession])
    case "session" => new SessionIsolation(root.asInstanceOf[classic.SparkSession], maxSessions)
  }
}

/**
 * A session per class path, with its jars as artifacts. The driver and the executors load them separately, so that one
 * context can have two versions of a class.
 *
 * Sessions are kept for the next job with the same class path. If there are more than `maxSessions`, the least recently
 * used ones are closed, except while a job or a named object still needs their code.
 */
private[jobserver] final class SessionIsolation(root: classic.SparkSession, maxSessions: Int) extends Isolation {
  private val homes = mutable.LinkedHashMap[String, Home]()
  private val libraries = mutable.ListBuffer[JobJar]()
  private val localExecutor = LocalExecutor.of(root.sparkContext)
  // Read by the threads that receive results, which must never wait until a session is created.
  private val loaders = new java.util.concurrent.ConcurrentHashMap[String, ClassLoader]()

  private val contents = mutable.Map[String, Long]()
  @volatile private var ambiguous = false

  StrayTasks.watch(root.sparkContext, Isolation.Property, () => ambiguous)

  override def addLibraries(jars: Seq[JobJar]): Unit = synchronized {
    libraries ++= jars
    // Tasks of Python jobs, which belong to no class path, convert objects that JVM jobs share with them.
    jars.foreach(jar => root.sparkContext.addJar(jar.path.toUri.toString))
    // An existing session keeps the loader of its classes. The next job gets a new one.
    homes.values.filter(_.users == 0).toList.foreach(discard)
    homes.values.foreach(_.stale = true)
  }

  override def loaderOf(key: String): Option[ClassLoader] = Option(loaders.get(key))

  override def enter(request: JobRequest): CodeHome = synchronized {
    val home = homes.remove(request.classPathKey).filterNot(_.stale)
      .getOrElse(new Home(request.classPathKey, request.jars))
    homes.put(request.classPathKey, home)
    loaders.put(request.classPathKey, home.loader)
    val state = home.own.artifactManager.state
    localExecutor.foreach(_.useForSession(state, home.loader, root.sparkContext.addedJars(state.uuid)))
    if (home.users == 0) SharedViews.replace(root, home.own)
    home.users += 1
    evict()
    new Visit(home)
  }

  override def close(): Unit = synchronized(homes.values.toList.foreach(discard))

  private def contextJars: Seq[String] = root.sparkContext.addedJars.get("default").toSeq.flatMap(_.keys)

  private def evict(): Unit =
    homes.values.filter(home => home.users == 0 && !NamedObjectTable.owns(home.key))
      .take(math.max(0, homes.size - maxSessions)).toList.foreach(discard)

  private def discard(home: Home): Unit = {
    homes.get(home.key).filter(_ eq home).foreach(_ => homes.remove(home.key))
    loaders.remove(home.key, home.loader)
    home.own.artifactManager.close()
  }

  /** Records whether the class paths of this context have ever contained two versions of a file. */
  private def note(jars: Seq[JobJar]): Unit = jars.flatMap(SharedIsolation.files).foreach { case (name, crc) =>
    if (contents.getOrElseUpdate(name, crc) != crc && !SharedIsolation.provided(name)) ambiguous = true
  }

  private final class Home(val key: String, jars: Seq[JobJar]) {
    note(jars)
    var users = 0
    var stale = false
    val own: classic.SparkSession = new JobSession(root, isolated = true)
    private val artifacts = own.artifactManager
    (libraries.toList ++ jars).map(jar => (jar.sha256, jar)).toMap.values.foreach { jar =>
      artifacts.addArtifact(Paths.get("jars", jar.sha256 + ".jar"), jar.path, None, deleteStagedFile = false)
    }
    // A session with its own jars no longer sees the context's jars, so they are added to it.
    JobArtifactSet.withActiveJobArtifactState(artifacts.state)(contextJars.foreach(root.sparkContext.addJar))
    val loader: ClassLoader = artifacts.classloader
  }

  private final class Visit(home: Home) extends CodeHome {
    private val before = SharedViews.of(home.own)

    override def session: SparkSession = home.own
    override def loader: ClassLoader = home.loader
    override def within[T](body: => T): T = home.own.artifactManager.withResources(body)
    override def retire(): Unit = SessionIsolation.this.synchronized {
      if (!NamedObjectTable.owns(home.key)) home.stale = true // otherwise, named objects still need its classes
    }
    override def leave(): Unit = SessionIsolation.this.synchronized {
      SharedViews.publish(home.own, before, root)
      home.users -= 1
      if (home.stale && home.users == 0) discard(home)
    }
  }
}
