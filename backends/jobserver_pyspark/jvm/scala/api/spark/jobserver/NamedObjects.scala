package spark.jobserver

import scala.concurrent.duration.FiniteDuration

import org.apache.spark.broadcast.Broadcast
import org.apache.spark.rdd.RDD
import org.apache.spark.sql.DataFrame
import org.apache.spark.storage.StorageLevel

/** An object that the jobs of a context share by name. */
trait NamedObject

case class NamedRDD[T](rdd: RDD[T], forceComputation: Boolean, storageLevel: StorageLevel) extends NamedObject

case class NamedDataFrame(df: DataFrame, forceComputation: Boolean, storageLevel: StorageLevel)
  extends NamedObject

case class NamedBroadcast[T](broadcast: Broadcast[T]) extends NamedObject

/** Persists and frees named objects of one type. */
abstract class NamedObjectPersister[O <: NamedObject] {
  def persist(namedObj: O, name: String): Unit
  def refresh(namedObject: O): O
  def unpersist(namedObject: O): Unit
}

class RDDPersister[T] extends NamedObjectPersister[NamedRDD[T]] {
  override def persist(namedObj: NamedRDD[T], name: String): Unit = {
    NamedObjects.checkLevel(namedObj.forceComputation, namedObj.storageLevel)
    val rdd = namedObj.rdd.setName(name)
    if (rdd.getStorageLevel == StorageLevel.NONE) rdd.persist(namedObj.storageLevel)
    if (namedObj.forceComputation) rdd.count()
  }

  override def refresh(namedObject: NamedRDD[T]): NamedRDD[T] = {
    namedObject.rdd.persist(namedObject.rdd.getStorageLevel)
    namedObject
  }

  override def unpersist(namedObject: NamedRDD[T]): Unit = namedObject.rdd.unpersist(blocking = false)
}

class DataFramePersister extends NamedObjectPersister[NamedDataFrame] {
  override def persist(namedObj: NamedDataFrame, name: String): Unit = {
    NamedObjects.checkLevel(namedObj.forceComputation, namedObj.storageLevel)
    namedObj.df.persist(namedObj.storageLevel)
    if (namedObj.forceComputation) namedObj.df.count()
  }

  override def refresh(namedObject: NamedDataFrame): NamedDataFrame = {
    namedObject.df.persist(namedObject.storageLevel)
    namedObject
  }

  override def unpersist(namedObject: NamedDataFrame): Unit = namedObject.df.unpersist(blocking = false)
}

class BroadcastPersister[T] extends NamedObjectPersister[NamedBroadcast[T]] {
  override def persist(namedObj: NamedBroadcast[T], name: String): Unit = ()
  override def refresh(namedObject: NamedBroadcast[T]): NamedBroadcast[T] = namedObject
  override def unpersist(namedObject: NamedBroadcast[T]): Unit = namedObject.broadcast.unpersist(blocking = false)
}

/** The named objects of a context, shared by all its jobs. */
trait NamedObjects {
  /** How long to wait for an object that another job is creating. */
  def defaultTimeout: FiniteDuration

  /** Returns the object with this name, and creates it if there is none. Concurrent calls create it only once. */
  def getOrElseCreate[O <: NamedObject](name: String, objGen: => O)(
      implicit timeout: FiniteDuration = defaultTimeout, persister: NamedObjectPersister[O]): O

  def get[O <: NamedObject](name: String)(implicit timeout: FiniteDuration = defaultTimeout): Option[O]

  /** Stores a new object under this name, replacing any other. */
  def update[O <: NamedObject](name: String, objGen: => O)(
      implicit timeout: FiniteDuration = defaultTimeout, persister: NamedObjectPersister[O]): O

  /** Removes the name, without freeing the object. */
  def forget(name: String): Unit

  /** Removes the name, and frees the object's data. */
  def destroy[O <: NamedObject](objOfType: O, name: String)(implicit persister: NamedObjectPersister[O]): Unit

  def getNames(): Iterable[String]
}

private object NamedObjects {
  def checkLevel(forceComputation: Boolean, level: StorageLevel): Unit =
    require(!forceComputation || level != StorageLevel.NONE, "forceComputation implies storageLevel != NONE")
}

/** Empty, because every job of the older API has `namedObjects`. Kept for sources that mix it in. */
trait NamedObjectSupport

/** Named RDDs without wrapper objects. */
trait NamedRddSupport extends NamedObjectSupport { self: SparkJobBase =>

  trait _NamedRdds {
    def defaultTimeout: FiniteDuration
    val defaultStorageLevel: StorageLevel = StorageLevel.MEMORY_ONLY

    def getOrElseCreate[T](
        name: String,
        rddGen: => RDD[T],
        forceComputation: Boolean = true,
        storageLevel: StorageLevel = defaultStorageLevel)(implicit timeout: FiniteDuration = defaultTimeout): RDD[T]

    def get[T](name: String)(implicit timeout: FiniteDuration = defaultTimeout): Option[RDD[T]]

    def update[T](
        name: String,
        rddGen: => RDD[T],
        forceComputation: Boolean = true,
        storageLevel: StorageLevel = defaultStorageLevel)(implicit timeout: FiniteDuration = defaultTimeout): RDD[T]

    def destroy(name: String): Unit
    def getNames(): Iterable[String]
  }

  def namedRdds: _NamedRdds = new _NamedRdds {
    override def defaultTimeout: FiniteDuration = namedObjects.defaultTimeout

    override def getOrElseCreate[T](
        name: String, rddGen: => RDD[T], forceComputation: Boolean, storageLevel: StorageLevel)(
        implicit timeout: FiniteDuration): RDD[T] =
      namedObjects.getOrElseCreate(name, NamedRDD(rddGen, forceComputation, storageLevel))(
        timeout, new RDDPersister[T]).rdd

    override def get[T](name: String)(implicit timeout: FiniteDuration): Option[RDD[T]] =
      namedObjects.get[NamedObject](name)(timeout).collect { case NamedRDD(rdd, _, _) => rdd.asInstanceOf[RDD[T]] }

    override def update[T](
        name: String, rddGen: => RDD[T], forceComputation: Boolean, storageLevel: StorageLevel)(
        implicit timeout: FiniteDuration): RDD[T] =
      namedObjects.update(name, NamedRDD(rddGen, forceComputation, storageLevel))(timeout, new RDDPersister[T]).rdd

    override def destroy(name: String): Unit = {
      get[Any](name)(defaultTimeout).foreach(_.unpersist(blocking = false))
      namedObjects.forget(name)
    }

    override def getNames(): Iterable[String] = namedObjects.getNames()
  }
}
