package org.apache.spark.sql.jobserver

/** The class of this Spark's sessions; since Spark 4 the public one is an interface. */
private[jobserver] object Sessions {
  type Session = org.apache.spark.sql.SparkSession
}
