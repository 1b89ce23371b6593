"""The job server over HTTP: spark-jobserver's API as an ASGI application, and a server to run it."""

from jobserver_http.addresses import BrowserGuard
from jobserver_http.application import HttpApplication, create_app
from jobserver_http.authentication import Authenticator, Credentials, Identity
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
