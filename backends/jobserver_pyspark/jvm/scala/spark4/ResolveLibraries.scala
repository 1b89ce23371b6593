package org.apache.spark.sql.jobserver

import java.io.PrintStream

import org.apache.spark.util.MavenUtils

/**
 * Resolves packages the way `spark.jars.packages` does, in a JVM of its own; prints the jars' paths, one a line.
 *
 * Arguments: the coordinates, comma-separated; the settings file, more repositories, the Ivy folder ("" for none).
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
