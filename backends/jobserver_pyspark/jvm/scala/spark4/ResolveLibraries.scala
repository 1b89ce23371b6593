package org.apache.spark.sql.jobserver

import java.io.PrintStream

import org.apache.spark.util.MavenUtils

/**
 * Resolves packages like `spark.jars.packages`, in a separate JVM. Prints the paths of the jars, one per line.
 *
 * Arguments: comma-separated coordinates, settings file, additional repositories, Ivy directory ("" for none).
 */
private[jobserver] object ResolveLibraries {
  def main(arguments: Array[String]): Unit = {
    val Array(coordinates, settingsFile, repositories, ivyPath) = arguments
    def given(text: String): Option[String] = Some(text).filter(_.nonEmpty)
    implicit val log: PrintStream = System.err
    val settings = given(settingsFile) match {
      case Some(file) => MavenUtils.loadIvySettings(file, given(repositories), given(ivyPath))
      case None => MavenUtils.buildIvySettings(given(repositories), given(ivyPath))
    }
    MavenUtils.resolveMavenCoordinates(coordinates, settings, None, transitive = false).foreach(println)
  }
}
