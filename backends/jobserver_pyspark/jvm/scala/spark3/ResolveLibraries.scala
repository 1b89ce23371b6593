package org.apache.spark.deploy {

  /** `SparkSubmitUtils` is for `org.apache.spark` alone: this hands it on. */
  private[spark] object LibraryResolution {
    def resolve(coordinates: String, settingsFile: String, repositories: String, ivyPath: String): Seq[String] = {
      def given(text: String): Option[String] = Some(text).filter(_.nonEmpty)
      val settings = given(settingsFile) match {
        case Some(file) => SparkSubmitUtils.loadIvySettings(file, given(repositories), given(ivyPath))
        case None => SparkSubmitUtils.buildIvySettings(given(repositories), given(ivyPath))
      }
      SparkSubmitUtils.resolveMavenCoordinates(coordinates, settings, None, transitive = false)
    }
  }
}

package org.apache.spark.sql.jobserver {

  /**
   * Resolves packages the way `spark.jars.packages` does, in a JVM of its own; prints the jars' paths, one a line.
   *
   * Arguments: the coordinates, comma-separated; the settings file, more repositories, the Ivy folder ("" for none).
   */
  private[jobserver] object ResolveLibraries {
    def main(arguments: Array[String]): Unit = {
      val Array(coordinates, settingsFile, repositories, ivyPath) = arguments
      org.apache.spark.deploy.LibraryResolution.resolve(coordinates, settingsFile, repositories, ivyPath).foreach(println)
    }
  }
}
