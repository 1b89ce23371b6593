package org.apache.spark.sql.jobserver

import org.apache.spark.sql.SparkSession
import org.apache.spark.sql.classic

private[jobserver] object Isolations {
  def make(name: String, root: SparkSession, maxSessions: Int): Isolation = name match {
    case "shared" => new SharedIsolation(root.asInstanceOf[classic.SparkSession])
    case "session" => new SessionIsolation(root.asInstanceOf[classic.SparkSession], maxSessions)
  }
}
