"""A small callback soak test: a real server process, bad receivers, and a SIGKILL in between."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SOAK = Path(__file__).parents[3] / "benchmarks" / "callbacks_soak.py"


@pytest.fixture(scope="module")
def callbacks_soak() -> ModuleType:
    spec = importlib.util.spec_from_file_location("callbacks_soak", SOAK)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_every_callback_is_accounted_for_even_if_the_server_is_killed(
    callbacks_soak: ModuleType, tmp_path: Path
) -> None:
    counts = callbacks_soak.soak(tmp_path, jobs=100, kills=2, limit=120)
    assert counts["wrong"] == []
    assert (counts["kills"], counts["servers"]) == (2, 3)
    assert sum(n for fate, n in counts["fates"].items() if fate.startswith("jobs ")) == 100
    assert counts["fates"]["refusing: ABANDONED"] > 0
    assert counts["fates"]["half: DELIVERED"] > 0
    assert counts["fates"]["killed, so not called back"] > 0
