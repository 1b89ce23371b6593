package org.apache.spark.sql.jobserver

import org.apache.spark.sql.catalyst.catalog.TemporaryViewRelation
import org.apache.spark.sql.jobserver.Sessions.Session

/**
 * Shares temporary views between the jobs of a context, even though they run in different sessions.
 *
 * When a job ends, the views that it created, replaced or dropped are applied to the context. A session copies the
 * context's views when its next job starts, unless another job is running in it.
 */
private[jobserver] object SharedViews {
  type Views = Map[String, TemporaryViewRelation]

  def of(session: Session): Views = {
    val catalog = session.sessionState.catalog
    catalog.getTempViewNames().flatMap(name => catalog.getRawTempView(name).map(name -> _)).toMap
  }

  /** Replaces the views of `target` with those of `source`. */
  def replace(source: Session, target: Session): Unit = {
    val wanted = of(source)
    (of(target).keySet -- wanted.keySet).foreach(target.sessionState.catalog.dropTempView)
    put(wanted, target)
  }

  /** Applies to `target` the changes to the views of `source` since `before`. */
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
