"""Contexts on Kubernetes: how executors find the driver, and the removal of what a killed driver leaves.

A driver that stops removes its executor pods, config maps, services and volume claims. One that is killed
leaves them: the executors end when they lose it, but the objects stay. An owner reference to the driver's
pod, which Spark sets if it knows the pod's name, helps only when that pod is deleted; a server may restart
within its pod.

Spark labels all these objects with the application's id. So each context gets an application id made from its
own id, and its record of leftovers has that before the driver starts. The server that ends the record, this
one or the next one on the data directory, deletes the objects with this label.

Some settings name a file of the server's machine that the driver sends to the cluster: a template of pods, a
token. A context may name only files that the server's own configuration names for the same setting. This
prevents mistakes and casual reads, and is no protection from an attacker: users who may create contexts can
reach the server's files in other ways, such as ``spark.files``, because that permission amounts to running
code as the server's user. A context brings its own template as a string, which is stored in its directory.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Mapping

import attrs

from jobserver_core.config.settings import Settings
from jobserver_core.errors import InvalidSetting
from jobserver_core.models.contexts import Context
from jobserver_pyspark.launcher.context_settings import read_settings, spark_settings

_log = logging.getLogger(__name__)

_PREFIX = "k8s://"
_SELECTOR = "spark-app-selector"
_LABEL = "spark.kubernetes.executor.label.jobserver"
_MAX_LABEL = 63
"""The most characters of a label's value, as Kubernetes requires."""
_FILES = re.compile(r"spark\.kubernetes\..*File")

TEMPLATE_FILE = "spark.kubernetes.executor.podTemplateFile"


def driver_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the defaults that a pod's own environment gives: its name, namespace and address."""
    name, namespace, address = (environment.get(f"POD_{key}", "") for key in ("NAME", "NAMESPACE", "IP"))
    found = {
        "spark.kubernetes.driver.pod.name": name,
        "spark.kubernetes.namespace": namespace,
        "spark.driver.host": f"[{address}]" if ":" in address else address,
    }
    return {key: value for key, value in found.items() if value}


def _application_id(context_id: str) -> str:
    return f"spark-{context_id}"


def identity(context_id: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the application's id and the labels of its executor pods."""
    server = environment.get("POD_NAME") or socket.gethostname()
    label = re.sub(r"[^A-Za-z0-9_.-]", "-", server).strip("-._")[:_MAX_LABEL].rstrip("-._")
    return {
        "spark.app.id": _application_id(context_id),
        f"{_LABEL}-context": context_id,
        **({f"{_LABEL}-server": label} if label else {}),
    }


@attrs.frozen
class ClusterFiles:
    """The files for Kubernetes that the configuration of the server names: pairs of a setting and a path."""

    named: frozenset[tuple[str, str]] = frozenset()

    @classmethod
    def of(cls, settings: Settings) -> ClusterFiles:
        """Return the files in the settings of all contexts, of those of the configuration, and of pools."""
        spark, pools = settings.spark, settings.contexts.pools
        trees = (spark.context_settings, *spark.contexts.values(), *pools.values())
        return cls(frozenset(pair for tree in trees for pair in _files(spark_settings(tree))))

    def check(self, conf: Mapping[str, str]) -> None:
        """Check that the SparkConf of a context names no other file.

        Raises:
            InvalidSetting: It names another one.
        """
        for key, path in _files(conf):
            if (key, path) not in self.named:
                advice = "; give the pod itself in pod-template" if key == TEMPLATE_FILE else ""
                raise InvalidSetting(
                    key=key,
                    message=f"must be a file that the server's configuration names for this setting{advice}",
                )


def _files(conf: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(key, path) for key, path in conf.items() if _FILES.fullmatch(key)]


@attrs.frozen(kw_only=True)
class ClusterObjects:
    """The objects of one application in a cluster; ``url`` is that of the API server."""

    url: str
    namespace: str
    application_id: str

    @classmethod
    def of(cls, conf: Mapping[str, str]) -> ClusterObjects | None:
        """Return the objects of the application with this SparkConf, or None if it is not on Kubernetes."""
        master = conf.get("spark.master", "")
        if not master.startswith(_PREFIX):
            return None
        url = master.removeprefix(_PREFIX)
        return cls(
            url=url if "://" in url else f"https://{url}",
            namespace=conf.get("spark.kubernetes.namespace", "default"),
            application_id=conf["spark.app.id"],
        )

    def remove(self) -> bool:
        """Delete the objects; return False if that has to be tried again. Idempotent."""
        try:
            from jobserver_pyspark.launcher import kubernetes_api  # noqa: PLC0415 - needs an extra
        except ImportError:
            _log.warning(
                "cannot remove what the application %s may have left on Kubernetes: install "
                "'jobserver-core[kubernetes]'",
                self.application_id,
            )
            return True
        labels = {_SELECTOR: self.application_id}
        if problem := kubernetes_api.delete_labelled(self.url, self.namespace, labels):
            _log.warning(
                "cannot remove what the application %s left on Kubernetes: %s; the next start tries again",
                self.application_id,
                problem,
            )
        return not problem


def lost_objects(context: Context, master: str, site: Mapping[str, str]) -> ClusterObjects | None:
    """Return what a context of a dead server may have left in a cluster, None without a cluster.

    ``master`` is the default of this server, and ``site`` the SparkConf of its ``spark-defaults.conf``.
    """
    try:
        settings = read_settings(context.settings, default_master=master, accepted=True)
    except InvalidSetting:  # an earlier release has accepted it
        return None
    own = {
        "spark.master": settings.master,
        "spark.app.id": context.application_id or _application_id(context.id),
    }
    return ClusterObjects.of({**driver_settings(os.environ), **site, **settings.conf, **own})
