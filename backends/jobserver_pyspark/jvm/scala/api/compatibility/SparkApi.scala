package org.apache.spark.api

/**
 * For sources in the package `spark.jobserver` that import `org.apache.spark._` and use `api.SparkJob`. Up to Scala 2.12,
 * `api` refers to the job server's package; since 2.13, it refers to Spark's.
 */
trait SparkJob extends spark.jobserver.api.SparkJob
