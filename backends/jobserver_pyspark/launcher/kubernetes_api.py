"""Deletes objects of a Kubernetes cluster by label."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from urllib.parse import urlsplit

import httpx2
from lightkube import Client, KubeConfig
from lightkube.config.kubeconfig import SingleConfig
from lightkube.config.models import Cluster, User
from lightkube.core.exceptions import ApiError, ConfigError
from lightkube.resources.core_v1 import ConfigMap, PersistentVolumeClaim, Pod, Service

_Kind = type[Pod] | type[ConfigMap] | type[Service] | type[PersistentVolumeClaim]
_KINDS: tuple[_Kind, ...] = (Pod, ConfigMap, Service, PersistentVolumeClaim)
_TIMEOUT = httpx2.Timeout(10.0, connect=3.0)
"""For each request: the end of a context is reported after them."""
_SERVICE = "kubernetes.default.svc"
_SERVICE_NAMES = frozenset({"kubernetes", "kubernetes.default", _SERVICE, f"{_SERVICE}.cluster.local"})
"""The names of the API server in a pod."""


def delete_labelled(url: str, namespace: str, labels: Mapping[str, str]) -> str | None:
    """Delete the objects that executors consist of and that have these labels; return the problem, if any.

    Credentials are those of the pod's service account or of the kubeconfig file. They are sent over TLS only,
    and only to the server that they are for, because contexts choose the URL.
    """
    try:
        with Client(config=_config(url), timeout=_TIMEOUT) as client:
            for kind in _KINDS:
                for found in list(client.list(kind, namespace=namespace, labels=dict(labels))):
                    if found.metadata is not None and found.metadata.name is not None:
                        _delete(client, kind, found.metadata.name, namespace)
    except Exception as error:  # noqa: BLE001 - nothing that a cluster or a kubeconfig file says stops an end
        return f"{url} namespace {namespace}: {error}"
    return None


def _delete(client: Client, kind: _Kind, name: str, namespace: str) -> None:
    try:
        client.delete(kind, name, namespace=namespace)
    except ApiError as error:
        if error.response.status_code != HTTPStatus.NOT_FOUND:
            raise


def _config(url: str) -> SingleConfig:
    """Return how to connect to this API server.

    Raises:
        ConfigError: The configuration of Kubernetes is missing or invalid.
    """
    if not url.startswith("https://"):
        return _single(KubeConfig.from_one(cluster=Cluster(server=url), user=User()))
    found = _single(KubeConfig.from_env())
    if not _for_server(found, url):
        raise ConfigError(
            f"there are credentials for {found.cluster.server} only; use that URL in spark.master"
        )
    cluster = Cluster(
        server=url,
        certificate_auth=found.cluster.certificate_auth,
        certificate_auth_data=found.cluster.certificate_auth_data,
        insecure=found.cluster.insecure,
    )
    return found._replace(cluster=cluster)


def _for_server(config: SingleConfig, url: str) -> bool:
    """Whether credentials are for the API server at this URL, which may have several names in a pod."""
    scheme, host, port = _origin(config.cluster.server)
    names = {host, *_SERVICE_NAMES} if config.fname is None else {host}
    return any(_origin(url) == (scheme, name, port) for name in names)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else None)


def _single(config: KubeConfig) -> SingleConfig:
    found = config.get()
    if found is None:
        raise ConfigError("the kubeconfig file selects no context")
    return found
