package launcherjobs

import java.util.{Map => JMap}

import org.apache.spark.sql.SparkSession

class Count {
  def runJob(spark: SparkSession, config: JMap[String, Any]): Any = {
    println("counting in the JVM")
    spark.range(config.get("rows").toString.toLong).count()
  }
}

class Sleep {
  def runJob(spark: SparkSession, config: JMap[String, Any]): Any = {
    spark.sparkContext.parallelize(1 to 4, 4).foreach(_ => Thread.sleep(600000))
  }
}

class Gated {
  def runJob(spark: SparkSession, config: JMap[String, Any]): Any = {
    val gate = java.nio.file.Paths.get(config.get("gate").toString)
    while (!java.nio.file.Files.exists(gate)) Thread.sleep(20)
    spark.range(1000).count()
  }
}

class CountGroups {
  def runJob(spark: SparkSession, config: JMap[String, Any]): Any = {
    System.gc() // Java 19 and later refer to groups weakly
    Thread.currentThread.getThreadGroup.getParent.activeGroupCount()
  }
}

class Fail {
  def runJob(spark: SparkSession, config: JMap[String, Any]): Any = throw new IllegalStateException("no such row")
}

class Large {
  def runJob(spark: SparkSession, config: JMap[String, Any]): Any =
    Iterator.fill(config.get("megabytes").toString.toInt)("x" * 1048576)
}

object Release {
  val name = "release 1"
}

class TellRelease {
  def runJob(spark: SparkSession, config: JMap[String, Any]): Any = {
    val onExecutors = new java.util.concurrent.FutureTask[Seq[String]](
      () => spark.sparkContext.parallelize(1 to 2, 2).map(_ => Release.name).collect().distinct.toSeq)
    if (config.containsKey("thread")) new Thread(onExecutors).start() else onExecutors.run()
    Release.name +: onExecutors.get()
  }
}

/** Stores an RDD that only classes of this jar can compute, as the named objects of the job API do. */
class ShareRelease {
  def runJob(spark: SparkSession, runtime: JMap[String, Any], config: JMap[String, Any]): Any = {
    val entry = new java.util.HashMap[String, AnyRef]()
    entry.put("kind", "rdd")
    entry.put("value", spark.sparkContext.parallelize(1 to 2, 2).map(_ => Release.name).toJavaRDD())
    val objects = runtime.get("namedObjects").asInstanceOf[AnyRef]
    val update = objects.getClass.getMethods.find(_.getName == "update").get
    update.invoke(objects, config.get("name").toString, () => entry)
    "shared"
  }
}

class Twice extends org.apache.spark.sql.api.java.UDF1[Long, Long] {
  override def call(number: Long): Long = number * 2
}
