package parts

import java.util.{Map => JMap}

import org.apache.spark.SparkContext

object Left { def word: String = "left" }

object Right { def word: String = "right" }

/** Needs two classes that lie in other jars, on the driver and in its tasks. */
class Main {
  def runJob(sc: SparkContext, config: JMap[String, Object]): Any =
    Seq(Left.word, Right.word) ++ sc.parallelize(1 to 2, 2).map(n => if (n == 1) Left.word else Right.word).collect()
}
