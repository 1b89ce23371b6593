package org.apache.spark.api

/**
 * For sources in the package `spark.jobserver` that import `org.apache.spark._` and say `api.SparkJob`: up to Scala 2.12
 * that `api` is the job server's, from 2.13 on it is Spark's.
 */
trait SparkJob extends spark.jobserver.api.SparkJob
