"""Backends selected by name, and servers built from selected or given parts."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import distribution
from pathlib import Path

import pytest

from jobserver_core import CallableTransport, JobServer, Settings, errors, plugins
from jobserver_core.memory import (
    InlineLauncher,
    MemoryBlobStore,
    MemoryFetcher,
    MemoryMetadataStore,
    MemoryTransport,
)
from jobserver_core.ports import Backend, BlobStore, Fetcher, Launcher, Message, MetadataStore, Transport
from jobserver_http import Authenticator
from serving import WAIT, a_request, upload

PORTS = (MetadataStore, BlobStore, Fetcher, Launcher, Transport, Authenticator)
IN_MEMORY = {port.kind: {"backend": "memory"} for port in (MetadataStore, BlobStore, Fetcher, Launcher)}


def settings(
    data_dir: Path,
    *,
    transports: tuple[str, ...] = (),
    transport_options: Mapping[str, object] | None = None,
    **rest: object,
) -> Settings:
    callbacks = {"transports": list(transports), "options": transport_options or {}}
    return Settings.from_mapping(
        {"jobserver": {"data-dir": str(data_dir), **IN_MEMORY, "callbacks": callbacks, **rest}}
    )


class Refusing(MemoryFetcher):
    """A backend that refuses every setting."""

    @classmethod
    def from_settings(cls, settings: Settings, data_dir: Path) -> Refusing:
        raise errors.InvalidSetting(key="jobserver.fetcher.options.x", message="is not an option")


class Careless(MemoryFetcher):
    """A backend with a mistake."""

    @classmethod
    def from_settings(cls, settings: Settings, data_dir: Path) -> Careless:
        raise KeyError("url")


class Choosy(MemoryFetcher):
    """A backend that refuses options before it is created."""

    @classmethod
    def check_options(cls, settings: Settings) -> None:
        if settings.fetcher.options:
            raise errors.InvalidSetting(key="jobserver.fetcher.options.x", message="is not an option")


class Static(MemoryFetcher):
    """A backend with a static factory."""

    @staticmethod
    def from_settings(settings: Settings, data_dir: Path) -> Static:  # type: ignore[override]
        return Static()


class Clumsy(MemoryFetcher):
    """A backend with a mistake that a library notices."""

    @classmethod
    def from_settings(cls, settings: Settings, data_dir: Path) -> Clumsy:
        (data_dir / "missing" / "directory").mkdir()
        return cls()


class Forgetful(MemoryFetcher):
    """A backend whose factory returns nothing."""

    @classmethod
    def from_settings(cls, settings: Settings, data_dir: Path) -> Forgetful:
        return None  # type: ignore[return-value]


class Unfinished(Fetcher):
    """A backend that lacks what its port requires."""


NOT_A_BACKEND = object()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], None]:
    """Install a distribution with one entry point."""

    def install(group: str, name: str, value: str) -> None:
        info = tmp_path / "plugin" / "more_backends-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: more-backends\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {value}\n")
        monkeypatch.syspath_prepend(str(info.parent))

    return install


def test_a_backend_that_was_installed_after_others_were_looked_up_is_found(
    install: Callable[[str, str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path / "plugin"))
    with pytest.raises(errors.PluginNotFound):
        plugins.find(Fetcher, "late")
    path = list(sys.path)
    install("jobserver.fetcher", "late", "jobserver_core.memory:MemoryFetcher")
    monkeypatch.setattr(sys, "path", path)
    assert plugins.find(Fetcher, "late") is MemoryFetcher


@pytest.mark.parametrize("port", PORTS, ids=lambda port: port.kind)
def test_every_registered_backend_is_a_subclass_of_its_port(port: type[Backend]) -> None:
    names = {
        point.name
        for point in distribution("jobserver-core").entry_points.select(group=f"jobserver.{port.kind}")
    }
    assert names
    for name in names:
        assert issubclass(plugins.find(port, name), port)


def test_a_backend_that_is_not_installed_is_named_with_those_that_are() -> None:
    with pytest.raises(
        errors.PluginNotFound, match=r"no metadata backend named 'mongo'.*memory, sql"
    ) as caught:
        plugins.find(MetadataStore, "mongo")
    assert str(caught.value).endswith("; choose one of these, or install the package that provides it")


def test_the_error_for_a_missing_backend_library_names_the_extra(
    install: Callable[[str, str, str], None],
) -> None:
    install("jobserver.authenticator", "fsspec", "no_such_module:Store")
    with pytest.raises(errors.PluginNotFound, match=r"pip install 'jobserver-core\[fsspec\]'"):
        plugins.find(Authenticator, "fsspec")


def test_an_entry_point_that_is_not_a_backend_of_the_port_is_refused(
    install: Callable[[str, str, str], None],
) -> None:
    install("jobserver.blobs", "odd", f"{__name__}:NOT_A_BACKEND")
    with pytest.raises(errors.PluginFailed) as caught:
        plugins.find(BlobStore, "odd")
    assert str(caught.value) == (
        f"the blobs backend 'odd' of more-backends 1.0 ({__name__}:NOT_A_BACKEND) does not work: "
        "it must be a subclass of jobserver_core.ports.blobs.BlobStore"
    )


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (f"{__name__}:Careless", r"KeyError: 'url' \(.*test_plugins\.py, line \d+\)"),
        (f"{__name__}:Clumsy", r"FileNotFoundError: .* \(.*test_plugins\.py, line \d+\)"),
        (f"{__name__}:Forgetful", "from_settings returned None instead of a Fetcher"),
        (f"{__name__}:NoSuch", r"AttributeError: .*NoSuch"),
        (f"{__name__}:Unfinished", r"the class Unfinished lacks methods of the port: check, fetch$"),
        ("no_such_driver:Fetcher", r"ModuleNotFoundError: No module named 'no_such_driver'$"),
        ("no.such.driver:Fetcher", r"ModuleNotFoundError: No module named 'no'$"),
        ("jobserver_core.ports:Fetcher", r"the class Fetcher lacks methods of the port: check, fetch$"),
    ],
)
def test_a_plugin_that_fails_is_named_with_its_package_and_its_error(
    install: Callable[[str, str, str], None], tmp_path: Path, value: str, reason: str
) -> None:
    install("jobserver.fetcher", "mine", value)
    with pytest.raises(errors.PluginFailed, match=reason) as caught:
        JobServer.from_settings(settings(tmp_path / "data", fetcher={"backend": "mine"}))
    assert (caught.value.package, caught.value.plugin) == ("more-backends 1.0", value)
    with JobServer.from_settings(settings(tmp_path / "data")):  # the lock was released
        pass


def test_a_plugin_is_selected_by_its_name(install: Callable[[str, str, str], None], tmp_path: Path) -> None:
    install("jobserver.fetcher", "refusing", f"{__name__}:Refusing")
    with pytest.raises(errors.InvalidSetting, match="is not an option"):
        JobServer.from_settings(settings(tmp_path / "data", fetcher={"backend": "refusing"}))
    with JobServer.from_settings(settings(tmp_path / "data")) as server:  # the lock was released
        assert server.jobs().jobs == ()


def test_options_are_checked_before_a_backend_is_created(
    install: Callable[[str, str, str], None], tmp_path: Path
) -> None:
    install("jobserver.fetcher", "choosy", f"{__name__}:Choosy")
    wrong = settings(tmp_path / "data", fetcher={"backend": "choosy", "options": {"x": 1}})
    for check in (
        lambda: plugins.check_options(Fetcher, "choosy", wrong),
        lambda: plugins.load(Fetcher, "choosy", wrong, tmp_path),
    ):
        with pytest.raises(errors.InvalidSetting, match="is not an option"):
            check()
    right = settings(tmp_path / "data", fetcher={"backend": "choosy"})
    plugins.check_options(Fetcher, "choosy", right)
    assert isinstance(plugins.load(Fetcher, "choosy", right, tmp_path), Choosy)


def test_the_factory_of_a_backend_may_be_a_static_method(
    install: Callable[[str, str, str], None], tmp_path: Path
) -> None:
    install("jobserver.fetcher", "static", f"{__name__}:Static")
    selected = settings(tmp_path / "data", fetcher={"backend": "static"})
    assert isinstance(plugins.load(Fetcher, "static", selected, tmp_path), Static)


def test_given_parts_replace_the_selected_ones(tmp_path: Path) -> None:
    metadata, blobs, fetcher = MemoryMetadataStore(), MemoryBlobStore(), MemoryFetcher()
    launcher = InlineLauncher({"w.Answer": lambda _job: 42})
    missing = {"backend": "not-installed"}
    chosen = settings(tmp_path, metadata=missing, blobs=missing, fetcher=missing, launcher=missing)
    with JobServer.from_settings(
        chosen, metadata=metadata, blobs=blobs, fetcher=fetcher, launcher=launcher
    ) as server:
        upload(server)
        job = server.submit(a_request("w.Answer"))
        assert job.result(WAIT) == 42
        assert metadata.job(job.id) is not None


def test_a_function_receives_the_callbacks_of_a_server_created_from_settings(tmp_path: Path) -> None:
    received: list[Message] = []
    arrived = threading.Event()

    def on_callback(message: Message) -> None:
        received.append(message)
        arrived.set()

    with JobServer.from_settings(
        settings(tmp_path, transports=("memory",)),
        launcher=InlineLauncher({"w.Answer": lambda _job: 42}),
        transports=[CallableTransport(on_callback)],
    ) as server:
        upload(server)
        job = server.submit(a_request("w.Answer", callback_url="call:billing"))
        assert arrived.wait(WAIT)
        assert json.loads(received[0].body) == {"jobId": job.id, "result": 42}
        with pytest.raises(errors.InvalidCallbackUrl, match="call, memory"):
            server.submit(a_request("w.Answer", callback_url="ftp://billing"))


class Queueing(MemoryTransport):
    """A transport with an option."""

    options = ("topic",)


class Silent(MemoryTransport):
    """A transport that does not name its options, unlike the one it extends."""


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("topik", "jobserver.callbacks.options.topic"),
        ("max_attempt", "jobserver.callbacks.max-attempts"),
        ("colour", None),
    ],
)
def test_an_option_that_no_transport_has_is_refused(tmp_path: Path, key: str, nearest: str | None) -> None:
    chosen = settings(tmp_path, transports=("logging",), transport_options={key: 1})
    with pytest.raises(errors.InvalidSetting, match="expected one of topic") as caught:
        JobServer.from_settings(chosen, transports=[Queueing()])
    assert caught.value.key == f"jobserver.callbacks.options.{key}"
    assert caught.value.nearest == nearest


class Wordy(MemoryTransport):
    """A transport whose options are one string."""

    options = "line"  # type: ignore[assignment]


def test_options_that_are_no_tuple_of_names_are_refused_in_words(tmp_path: Path) -> None:
    chosen = settings(tmp_path, transports=("logging",), transport_options={"line": 1})
    for create in (partial(JobServer.from_settings, chosen), JobServer.in_memory):
        with pytest.raises(errors.TransportError) as caught:
            create(transports=[Wordy()])
        assert str(caught.value) == (
            "the transport Wordy must name its options as a tuple: options = ('topic',), or () if it has "
            "none, not 'line'"
        )


def test_options_are_accepted_if_a_transport_has_them_or_does_not_say(tmp_path: Path) -> None:
    for number, (option, transport) in enumerate([("topic", Queueing()), ("colour", Silent())]):
        chosen = settings(tmp_path / str(number), transports=("logging",), transport_options={option: 1})
        JobServer.from_settings(chosen, transports=[transport]).close()


def test_options_are_accepted_if_there_is_no_transport(tmp_path: Path) -> None:
    JobServer.from_settings(settings(tmp_path, transports=(), transport_options={"colour": 1})).close()


def test_two_transports_for_one_scheme_are_refused_and_leave_nothing_open(tmp_path: Path) -> None:
    chosen = settings(tmp_path, transports=("memory",))
    with pytest.raises(errors.TransportError, match="two transports serve memory: URLs"):
        JobServer.from_settings(chosen, transports=[MemoryTransport(schemes=("memory",))])
    with JobServer.from_settings(chosen):
        pass
