package org.apache.spark.sql.jobserver

import java.nio.file.Paths
import java.util.UUID
import java.util.concurrent.ConcurrentHashMap

import scala.collection.JavaConverters._
import scala.collection.mutable

import org.apache.spark.{JobArtifactSet, JobArtifactState}
import org.apache.spark.scheduler.TaskArtifacts
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
 * Tasks without a session are those of Python jobs, and of threads that do not carry their job's session. On an executor,
 * every session's loader first asks the loader of such tasks, and no loader can forget a class. So their jars must not
 * contain any of a session: one task would fix the version of a class for the whole executor. Tasks that may need classes
 * of a session run in it, and those that may need several run in a session of their jars, which only executors know.
 *
 * Sessions are kept for the next job with the same class path. If there are more than `maxSessions`, the least recently
 * used ones are closed, except while a job or a named object still needs their code.
 */
private[jobserver] final class SessionIsolation(root: classic.SparkSession, maxSessions: Int) extends Isolation {
  private val homes = mutable.LinkedHashMap[String, Home]()
  private val libraries = mutable.ListBuffer[JobJar]()
  private val localExecutor = LocalExecutor.of(root.sparkContext)
  // Read by the threads that schedule tasks and receive results, which must never wait until a session is created.
  private val known = new ConcurrentHashMap[String, Home]()

  private val contents = mutable.Map[String, Long]()
  @volatile private var ambiguous = false

  TaskArtifacts.choose(root.sparkContext, artifactsFor)

  override def addLibraries(jars: Seq[JobJar]): Unit = synchronized {
    libraries ++= jars
    // Tasks of Python jobs, which belong to no class path, convert objects that JVM jobs share with them.
    jars.foreach(jar => root.sparkContext.addJar(jar.path.toUri.toString))
    // An existing session keeps the loader of its classes. The next job gets a new one.
    homes.values.filter(_.users == 0).toList.foreach(discard)
    homes.values.foreach(_.stale = true)
  }

  override def loaderOf(key: String): Option[ClassLoader] = Option(known.get(key)).map(_.loader)

  override def enter(request: JobRequest): CodeHome = synchronized {
    val home = homes.remove(request.classPathKey).filterNot(_.stale)
      .getOrElse(new Home(request.classPathKey, request.jars))
    homes.put(request.classPathKey, home)
    known.put(request.classPathKey, home)
    localExecutor.foreach(_.useForSession(home.state, home.loader, home.jars))
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
    known.remove(home.key, home)
    home.own.artifactManager.close()
  }

  /**
   * The artifacts of tasks without a session, or why they must not run.
   *
   * A thread that carries a class path may belong to a pool that another job has started, so nothing shows which one it
   * needs. It gets all of them, unless there have been two versions of a class. Tasks of Python jobs may read named objects
   * of JVM jobs.
   */
  private def artifactsFor(has: String => Boolean, given: JobArtifactSet): Either[String, JobArtifactSet] = {
    val all = known.values.asScala.toList.sortBy(_.key)
    if (has(Isolation.ForAll)) Right(withJarsOf(Nil, given))
    else if (has(Isolation.Property)) Either.cond(!ambiguous, withJarsOf(all, given), SessionIsolation.Stray)
    else {
      val needed = all.filter(home => NamedObjectTable.owns(home.key))
      Right(withJarsOf(if (conflict(needed)) Nil else needed, given))
    }
  }

  private def withJarsOf(needed: List[Home], given: JobArtifactSet): JobArtifactSet = {
    val jars = needed.map(_.jars).foldLeft(root.sparkContext.addedJars.getOrElse("default", Nil).toMap)(_ ++ _)
    if (needed.sizeIs > 1 && needed != union.homes) union = new Union(needed)
    val session = needed match {
      case Nil => None
      case Seq(home) => Some((home.state, home.loader))
      case _ => Some((union.state, union.loader))
    }
    for (executor <- localExecutor; (state, loader) <- session) executor.useForSession(state, loader, jars)
    new JobArtifactSet(session.map(_._1), jars, given.files, given.archives)
  }

  private def conflict(some: List[Home]): Boolean = some.sizeIs > 1 &&
    some.flatMap(_.files).groupMap(_._1)(_._2).exists { case (name, sums) =>
      sums.distinct.sizeIs > 1 && !SharedIsolation.provided(name)
    }

  /** Records whether the class paths of this context have ever contained two versions of a file. */
  private def note(files: Seq[(String, Long)]): Unit = files.foreach { case (name, crc) =>
    if (contents.getOrElseUpdate(name, crc) != crc && !SharedIsolation.provided(name)) ambiguous = true
  }

  /** The last session of several class paths, which only executors have. */
  private var union = new Union(Nil) // only the scheduler's thread uses it

  private final class Union(val homes: List[Home]) {
    val state: JobArtifactState =
      JobArtifactState(UUID.nameUUIDFromBytes(homes.map(_.state.uuid).mkString(" ").getBytes).toString, None)
    lazy val loader: ClassLoader = homes.map(_.loader).reduceLeft(new FirstOf(_, _))
  }

  private final class Home(val key: String, given: Seq[JobJar]) {
    val files: Seq[(String, Long)] = given.flatMap(SharedIsolation.files)
    note(files)
    var users = 0
    var stale = false
    val own: classic.SparkSession = new JobSession(root, isolated = true)
    private val artifacts = own.artifactManager
    val state: JobArtifactState = artifacts.state
    (libraries.toList ++ given).map(jar => (jar.sha256, jar)).toMap.values.foreach { jar =>
      artifacts.addArtifact(Paths.get("jars", jar.sha256 + ".jar"), jar.path, None, deleteStagedFile = false)
    }
    // A session with its own jars no longer sees the context's jars, so they are added to it.
    JobArtifactSet.withActiveJobArtifactState(state)(contextJars.foreach(root.sparkContext.addJar))
    val loader: ClassLoader = artifacts.classloader

    /** Its jars as executors know them: their URLs, with the times at which they were added. */
    def jars: Map[String, Long] = root.sparkContext.addedJars.getOrElse(state.uuid, Nil).toMap
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

private object SessionIsolation {
  val Stray: String = "This Spark job was started on a thread that does not carry its job's class path, and this " +
    "context has several versions of one class: start it on the job's own thread, or use a context with " +
    "jvm.isolation = shared"
}
