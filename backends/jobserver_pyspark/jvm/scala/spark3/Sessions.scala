package org.apache.spark.sql.jobserver

/** The concrete session class. Since Spark 4, the public class is abstract. */
private[jobserver] object Sessions {
  type Session = org.apache.spark.sql.SparkSession
}
