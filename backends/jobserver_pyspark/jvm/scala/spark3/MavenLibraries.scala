package org.apache.spark.deploy

/** Calls `SparkSubmitUtils`, which is private to this package. */
private[spark] object MavenLibraries {
  def resolve(
      coordinates: String, settingsFile: Option[String], repositories: Option[String], ivyPath: Option[String]
  ): Seq[String] = {
    val settings = settingsFile match {
      case Some(file) => SparkSubmitUtils.loadIvySettings(file, repositories, ivyPath)
      case None => SparkSubmitUtils.buildIvySettings(repositories, ivyPath)
    }
    SparkSubmitUtils.resolveMavenCoordinates(coordinates, settings, None, transitive = false)
  }
}
