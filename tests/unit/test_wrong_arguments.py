"""Objects of the wrong type, given to public constructors and factories, are refused in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobserver_client import Client
from jobserver_core import ContextQuery, JobFailed, JobRequest, JobServer, Settings, load_settings
from jobserver_core.callbacks.transports import CallableTransport, LoggingTransport
from jobserver_core.errors import InvalidRequest
from jobserver_core.memory import (
    InlineJob,
    InlineLauncher,
    MemoryBlobStore,
    MemoryFetcher,
    MemoryMetadataStore,
    MemoryTransport,
)
from jobserver_core.testing.clock import ManualClock
from jobserver_core.testing.server import empty_wheel
from jobserver_fsspec import FsspecBlobStore, FsspecFetcher
from jobserver_http import BrowserGuard
from jobserver_httpx import HttpxTransport
from jobserver_net.policy import AddressPolicy

Made = Callable[..., Any]
"""Without the types of the arguments, as a program that no type checker looks at calls it."""
in_memory: Made = JobServer.in_memory
from_settings: Made = JobServer.from_settings
from_mapping: Made = Settings.from_mapping
loaded: Made = load_settings
settings: Made = Settings
inline: Made = InlineLauncher
blobs: Made = MemoryBlobStore
metadata: Made = MemoryMetadataStore
fetcher: Made = MemoryFetcher
functions: Made = CallableTransport
log: Made = LoggingTransport
memory: Made = MemoryTransport
files: Made = FsspecBlobStore
fetches: Made = FsspecFetcher
posts: Made = HttpxTransport
guard: Made = BrowserGuard
client: Made = Client
query: Made = ContextQuery
URL = "http://localhost:8090"
REQUEST = JobRequest(class_name="w.Count", class_path="w")

BAD_TOKENS = ("", "secret\n", " secret", "se\ncret", "säcret")
WRONG: list[tuple[Callable[[], object], str]] = [
    (
        lambda: in_memory(launcher=InlineLauncher),
        "launcher must be an object of a subclass of Launcher, not the class InlineLauncher",
    ),
    (lambda: in_memory(metadata=3), "metadata must be an object of a subclass of MetadataStore, not int"),
    (lambda: in_memory(blobs=MemoryBlobStore), "blobs must be .* not the class MemoryBlobStore"),
    (lambda: in_memory(fetcher="x"), "fetcher must be an object of a subclass of Fetcher, not str"),
    (lambda: in_memory(clock=3), "clock must be an object of a subclass of Clock, not int"),
    (lambda: in_memory(ids=3), "ids must be an object of a subclass of Ids, not int"),
    (lambda: in_memory(settings=Settings), "settings must be Settings .* not the class Settings"),
    (lambda: in_memory(data_dir=3), "data_dir must be the path of a directory, not int"),
    (
        lambda: in_memory(transports=[log(), print]),
        "transports must be a list of objects of subclasses of Transport, but one is builtin_function",
    ),
    (
        lambda: in_memory(transports=functions(print)),
        "transports must be a list of objects of subclasses of Transport, not CallableTransport",
    ),
    (lambda: in_memory(transports="ab"), "transports must be a list of .* not str"),
    (lambda: from_settings({}), "settings must be Settings .* not dict"),
    (lambda: from_settings(Settings(), launcher=InlineLauncher), "launcher must be .* not the class Inline"),
    (lambda: from_settings(Settings(), transports=3), "transports must be a list of .* not int"),
    (lambda: from_mapping(3), "the settings must be a mapping, .* not int"),
    (lambda: from_mapping({}, env=3), "env must be a mapping of environment variables, not int"),
    (lambda: loaded(3), "path must be the path of a configuration file, not int"),
    (lambda: loaded(overrides=["a"]), "overrides must be a mapping of settings, not list"),
    (lambda: settings(spark={}), r"spark must be SparkSettings\(…\), not dict"),
    (lambda: inline(print), "functions must be a mapping of class names to functions, not builtin_function"),
    (lambda: inline(start_delay="x"), "start_delay must be a number of seconds"),
    (lambda: inline(start_delay=None), "start_delay must be a number of seconds"),
    (lambda: inline(kill_grace="x"), "kill_grace must be a number of seconds"),
    (lambda: inline(kill_grace=None), "kill_grace must be a number of seconds"),
    (lambda: fetcher(["a"]), "files must be a mapping of URIs to bytes, not list"),
    (lambda: fetcher({"http://h/a": "text"}), "the content of http://h/a must be bytes, not str"),
    (lambda: fetcher(schemes="http"), "schemes must be a list of strings, not str"),
    (lambda: fetcher(denied_hosts=[3]), "denied_hosts must be a list of strings, but one is int"),
    (lambda: blobs(clock=3), "clock must be an object of a subclass of Clock, not int"),
    (lambda: metadata(now=3), "now must be a function, not int"),
    (lambda: functions(print, schemes="log"), "schemes must be a list of strings, not str"),
    (lambda: functions(print, max_overdue="x"), "max_overdue must be an integer, not str"),
    (lambda: log(schemes="log"), "schemes must be a list of strings, not str"),
    (lambda: log(logger=3), "logger must be the name of a logger, not int"),
    (lambda: files(3), "url must be the URL or the path of a directory, not int"),
    (lambda: files("/tmp", options=3), "options must be a mapping, not int"),
    (lambda: fetches(policy=AddressPolicy), "policy must be an AddressPolicy, not the class AddressPolicy"),
    (lambda: fetches(allowed_folders="/tmp"), r"allowed_folders must be a list of paths .* not str"),
    (lambda: fetches(options=["s3"]), "options must be a mapping of schemes to options, not list"),
    (lambda: posts(signer="secret"), "signer must be a Signer, not str"),
    (lambda: posts(resolver=3), "resolver must be a function, not int"),
    (lambda: guard(origins="https://a"), "origins must be a list of strings, not str"),
    (lambda: guard(hosts=[3]), "hosts must be a list of strings, but one is int"),
    (lambda: client(URL, timeout="5"), "timeout must be a number of seconds, .* got '5'"),
    (lambda: client(URL, connect_timeout="5"), "connect_timeout must be a number of seconds"),
    (lambda: client(URL, reconnect_timeout="5"), "reconnect_timeout must be a number of seconds"),
    (lambda: client(URL, reconnect_timeout=None), "reconnect_timeout must be a number of seconds"),
    (lambda: client(URL, retries="5"), "retries must be a whole number, not str"),
    (lambda: client(URL, token=5), "token must be a string, not int"),
    (lambda: client(URL, user=5, password="x"), "user must be a string, not int"),
    (lambda: client(URL, user="x", password=5), "password must be a string, not int"),
    (lambda: client(URL, user="x"), "a user needs a password"),
    (lambda: client(URL, password="x"), "a password needs a user"),
    (lambda: client(URL, ca_file=5), "ca_file must be the path of a file, not int"),
    (lambda: client(URL, ssl_context=5), "ssl_context must be an ssl.SSLContext, not int"),
    *(
        (lambda value=value: client(URL, token=value), "^token must be printable ASCII")
        for value in BAD_TOKENS
    ),
    (lambda: client(URL, user_agent="ä"), "^user_agent must be printable ASCII"),
    (lambda: client(URL, user="x", password="\udcf6"), "^user and password must be valid Unicode$"),
    (lambda: client(URL, user_agent=5), "user_agent must be a string, not int"),
    (lambda: ManualClock().advance("5"), "seconds must be a number of seconds, .* got '5'"),
    (lambda: ManualClock().advance(None), "seconds must be a number of seconds, .* got None"),
    (lambda: memory(schemes=3), "schemes must be a list of strings, not int"),
]


@pytest.mark.parametrize(("make", "expected"), WRONG)
def test_an_object_of_the_wrong_type_is_refused_in_words(make: Callable[[], object], expected: str) -> None:
    with pytest.raises(InvalidRequest, match=expected):
        make()


@pytest.mark.parametrize("last", ["x", 1.5, -4, True])
def test_the_end_of_a_log_is_a_number_of_bytes(last: object) -> None:
    with in_memory() as server:
        for opened in (server.open_job_log, server.open_context_log):
            with pytest.raises(InvalidRequest, match=f"^last must be a number of bytes, .* not {last!r}$"):
                opened("x", last=last)


def test_a_data_directory_may_be_a_string(tmp_path: Path) -> None:
    in_memory(data_dir=str(tmp_path / "data")).close()
    assert (tmp_path / "data" / "server.id").exists()


def test_contexts_are_selected_by_a_query() -> None:
    with (
        in_memory() as server,
        pytest.raises(InvalidRequest, match=r"^the query must be a ContextQuery, not str$"),
    ):
        server.contexts("warm")


def test_the_log_of_a_context_needs_its_name() -> None:
    with in_memory() as server:
        server.create_context("warm").result(timeout=30)
        for opened in (server.context_log, server.open_context_log):
            with pytest.raises(InvalidRequest, match=r"^a context's name must be a string, not NoneType$"):
                opened(None)


CALLS: list[tuple[Callable[[Any], object], str]] = [
    (lambda server: server.contexts({}), "the query must be a ContextQuery, not dict"),
    (lambda server: server.contexts(query(limit="5")), "limit must be an integer, not str"),
    (lambda server: server.contexts(query(limit=True)), "limit must be an integer, not bool"),
    (lambda server: server.contexts(query(limit=-1)), "limit must be 0 to 10000, got -1"),
    (lambda server: server.contexts(query(name=5)), "name must be a string or None, not int"),
    (lambda server: server.contexts(query(owner=5)), "owner must be a string or None, not int"),
    (lambda server: server.context_before("warm"), "the context must be a Context, not str"),
    (lambda server: server.parse_config(None), "the text of a configuration must be a string or bytes, not "),
    (lambda server: server.begin_submit(REQUEST, caller=None), "caller must be a string, not NoneType"),
    (lambda server: server.begin_context("c", caller=None), "caller must be a string, not NoneType"),
    (lambda server: server.stop_context("c", user=None), "user must be a string, not NoneType"),
    (lambda server: server.stop_context("c", timeout="5"), "timeout must be a number of seconds, .* got '5'"),
    (lambda server: server.kill_context("c", user=None), "user must be a string, not NoneType"),
    (lambda server: server.reset_contexts(user=None), "user must be a string, not NoneType"),
    (lambda server: server.kill_job("j", user=None), "user must be a string, not NoneType"),
]


@pytest.mark.parametrize(("call", "expected"), CALLS)
def test_an_argument_of_the_wrong_type_is_named(call: Callable[[Any], object], expected: str) -> None:
    with in_memory() as server, pytest.raises(InvalidRequest, match=f"^{expected}"):
        call(server)


@pytest.mark.parametrize("seconds", ["5", None])
def test_a_job_in_memory_sleeps_for_a_number_of_seconds(seconds: Any) -> None:
    def sleep(job: InlineJob) -> None:
        job.sleep(seconds)

    with in_memory(launcher=inline({"w.Sleep": sleep})) as server:
        server.upload("w", "wheel", empty_wheel())
        handle = server.submit(JobRequest(class_name="w.Sleep", class_path="w"))
        with pytest.raises(JobFailed, match=rf"seconds must be a number of seconds, .* got {seconds!r}"):
            handle.result(timeout=30)
