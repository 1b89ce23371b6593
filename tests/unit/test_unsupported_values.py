"""A value that JSON cannot represent is refused with its key and with what to write instead."""

from __future__ import annotations

import decimal
import enum
import uuid
from collections import UserDict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from jobserver_core.errors import InvalidConfig, InvalidSetting
from jobserver_core.models.arguments import check_settings, config_text
from jobserver_core.models.json_values import WrittenFloat


class Colour(enum.Enum):
    RED = 1


class Array:
    """What has the methods of NumPy's arrays."""

    def tolist(self) -> list[int]:
        return [1]

    def item(self) -> int:
        return 1


class Column:
    """What has every attribute that it is asked for, like columns of Spark and objects of py4j."""

    def __getattr__(self, name: str) -> Column:
        return Column()


@pytest.mark.parametrize(
    ("config", "key", "advice"),
    [
        ({"input": {"path": Path("a")}}, "input.path", "str(path)"),
        ({"a": [1, {"b": (2, Path("a"))}]}, "a[1].b[1]", "str(path)"),
        ({"a": UserDict(b=Path("a"))}, "a.b", "str(path)"),
        ({"a": 1, "since": datetime.now(timezone.utc)}, "since", "value.isoformat()"),
        ({"a": {1, 2}}, "a", "a list, such as sorted(value)"),
        ({"a": b"x"}, "a", "value.decode()"),
        ({"a": Colour.RED}, "a", "value.value"),
        ({"a": decimal.Decimal("1.5")}, "a", "str(value)"),
        ({"a": uuid.UUID(int=1)}, "a", "str(value)"),
        ({"a": Array()}, "a", "value.tolist()"),
        ({"a": Column()}, "a", "a string, a number, a boolean, None, a list or a mapping"),
        ({"a": object()}, "a", "a string, a number, a boolean, None, a list or a mapping"),
        ({"a": {"b": float("nan")}}, "a.b", "None or a string"),
        ({"a": WrittenFloat("1e999"), "b": [float("-inf")]}, "b[0]", "None or a string"),
    ],
)
def test_a_value_that_json_cannot_represent_is_refused_with_its_key(
    config: dict[str, Any], key: str, advice: str
) -> None:
    with pytest.raises(InvalidConfig) as refused:
        config_text(config)
    assert f"key '{key}': " in str(refused.value)
    assert str(refused.value).endswith(f"; use {advice}")
    with pytest.raises(InvalidSetting) as refused:
        check_settings(config)
    assert refused.value.key == f"spark.context-settings.{key}"
    assert refused.value.message.endswith(f"; use {advice}")


def test_a_key_that_is_not_a_string_is_refused_with_its_place() -> None:
    with pytest.raises(InvalidConfig, match=r"key 'a\.b': its keys must be strings, not int"):
        config_text({"a": {"b": {1: 2}}})
    config: dict[Any, Any] = {(1, 2): 3}
    with pytest.raises(InvalidConfig, match="only JSON values: its keys must be strings, not tuple"):
        config_text(config)


def test_a_configuration_that_contains_itself_is_refused() -> None:
    config: dict[str, Any] = {"a": {}}
    config["a"]["b"] = config
    with pytest.raises(InvalidConfig, match="nested too deeply, or contains itself"):
        config_text(config)
    config["c"] = Path("a")
    with pytest.raises(InvalidConfig, match="key 'c'"):
        config_text(config)


def test_the_error_does_not_show_the_value() -> None:
    with pytest.raises(InvalidConfig) as refused:
        config_text({"password": b"secret"})
    assert "secret" not in str(refused.value)
