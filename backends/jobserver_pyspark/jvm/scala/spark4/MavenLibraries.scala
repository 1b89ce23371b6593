package org.apache.spark.deploy

import java.io.PrintStream

import org.apache.spark.util.MavenUtils

/** Calls `MavenUtils`, which has taken the place of `SparkSubmitUtils` since Spark 4. */
private[spark] object MavenLibraries {
  def resolve(
      coordinates: String, settingsFile: Option[String], repositories: Option[String], ivyPath: Option[String]
  ): Seq[String] = {
    implicit val log: PrintStream = System.err
    val settings = settingsFile match {
      case Some(file) => MavenUtils.loadIvySettings(file, repositories, ivyPath)
      case None => MavenUtils.buildIvySettings(repositories, ivyPath)
    }
    MavenUtils.resolveMavenCoordinates(coordinates, settings, None, transitive = false)
  }
}
