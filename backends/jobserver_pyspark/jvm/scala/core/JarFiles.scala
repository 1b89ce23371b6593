package org.apache.spark.sql.jobserver

import java.util.zip.ZipFile

import scala.collection.JavaConverters._

/** Lists the files in the jars of jobs. Their checksums show whether two jars have different versions of a class. */
private[jobserver] object JarFiles {
  /** The files of a jar that matter, with their checksums. */
  def of(jar: JobJar): Seq[(String, Long)] = {
    val zip = new ZipFile(jar.path.toFile)
    try zip.entries.asScala
      .filterNot(entry => entry.isDirectory || harmless(entry.getName))
      .map(entry => (entry.getName, entry.getCrc)).toList
    finally zip.close()
  }

  /** Whether all class paths see the same file with this name, regardless of the copies in their jars. */
  def provided(name: String): Boolean = getClass.getClassLoader.getResource(name) != null

  private def harmless(name: String): Boolean =
    name.startsWith("META-INF/") || name == "module-info.class" || name.matches("(?i)(LICEN[SC]E|NOTICE|README|rootdoc).*")
}
