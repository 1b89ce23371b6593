package org.apache.spark.sql.jobserver

import org.apache.spark.sql.SparkSession

/** Spark 3 has no session artifacts, so one set of jars is always shared by the whole context. */
private[jobserver] object Isolations {
  def make(name: String, root: SparkSession, maxSessions: Int): Isolation = new SharedIsolation(root)
}
