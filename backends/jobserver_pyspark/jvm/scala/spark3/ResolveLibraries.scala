package org.apache.spark.deploy {

  /** Exposes `SparkSubmitUtils`, which is private to `org.apache.spark`. */
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
   * Resolves packages like `spark.jars.packages`, in a separate JVM. Prints the paths of the jars, one per line.
   *
   * Arguments: comma-separated coordinates, settings file, additional repositories, Ivy directory ("" for none).
   */
  private[jobserver] object ResolveLibraries {
    def main(arguments: Array[String]): Unit = {
      val Array(coordinates, settingsFile, repositories, ivyPath) = arguments
      org.apache.spark.deploy.LibraryResolution.resolve(coordinates, settingsFile, repositories, ivyPath).foreach(println)
    }
  }
}
