package org.apache.spark.sql.jobserver

import java.lang.reflect.InvocationTargetException

import scala.util.control.NonFatal

/** The job's class path does not contain the class. */
private[jobserver] final class ClassMissing(message: String) extends Exception(message)

/** The class exists, but could not be loaded or instantiated. */
private[jobserver] final class LoadingFailed(cause: Throwable) extends Exception(cause)

/** Loads a job's class, and recognizes its API. */
private[jobserver] final class JobLoader(loader: ClassLoader, oldApi: Option[JobApi]) {

  /** Throws [[ClassMissing]], [[LoadingFailed]] or [[WrongKindOfJob]]. */
  def load(mainClass: String, context: JobContext): RunnableJob = translating(mainClass) {
    val cls = classOrObject(mainClass)
    val apis = oldApi.toSeq :+ ReflectiveJobs
    candidates(cls).flatMap(candidate => apis.flatMap(_.recognize(candidate, context))).take(1).toList.headOption
      .orElse(ReflectiveJobs.application(cls, context))
      .getOrElse(throw new WrongKindOfJob(
        s"$mainClass is not a job: it needs runJob(context, config), runJob(context, runtime, data), " +
          "main(String[]), or an interface of the job API, and a constructor without parameters"))
  }

  private def classOrObject(name: String): Class[_] =
    try Class.forName(name, false, loader)
    catch { case _: ClassNotFoundException => Class.forName(name + "$", false, loader) }

  /** Creates an instance of the class, or else returns the Scala object with that name. */
  private def candidates(cls: Class[_]): Iterator[AnyRef] =
    Iterator(() => instance(cls), () => module(cls)).flatMap(make => make())

  private def instance(cls: Class[_]): Option[AnyRef] =
    cls.getConstructors.find(_.getParameterCount == 0)
      .filterNot(_ => java.lang.reflect.Modifier.isAbstract(cls.getModifiers))
      .map(_.newInstance().asInstanceOf[AnyRef])

  private def module(cls: Class[_]): Option[AnyRef] = {
    val name = cls.getName.stripSuffix("$") + "$"
    try Some(Class.forName(name, true, loader).getField("MODULE$").get(null))
    catch { case _: ClassNotFoundException | _: NoSuchFieldException => None }
  }

  private def translating(mainClass: String)(load: => RunnableJob): RunnableJob =
    try load
    catch {
      case error: WrongKindOfJob => throw error
      case error: InvocationTargetException => throw new LoadingFailed(error.getCause)
      case error: ClassNotFoundException if isOf(mainClass, error.getMessage) =>
        throw new ClassMissing(s"no class $mainClass on the job's class path")
      case error @ (_: LinkageError | NonFatal(_)) => throw new LoadingFailed(error)
    }

  private def isOf(mainClass: String, missing: String): Boolean = missing == mainClass || missing == mainClass + "$"
}
