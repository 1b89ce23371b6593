"""A backend with a fault in its options, or in its creation from them, fails the contract."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from faults import LEFT_THREADS

from jobserver_core.config.settings import Settings
from jobserver_core.errors import InvalidSetting
from jobserver_core.memory import MemoryBlobStore
from jobserver_core.testing.options import BackendOptions, OptionsContract

KEY = "jobserver.blobs.options"
CHECK = "test_options_are_accepted_or_refused_without_opening_anything"
CREATION = "test_a_backend_is_created_from_options_that_it_accepts"


class Sound(MemoryBlobStore):
    """A store with the option ``path``, without a fault, for faults to be planted in."""

    caught_by: ClassVar[str]
    because: ClassVar[str]

    @classmethod
    def check_options(cls, settings: Settings) -> None:
        for name in settings.blobs.options.keys() - {"path"}:
            raise InvalidSetting(key=f"{KEY}.{name}", message="is not an option; expected path")


class AcceptsEverything(Sound):
    caught_by = CHECK
    because = f"accepted it; it has to raise InvalidSetting for {KEY}.paht"

    @classmethod
    def check_options(cls, settings: Settings) -> None:
        return


class RefusesEverything(Sound):
    caught_by = CHECK
    because = "it has to accept these options"

    @classmethod
    def check_options(cls, settings: Settings) -> None:
        raise InvalidSetting(key=f"{KEY}.path", message="is wrong")


class NamesAnotherKey(Sound):
    caught_by = CHECK
    because = f"refused {KEY}; it has to raise InvalidSetting for {KEY}.paht"

    @classmethod
    def check_options(cls, settings: Settings) -> None:
        if settings.blobs.options.keys() - {"path"}:
            raise InvalidSetting(key=KEY, message="has unknown options")


class RaisesAnErrorOfItsOwn(Sound):
    caught_by = CHECK
    because = f"raised KeyError('paht'); it has to raise InvalidSetting for {KEY}.paht"

    @classmethod
    def check_options(cls, settings: Settings) -> None:
        for name in settings.blobs.options:
            {"path": 1}[name]


class ReturnsAnAnswer(Sound):
    caught_by = CHECK
    because = "returned False; it has to return None"

    @classmethod
    def check_options(cls, settings: Settings) -> Any:
        return False


class CreatesAFile(Sound):
    caught_by = CHECK
    because = "check_options created ['blobs']"

    @classmethod
    def check_options(cls, settings: Settings) -> None:
        super().check_options(settings)
        settings.option_path(f"{KEY}.path", Path("blobs")).touch()


class StartsAThread(Sound):
    caught_by = CHECK
    because = "left behind; check_options may only look"

    @classmethod
    def check_options(cls, settings: Settings) -> None:
        LEFT_THREADS.add()


class CreationRaises(Sound):
    caught_by = CREATION
    because = "raised AttributeError("

    @classmethod
    def from_settings(cls, settings: Settings, data_dir: Path) -> Any:
        return settings.blob  # type: ignore[attr-defined]


class CreatesNothing(Sound):
    caught_by = CREATION
    because = "returned None instead of a BlobStore"

    @classmethod
    def from_settings(cls, settings: Settings, data_dir: Path) -> Any:
        cls()


class OutlivesItsClose(Sound):
    caught_by = CREATION
    because = "left behind; what from_settings starts has to end with close()"

    @classmethod
    def from_settings(cls, settings: Settings, data_dir: Path) -> Any:
        LEFT_THREADS.add()
        return cls()


def _run(store: type[Sound], names: Sequence[str], directory: Path) -> None:
    class Suite(OptionsContract):
        def backend_options(self, directory: Path) -> BackendOptions:
            return BackendOptions(
                backend=store,
                accepted=[{}, {f"{KEY}.path": "blobs"}],
                refused=[({f"{KEY}.paht": "blobs"}, f"{KEY}.paht")],
            )

    for name in names:
        target = directory / name
        target.mkdir()
        getattr(Suite(), name)(target)


def test_a_backend_without_a_fault_passes(tmp_path: Path) -> None:
    _run(Sound, OptionsContract.contract_tests(), tmp_path)


@pytest.mark.parametrize("fault", Sound.__subclasses__(), ids=lambda fault: fault.__name__)
def test_the_contract_catches(fault: type[Sound], tmp_path: Path) -> None:
    try:
        with pytest.raises(AssertionError) as caught:
            _run(fault, [fault.caught_by], tmp_path)
        assert fault.because in str(caught.value)
    finally:
        LEFT_THREADS.end()


def test_a_suite_without_options_skips_them_and_names_the_hook(tmp_path: Path) -> None:
    with pytest.raises(pytest.skip.Exception, match=r"backend_options\(\) of this suite returns no options"):
        getattr(OptionsContract(), CHECK)(tmp_path)
