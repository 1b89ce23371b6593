"""The context's application on YARN: the archive of Spark's jars, and its status.

Executors need Spark's jars. Without a setting that says where they are, Spark uploads all 400 MB for each
application. So the first context uploads them as one archive to the user's home directory on YARN's file
system. Its name has a hash of its content, so later contexts find it, and nodes keep what they unpacked.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from jobserver_pyspark.java_objects import JavaObject

_ARCHIVE = "spark.yarn.archive"
_JARS = "spark.yarn.jars"
_STAGING = "spark.yarn.stagingDir"
_DIRECTORY = ".jobserver"
_PART_NAME = r"\.spark-[0-9a-f]+\.zip\.[0-9a-f]{32}"
_READABLE = 0o644
"""Anyone may read the archive: it has nothing but Spark's jars."""
_PART_AGE = 86400.0
"""Seconds after which nobody writes to a part of an archive any more."""
_CHUNK = 1 << 20
"""Bytes of a jar to hash at a time."""
_CLIENT_LOGGER = "org.apache.spark.deploy.yarn.Client"
_STATUS_TIMEOUT = 5.0
"""Seconds for YARN's reply: the status is only shown, and nothing must wait long for it."""
_POLL = 0.2
"""Seconds between two checks whether YARN has ended the application."""


def log_states(jvm: JavaObject) -> None:
    """Let Spark log the states of the application: while YARN lets a context wait, only they explain why."""
    log4j = jvm.org.apache.logging.log4j
    log4j.core.config.Configurator.setLevel(_CLIENT_LOGGER, log4j.Level.INFO)


def provide_jars(jvm: JavaObject, conf: JavaObject, jars: Path) -> None:
    """Let the application use the archive of Spark's jars, and upload it if YARN's file system lacks it.

    Does nothing if a setting says where the jars are. If the archive cannot be written, Spark uploads the
    jars itself, and the log says so.
    """
    if conf.contains(_ARCHIVE) or conf.contains(_JARS):
        return
    hadoop = jvm.org.apache.spark.deploy.SparkHadoopUtil.get().newConfiguration(conf)
    try:
        archive = _upload(jvm, hadoop, conf.get(_STAGING, ""), sorted(jars.glob("*.jar")))
    except Exception as error:  # noqa: BLE001 - py4j raises a class of its own; Spark's own upload may work
        reason = str(getattr(error, "java_exception", error)).splitlines()[0]
        print(
            f"cannot write the archive of Spark's jars, so this context uploads them itself: {reason}",
            file=sys.stderr,
        )
        return
    conf.set(_ARCHIVE, archive)


def _upload(jvm: JavaObject, hadoop: JavaObject, staging: str, jars: list[Path]) -> str:
    path = jvm.org.apache.hadoop.fs.Path
    files = (
        path(staging).getFileSystem(hadoop) if staging else jvm.org.apache.hadoop.fs.FileSystem.get(hadoop)
    )
    directory = path(path(staging) if staging else files.getHomeDirectory(), _DIRECTORY)
    target = path(directory, f"spark-{_digest(jars)}.zip")
    if not files.exists(target):
        files.mkdirs(directory)
        with contextlib.suppress(Exception):  # the archive can be written anyway
            _delete_old_parts(files, directory)
        part = path(directory, f".{target.getName()}.{uuid4().hex}")
        try:
            _write(jvm, files.create(part), jars)
            files.setPermission(part, jvm.org.apache.hadoop.fs.permission.FsPermission(_READABLE))
            _publish(files, part, target)
        finally:
            files.delete(part, False)
    return str(files.makeQualified(target).toString())


def _publish(files: JavaObject, part: JavaObject, target: JavaObject) -> None:
    """Give a complete part its name.

    Raises:
        OSError: It failed, and no other context was faster.
    """
    if not files.rename(part, target) and not files.exists(target):
        raise OSError(f"{part.toString()} cannot be renamed to {target.getName()}")


def _delete_old_parts(files: JavaObject, directory: JavaObject) -> None:
    """Delete the parts that contexts left which were killed while they wrote."""
    oldest = (time.time() - _PART_AGE) * 1000
    for status in files.listStatus(directory):
        is_part = re.fullmatch(_PART_NAME, str(status.getPath().getName()))
        if is_part and status.getModificationTime() < oldest:
            with contextlib.suppress(Exception):  # py4j raises a class of its own; it may be another user's
                files.delete(status.getPath(), False)


def _write(jvm: JavaObject, output: JavaObject, jars: list[Path]) -> None:
    """Write a ZIP file with these jars, which are compressed already."""
    archive = jvm.java.util.zip.ZipOutputStream(output)
    try:
        archive.setLevel(0)
        for jar in jars:
            archive.putNextEntry(jvm.java.util.zip.ZipEntry(jar.name))
            jvm.java.nio.file.Files.copy(jvm.java.io.File(str(jar)).toPath(), archive)
    finally:
        archive.close()


def _digest(jars: list[Path]) -> str:
    """Return a hash of the names and contents of files, shortened."""
    digest = hashlib.sha256()
    for jar in jars:
        digest.update(f"{jar.name}:{jar.stat().st_size}\n".encode())
        with jar.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()[:24]


@dataclass(frozen=True, kw_only=True)
class YarnStatus:
    """The status of an application on YARN: its final status, why it ended, and its page.

    ``final`` is ``UNDEFINED`` until the application has ended, then ``SUCCEEDED``, ``FAILED`` or ``KILLED``.
    """

    final: str
    diagnostics: str
    tracking_url: str | None


class YarnApplication:
    """Asks the ResourceManager about the context's application."""

    def __init__(self, jvm: JavaObject, context: JavaObject) -> None:
        yarn = jvm.org.apache.hadoop.yarn
        self._id = yarn.api.records.ApplicationId.fromString(context.applicationId())
        self._client = yarn.client.api.YarnClient.createYarnClient()
        self._client.init(yarn.conf.YarnConfiguration(context.hadoopConfiguration()))
        self._client.start()

    def status(self, timeout: float = _STATUS_TIMEOUT) -> YarnStatus | None:
        """Return the status, or None if it does not come in time: clients try again for minutes."""
        found: list[YarnStatus] = []
        asking = threading.Thread(target=self._ask, args=(found,), name="YARN status", daemon=True)
        asking.start()
        asking.join(timeout)
        return found[0] if found else None

    def _ask(self, found: list[YarnStatus]) -> None:
        with contextlib.suppress(Exception):  # py4j raises a class of its own; the status is then unknown
            report = self._client.getApplicationReport(self._id)
            found.append(
                YarnStatus(
                    final=str(report.getFinalApplicationStatus().toString()),
                    diagnostics=str(report.getDiagnostics() or "").strip(),
                    tracking_url=report.getTrackingUrl() or None,
                )
            )

    def wait_for_end(self, timeout: float = _STATUS_TIMEOUT) -> YarnStatus | None:
        """Return the status once the application has ended, or the last one in time."""
        deadline = time.monotonic() + timeout
        status = self.status(timeout)
        while status is not None and status.final == "UNDEFINED" and time.monotonic() < deadline:
            time.sleep(_POLL)
            status = self.status(max(_POLL, deadline - time.monotonic())) or status
        return status
