package org.apache.spark.sql.jobserver

import org.apache.spark.sql.catalyst.catalog.TemporaryViewRelation
import org.apache.spark.sql.jobserver.Sessions.Session

/**
 * Lets the jobs of a context see each other's temporary views, though they run in several sessions.
 *
 * What a job creates, replaces or drops is the context's from the end of that job on; a session takes
 * the context's views over when its next job starts and no other job is in it.
 */
private[jobserver] object SharedViews {
  type Views = Map[String, TemporaryViewRelation]

  def of(session: Session): Views = {
    val catalog = session.sessionState.catalog
    catalog.getTempViewNames().flatMap(name => catalog.getRawTempView(name).map(name -> _)).toMap
  }

  /** Makes the views of `target` those of `source`. */
  def replace(source: Session, target: Session): Unit = {
    val wanted = of(source)
    (of(target).keySet -- wanted.keySet).foreach(target.sessionState.catalog.dropTempView)
    put(wanted, target)
  }

  /** Does to `target` what happened to the views of `source` since they were `before`. */
  def publish(source: Session, before: Views, target: Session): Unit = {
    val now = of(source)
    (before.keySet -- now.keySet).foreach(target.sessionState.catalog.dropTempView)
    put(now.filterNot { case (name, view) => before.get(name).exists(_ eq view) }, target)
  }

  private def put(views: Views, target: Session): Unit =
    views.foreach { case (name, view) =>
      target.sessionState.catalog.createTempView(name, view, overrideIfExists = true)
    }
}
