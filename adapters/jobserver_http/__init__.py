"""The job server over HTTP: the contract of spark-jobserver, as an ASGI application and a server."""

from jobserver_http.application import HttpApplication, create_app
from jobserver_http.authentication import Authenticator, Credentials, Identity
from jobserver_http.browsers import BrowserGuard
from jobserver_http.serving import running, serve

__all__ = [
    "Authenticator",
    "BrowserGuard",
    "Credentials",
    "HttpApplication",
    "Identity",
    "create_app",
    "running",
    "serve",
]
