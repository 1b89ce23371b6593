package loading.base

import java.sql.{Connection, Driver, DriverManager, DriverPropertyInfo}
import java.util.{Properties, ServiceLoader}
import java.util.logging.Logger

import scala.collection.JavaConverters._

import com.esotericsoftware.kryo.Kryo
import com.typesafe.config.Config
import org.apache.spark.SparkContext
import org.apache.spark.serializer.KryoRegistrator

import spark.jobserver.{NamedObject, SparkJob, SparkJobInvalid, SparkJobValid, SparkJobValidation}

/** What jobs have in common, in a jar of the context. */
abstract class BaseJob extends SparkJob {
  def work(sc: SparkContext, word: String): Any

  override def validate(sc: SparkContext, config: Config): SparkJobValidation =
    if (config.hasPath("word")) SparkJobValid else SparkJobInvalid("no word")

  override def runJob(sc: SparkContext, config: Config): Any = work(sc, config.getString("word"))
}

class Stamp(val text: String)

class Registrator extends KryoRegistrator {
  override def registerClasses(kryo: Kryo): Unit = kryo.register(classOf[Stamp])
}

trait Greeting { def text: String }

object Greeting {
  def all(loader: ClassLoader): Seq[String] = ServiceLoader.load(classOf[Greeting], loader).asScala.map(_.text).toList
}

/** A JDBC driver that knows one address and connects to nothing. */
class NoDriver extends Driver {
  DriverManager.registerDriver(this)

  override def acceptsURL(url: String): Boolean = url == "jdbc:nothing"
  override def connect(url: String, info: Properties): Connection = null
  override def getMajorVersion: Int = 7
  override def getMinorVersion: Int = 0
  override def getPropertyInfo(url: String, info: Properties): Array[DriverPropertyInfo] = Array()
  override def jdbcCompliant: Boolean = false
  override def getParentLogger: Logger = null
}
