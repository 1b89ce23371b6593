package org.apache.spark.sql.jobserver

import org.apache.spark.deploy.MavenLibraries

/**
 * Resolves packages like `spark.jars.packages`, in a separate JVM. Prints the paths of the jars, one per line.
 *
 * Arguments: comma-separated coordinates, settings file, additional repositories, Ivy directory ("" for none).
 */
private[jobserver] object ResolveLibraries {
  def main(arguments: Array[String]): Unit = {
    val Array(coordinates, settingsFile, repositories, ivyPath) = arguments
    def given(text: String): Option[String] = Some(text).filter(_.nonEmpty)
    MavenLibraries.resolve(coordinates, given(settingsFile), given(repositories), given(ivyPath)).foreach(println)
  }
}
