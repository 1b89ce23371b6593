"""The part of every contract about the options of a backend: ``check_options`` and ``from_settings``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

import attrs
import pytest

from jobserver_core.config.settings import Settings
from jobserver_core.errors import InvalidSetting
from jobserver_core.models.json_values import JsonMapping
from jobserver_core.plugins import Backend
from jobserver_core.testing.contract import Contract, assert_none_left, threads_and_processes


@attrs.frozen(kw_only=True)
class BackendOptions:
    """The class of a backend, with configurations that it accepts and refuses.

    A configuration is a mapping of whole keys, such as ``{"jobserver.metadata.options.path": "store.db"}``.
    Each that is accepted has to be enough to create the backend. Each that is refused comes with the key that
    the error has to name.
    """

    backend: type[Backend]
    accepted: Sequence[JsonMapping]
    refused: Sequence[tuple[JsonMapping, str]]


class OptionsContract(Contract):
    """How a backend checks its options, and is created from them."""

    def backend_options(self, directory: Path) -> BackendOptions | None:
        """Return the class of the backend, with configurations that it accepts and refuses.

        Their paths have to be below ``directory``, which is empty and is the working directory meanwhile.
        None, which is the default, skips the tests of options.
        """
        return None

    def _options(self, directory: Path) -> BackendOptions:
        options = self.backend_options(directory)
        if options is None:
            pytest.skip("backend_options() of this suite returns no options to test")
        return options

    def test_options_are_accepted_or_refused_without_opening_anything(self, tmp_path: Path) -> None:
        options = self._options(tmp_path)
        with _working_in(tmp_path):
            for configuration in options.accepted:
                with _expected_to_change_nothing(tmp_path):
                    _accept(options.backend, configuration, tmp_path)
            for configuration, key in options.refused:
                with _expected_to_change_nothing(tmp_path):
                    _refuse(options.backend, configuration, key, tmp_path)

    def test_a_backend_is_created_from_options_that_it_accepts(self, tmp_path: Path) -> None:
        options = self._options(tmp_path)
        port = next(cls for cls in reversed(options.backend.__mro__) if Backend in cls.__bases__)
        for number, configuration in enumerate(options.accepted):
            before = threads_and_processes()
            data_dir = tmp_path / f"data-{number}"
            data_dir.mkdir()
            call = f"from_settings with {configuration}"
            with _working_in(tmp_path):
                try:
                    created = options.backend.from_settings(_settings(configuration, data_dir), data_dir)
                except Exception as error:
                    raise AssertionError(f"{call} raised {error!r}; it has to create the backend") from error
            assert isinstance(created, port), f"{call} returned {created!r} instead of a {port.__name__}"
            with closing(created) if hasattr(created, "close") else nullcontext():
                pass
            assert_none_left(before, "what from_settings starts has to end with close()")


def _settings(configuration: JsonMapping, data_dir: Path) -> Settings:
    return Settings.from_mapping({"jobserver.data-dir": str(data_dir), **configuration}, env={})


@contextmanager
def _working_in(directory: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        yield


@contextmanager
def _expected_to_change_nothing(directory: Path) -> Iterator[None]:
    """Check that the block, which calls ``check_options``, creates no file, thread or process."""
    before = set(directory.rglob("*"))
    running = threads_and_processes()
    yield
    created = sorted(str(path.relative_to(directory)) for path in set(directory.rglob("*")) - before)
    assert not created, f"check_options created {created}; it may only look, and open and create nothing"
    assert_none_left(running, "check_options may only look, and start nothing")


def _accept(backend: type[Backend], configuration: JsonMapping, directory: Path) -> None:
    call = f"check_options with {configuration}"
    settings = _settings(configuration, directory / "data")
    found: object = None
    try:
        found = backend.check_options(settings)
    except Exception as error:
        raise AssertionError(f"{call} raised {error!r}; it has to accept these options") from error
    assert found is None, (
        f"{call} returned {found!r}; it has to return None, and to raise InvalidSetting for what it refuses"
    )


def _refuse(backend: type[Backend], configuration: JsonMapping, key: str, directory: Path) -> None:
    call, right = f"check_options with {configuration}", f"it has to raise InvalidSetting for {key}"
    settings = _settings(configuration, directory / "data")
    refused: InvalidSetting | None = None
    try:
        backend.check_options(settings)
    except InvalidSetting as error:
        refused = error
    except Exception as error:
        raise AssertionError(f"{call} raised {error!r}; {right}") from error
    assert refused is not None, f"{call} accepted it; {right}, or only the start of a server does"
    assert refused.key == key, f"{call} refused {refused.key}; {right}"
