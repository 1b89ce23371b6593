package org.apache.spark.sql.jobserver

import java.nio.file.Paths
import java.util.UUID
import java.util.concurrent.ConcurrentHashMap

import scala.collection.JavaConverters._
import scala.collection.mutable

import org.apache.spark.{JobArtifactSet, JobArtifactState}
import org.apache.spark.api.python.PythonRDD
import org.apache.spark.rdd.RDD
import org.apache.spark.scheduler.TaskArtifacts
import org.apache.spark.sql.SparkSession
import org.apache.spark.sql.classic

/**
 * Keeps versions of classes apart: each class path has a session, with its jars as artifacts. The driver and the executors
 * load the jars of each session separately, so one context can have two versions of a class.
 *
 * The problem is tasks without a session: those of Python jobs, and of threads that do not carry their job's session. Spark
 * would give them the jars of all sessions, in the executor's default loader. The loader of each session asks that one first,
 * and no loader can forget a class. So one such task would fix the version of a class for its whole executor.
 *
 * The invariant: no jar of a class path ever gets into the default loader of an executor. If tasks without a session need the
 * classes of one class path, they run in its session. If they may need those of several, they run in a union of these: a
 * session that only executors know. [[artifactsFor]] decides.
 *
 * Sessions are kept for the next job with the same class path. If there are more than `maxSessions`, the least recently
 * used ones are closed, except while a job or a named object still needs their code.
 *
 * The lock guards all fields but `newest`, `loaders` and `ambiguous`, which other threads read without it, and `union`.
 */
private[jobserver] final class SessionIsolation(root: classic.SparkSession, maxSessions: Int) extends Isolation {
  private val sessions = mutable.LinkedHashMap[String, ClassPathSession]()
  private val libraries = mutable.ListBuffer[JobJar]()
  private val localExecutor = LocalExecutor.of(root.sparkContext)
  // The session of each class path that its next job gets. The threads that schedule tasks and receive results read it
  // without the lock, because all tasks would wait for them while a session is created.
  private val newest = new ConcurrentHashMap[String, ClassPathSession]()
  // The loaders of all sessions, also of those that only running jobs still have, by the UUIDs of the sessions.
  private val loaders = new ConcurrentHashMap[String, ClassLoader]()
  // The first checksum of each file in any class path so far.
  private val checksums = mutable.Map[String, Long]()
  // Whether any class path so far had another version of a file.
  @volatile private var ambiguous = false

  TaskArtifacts.install(root.sparkContext, artifactsFor)

  override def addLibraries(jars: Seq[JobJar]): Unit = synchronized {
    libraries ++= jars
    // Tasks of Python jobs, which belong to no class path, convert objects that JVM jobs share with them.
    jars.foreach(jar => root.sparkContext.addJar(jar.path.toUri.toString))
    // An existing session keeps the loader of its classes. The next job gets a new one.
    sessions.values.filter(_.users == 0).toList.foreach(discard)
    sessions.values.foreach(_.stale = true)
  }

  /** A thread pool may outlive the session of the job that started it. Then it works for later jobs of its class path. */
  override def loaderOf(id: String): Option[ClassLoader] = {
    val Array(uuid, key) = id.split(" ", 2)
    Option(loaders.get(uuid)).orElse(Option(newest.get(key)).map(_.loader))
  }

  override def lease(request: JobRequest): CodeLease = synchronized {
    val session = sessions.remove(request.classPathKey).filterNot(_.stale)
      .getOrElse(new ClassPathSession(request.classPathKey, request.jars))
    sessions.put(request.classPathKey, session)
    newest.put(request.classPathKey, session)
    loaders.put(session.state.uuid, session.loader)
    localExecutor.foreach(_.useForSession(session.state, session.loader, session.jars))
    if (session.users == 0) SharedViews.replace(root, session.spark)
    val lease = new Lease(session)
    session.users += 1
    evict()
    lease
  }

  override def close(): Unit = synchronized(sessions.values.toList.foreach(discard))

  private def contextJars: Seq[String] = root.sparkContext.addedJars.get("default").toSeq.flatMap(_.keys)

  private def evict(): Unit =
    sessions.values.filter(session => session.users == 0 && !NamedObjectTable.hasObjectsOf(session.key))
      .take(math.max(0, sessions.size - maxSessions)).toList.foreach(discard)

  private def discard(session: ClassPathSession): Unit = {
    sessions.get(session.key).filter(_ eq session).foreach(_ => sessions.remove(session.key))
    newest.remove(session.key, session)
    loaders.remove(session.state.uuid)
    session.spark.artifactManager.close()
  }

  /**
   * Returns the artifacts of tasks without a session, or the reason why they must not run; see [[TaskArtifacts]].
   *
   * A thread that carries a class path but no session may belong to a pool that another job has started, so nothing shows
   * which class path it needs. Its tasks get all of them, unless there have ever been two versions of a class. Tasks of
   * Python jobs may read named objects of JVM jobs, so they get the class paths of these, unless two of them conflict.
   *
   * An executor unpacks the packages of Python jobs for each session anew, but Python functions of RDDs import only from those
   * for tasks without a session. So tasks with such functions get one only if they read a named RDD.
   */
  private def artifactsFor(
      hasProperty: String => Boolean, rdd: RDD[_], given: JobArtifactSet): Either[String, JobArtifactSet] = {
    val all = newest.values.asScala.toList.sortBy(_.key)
    if (hasProperty(Isolation.AllClassPathsProperty)) Right(withJarsOf(Nil, given))
    else if (hasProperty(Isolation.ClassPathProperty))
      Either.cond(!ambiguous, withJarsOf(all, given), SessionIsolation.StrayThread)
    else {
      val shared = all.filter(session => NamedObjectTable.hasObjectsOf(session.key))
      val read = if (shared.isEmpty) Nil else Lineage.of(rdd)
      val needed =
        if (!read.exists(_.isInstanceOf[PythonRDD])) shared
        else shared.filter(session => NamedObjectTable.rddsOf(session.key).exists(read.map(_.id).toSet))
      Right(withJarsOf(if (unionOf(needed).conflicts) Nil else needed, given))
    }
  }

  private def withJarsOf(needed: List[ClassPathSession], given: JobArtifactSet): JobArtifactSet = {
    val jars = needed.map(_.jars).foldLeft(root.sparkContext.addedJars.getOrElse("default", Nil).toMap)(_ ++ _)
    val session = needed match {
      case Nil => None
      case Seq(session) => Some((session.state, session.loader))
      case _ => Some((unionOf(needed).state, unionOf(needed).loader))
    }
    for (executor <- localExecutor; (state, loader) <- session) executor.useForSession(state, loader, jars)
    new JobArtifactSet(session.map(_._1), jars, given.files, given.archives)
  }

  /** Notes the versions of a class path's files. */
  private def noteVersions(files: Seq[(String, Long)]): Unit = files.foreach { case (name, crc) =>
    if (checksums.getOrElseUpdate(name, crc) != crc && !JarFiles.provided(name)) ambiguous = true
  }

  // The last union that tasks needed. Only the thread that submits tasks uses it.
  private var union = new Union(Nil)

  private def unionOf(needed: List[ClassPathSession]): Union = {
    if (needed != union.sessions) union = new Union(needed)
    union
  }

  /** A session of several class paths. Only executors have it: Spark's driver does not know its UUID. */
  private final class Union(val sessions: List[ClassPathSession]) {
    val state: JobArtifactState =
      JobArtifactState(UUID.nameUUIDFromBytes(sessions.map(_.state.uuid).mkString(" ").getBytes).toString, None)
    lazy val loader: ClassLoader = sessions.map(_.loader).reduceLeft(new FirstOf(_, _))

    /** Whether two of the class paths have different versions of a file. */
    lazy val conflicts: Boolean = sessions.sizeIs > 1 &&
      sessions.flatMap(_.files).groupMap(_._1)(_._2).exists { case (name, versions) =>
        versions.distinct.sizeIs > 1 && !JarFiles.provided(name)
      }
  }

  /** The session of one class path, with the number of running jobs that lease it (`users`). No job gets a `stale` one. */
  private final class ClassPathSession(val key: String, given: Seq[JobJar]) {
    val files: Seq[(String, Long)] = given.flatMap(JarFiles.of)
    noteVersions(files)
    var users = 0
    var stale = false
    val spark: classic.SparkSession = new JobSession(root, isolated = true)
    private val artifacts = spark.artifactManager
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

  private final class Lease(leased: ClassPathSession) extends CodeLease {
    private val before = SharedViews.of(leased.spark)

    override def session: SparkSession = leased.spark
    override def loader: ClassLoader = leased.loader
    override def id: String = s"${leased.state.uuid} ${leased.key}"
    override def within[T](body: => T): T = leased.spark.artifactManager.withResources(body)
    override def reloadNextTime(): Unit = SessionIsolation.this.synchronized {
      // Otherwise, its named objects still need the classes that are loaded.
      if (!NamedObjectTable.hasObjectsOf(leased.key)) leased.stale = true
    }
    override def release(): Unit = SessionIsolation.this.synchronized {
      try SharedViews.publish(leased.spark, before, root)
      finally {
        leased.users -= 1
        if (leased.stale && leased.users == 0) discard(leased)
      }
    }
  }
}

private object Lineage {
  /** An RDD, and all from which it is computed. */
  def of(rdd: RDD[_]): Seq[RDD[_]] = {
    val found = mutable.LinkedHashMap[Int, RDD[_]]()
    val open = mutable.Stack[RDD[_]](rdd)
    while (open.nonEmpty) {
      val next = open.pop()
      if (found.put(next.id, next).isEmpty) open.pushAll(next.dependencies.map(_.rdd))
    }
    found.values.toSeq
  }
}

private object SessionIsolation {
  val StrayThread: String = "This Spark job was started on a thread that does not carry its job's class path, and this " +
    "context has several versions of one class: start it on the job's own thread, or use a context with " +
    "jvm.isolation = shared"
}
