package versions

import java.util.{Map => JMap}
import org.apache.spark.SparkContext

case class Tag(label: String) {
  def said: String = "one " + label
}

object Job {
  def version: String = "one"

  def runJob(sc: SparkContext, config: JMap[String, Object]): Any = {
    if (config.containsKey("sleep")) Thread.sleep(config.get("sleep").toString.toLong)
    val tag = sc.broadcast(Tag("broadcast"))
    val tags = sc.parallelize(1 to 4, 2).map(n => Tag("sent")).collect()
    Map(
      "driver" -> version,
      "executors" -> sc.parallelize(1 to 4, 2).map(_ => Job.version).collect().distinct.sorted.toSeq,
      "sent" -> tags.map(_.said).distinct.toSeq,
      "broadcast" -> sc.parallelize(1 to 4, 2).map(_ => tag.value.said).collect().distinct.toSeq)
  }
}
