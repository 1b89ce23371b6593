r"""Parse HOCON, the language of configurations: requests of users, and the server's own files.

Syntax and meaning are those of the HOCON specification; JSON is a subset. Values become plain dicts, lists,
strings, numbers, booleans and None. A duration or a size such as ``10 s`` stays a string, which the reader of
the setting interprets. A number keeps its original text if its value alone does not reproduce that
(:class:`~jobserver_core.models.json_values.WrittenFloat`).

The parser is our own, because the one on the package index gives wrong results (``+=``, ``\u00e9``,
``true story``, quoted keys in paths), reads files for ``include`` even inside values, uses the environment,
and takes seconds for input that an attacker can send quickly.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from jobserver_core.config.hocon.merging import merge_into
from jobserver_core.config.hocon.nodes import Include, Node, Object, Source
from jobserver_core.config.hocon.resolution import Resolver
from jobserver_core.config.hocon.syntax import MAX_NUMBER_LENGTH, Parser
from jobserver_core.config.trees import HiddenSettings, all_settings, hidden_settings
from jobserver_core.errors import InvalidConfig
from jobserver_core.models.json_values import Json, JsonMapping, JsonObject, WrittenObject, number

__all__ = ["parse_file", "parse_untrusted", "read_untrusted"]

_TRUSTED_SIZE = 64 * 1024 * 1024
"""The most bytes that a configuration file may resolve to: many, because the operator wrote it."""
_TRUSTED_DEPTH = 100
"""How deep blocks of a configuration file may be nested; Python's stack allows this much."""
_MAX_INCLUDES = 20
"""How deep files may include each other; nobody reads a longer chain."""
_MAX_STEPS = 300_000
"""The most steps to resolve any text: 0.6 seconds, at two microseconds each."""
_CONTAINERS = (dict, list)
_FREE_STEPS, _STEPS_PER_LETTER = 20_000, 30
"""The maximum number of steps to resolve a text: few for a short one, so that it needs no queue."""
_Settings = dict[tuple[str, ...], Node]


class _Collected(NamedTuple):
    """What the parsers of a file and of the files that it includes collect together."""

    settings: _Settings
    origins: dict[str, str]


_SUFFIXES = (".conf", ".json", ".properties")
"""Endings of files to include, by descending precedence."""


def parse_untrusted(text: str | bytes, *, max_bytes: int = 1024 * 1024, max_depth: int = 100) -> JsonObject:
    """Return the object of a user's HOCON or JSON; empty text is an empty object.

    Includes of any kind are refused, and the environment is not used: ``${X}`` refers to a key of the text
    itself and is an error if that is missing; ``${?X}`` is then left out. ``max_bytes`` limits the text (as
    UTF-8) before and after substitution; ``max_depth`` limits the nesting of objects and lists, counting the
    outermost object. If the text has settings of Spark below settings, the result is a
    :class:`~jobserver_core.config.trees.HiddenSettings`.

    Bytes must be UTF-8.

    Raises:
        InvalidConfig: The text is invalid or exceeds a limit; with line and column where known.
    """
    decoded = _decoded(text, max_bytes)
    plain = _json_object(decoded, max_depth)
    return plain if plain is not None else _parse(decoded, max_bytes=max_bytes, max_depth=max_depth)


def read_untrusted(text: str | bytes, *, max_bytes: int, max_depth: int) -> JsonMapping:
    """Parse as :func:`parse_untrusted` does, and keep the text if it is JSON."""
    decoded = _decoded(text, max_bytes)
    if not decoded:
        return WrittenObject({}, "{}")
    plain = _json_object(decoded, max_depth)
    if plain is not None:
        return WrittenObject(plain, decoded)
    return _parse(decoded, max_bytes=max_bytes, max_depth=max_depth)


def parse_file(
    path: str | os.PathLike[str],
    *,
    env: Mapping[str, str] | None = None,
    origins: dict[str, str] | None = None,
    defaults: Mapping[str, Json] | None = None,
) -> JsonObject:
    """Return the object of a trusted HOCON file.

    ``include "name"``, ``include file("name")`` and ``required(…)`` around either read files relative to
    the including one: ``name`` if it ends with ``.conf``, ``.json`` or ``.properties``, otherwise the files
    with these endings, merged so that ``.conf`` wins. A missing file is ignored unless it is required.
    If no key is named ``NAME``, ``${NAME}`` is looked up in ``env``, by default the environment of this
    process. Settings of Spark below settings are all included, see
    :func:`~jobserver_core.config.trees.all_settings`. ``origins`` gets the file that each value is from, by
    the dotted path of its key. ``defaults`` has values by dotted paths of keys; the file begins with those of
    the keys that it sets, so ``key += value`` appends to a default list.

    Raises:
        InvalidConfig: A file is invalid or cannot be read.
    """
    settings: _Settings = {}
    origins = {} if origins is None else origins
    root = _parse_source(Path(path), _Collected(settings, origins))
    if extended := {key: value for key, value in (defaults or {}).items() if key in origins}:
        root = _laid_on(extended, root)
    environment = os.environ if env is None else env
    resolver = Resolver(root, max_size=_TRUSTED_SIZE, max_depth=_TRUSTED_DEPTH, env=environment)
    try:
        return dict(all_settings(_with_hidden(resolver.resolve(), settings, resolver)))
    except RecursionError:
        raise _too_deep(_TRUSTED_DEPTH) from None


def _laid_on(defaults: Mapping[str, Json], upper: Object) -> Object:
    text = "\n".join(f"{key} = {json.dumps(value)}" for key, value in defaults.items())
    root = Parser(Source(text), max_depth=_TRUSTED_DEPTH, include=lambda _statement: None).parse()
    merge_into(root, upper)
    return root


def _with_hidden(tree: JsonObject, settings: _Settings, resolver: Resolver) -> JsonObject:
    hidden = hidden_settings(settings, tree, resolver.value)
    return HiddenSettings(tree, hidden) if hidden else tree


def _decoded(text: str | bytes, max_bytes: int) -> str:
    if len(text) > max_bytes:
        raise _too_large(max_bytes)
    try:
        if isinstance(text, bytes):
            text = text.decode()
        elif len(text.encode()) > max_bytes:
            raise _too_large(max_bytes)
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise InvalidConfig(message=f"the configuration must be encoded in UTF-8: {error.reason}") from None
    return text.removeprefix("\ufeff")


def _too_large(max_bytes: int) -> InvalidConfig:
    return InvalidConfig(message=f"the configuration is larger than the limit of {max_bytes} bytes")


def _too_deep(max_depth: int) -> InvalidConfig:
    return InvalidConfig(message=f"objects and lists nest deeper than the limit of {max_depth}")


# -- JSON, which is also HOCON, but faster to parse --------------------------------------------------


def _unique(pairs: list[tuple[str, Json]]) -> JsonObject:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("HOCON merges equal keys")
    return result


def _number(written: str) -> int | float:
    if len(written) > MAX_NUMBER_LENGTH:
        raise ValueError("too long")
    value = number(written)
    if value in (float("inf"), float("-inf")):
        raise ValueError("too large")
    return value


def _not_json(constant: str) -> None:
    raise ValueError(f"{constant} is a string in HOCON")


def _json_object(text: str, max_depth: int) -> JsonObject | None:
    """Return the object of plain JSON, or None for text that needs the HOCON parser.

    Raises:
        InvalidConfig: It exceeds a limit.
    """
    if not text.lstrip().startswith("{"):
        return None
    parse = json.JSONDecoder(
        parse_int=_number if "-0" in text or _may_have_long_integers(text) else None,
        parse_float=_number,
        parse_constant=_not_json,
    )
    try:
        value = parse.decode(text)
        if not isinstance(value, dict):
            return None
        if _may_repeat_keys(text, _keys_within(max_depth, value)):
            json.loads(text, object_pairs_hook=_unique)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return value


_DIGITS = re.compile("[0-9]{10}")


def _may_have_long_integers(text: str) -> bool:
    """Whether the text may have an integer longer than the limit; a cheap test, which may be wrong."""
    return _DIGITS.search(text[:: MAX_NUMBER_LENGTH // 10]) is not None


_END_OF_KEY = re.compile(r'"[ \t\r\n]*:')


def _may_repeat_keys(text: str, keys: int) -> bool:
    """Whether a JSON text may have more keys than its parsed value.

    It has at most as many as it has colons after a quote. Some of those may be inside of strings.
    """
    return text.count(":") != keys and len(_END_OF_KEY.findall(text)) != keys


def _keys_within(max_depth: int, value: JsonObject) -> int:
    """Return the number of keys of all objects.

    Raises:
        InvalidConfig: They nest too deeply.
    """
    keys, level = 0, list[Json]([value])
    for _ in range(max_depth):
        items: list[Json] = []
        for container in level:
            if type(container) is dict:
                keys += len(container)
                items += container.values()
            else:
                items += container
        level = [item for item in items if type(item) in _CONTAINERS]
        if not level:
            return keys
    raise _too_deep(max_depth)


# -- HOCON -----------------------------------------------------------------------------------------


def _refuse(include: Include) -> Object | None:
    raise include.error("'include' is not allowed here: send the whole configuration")


def _parse(text: str, *, max_bytes: int, max_depth: int) -> JsonObject:
    settings: _Settings = {}
    try:
        root = Parser(Source(text), max_depth=max_depth, include=_refuse, settings=settings).parse()
        steps = min(_MAX_STEPS, _FREE_STEPS + _STEPS_PER_LETTER * len(text))
        resolver = Resolver(root, max_size=max_bytes, max_depth=max_depth, max_steps=steps)
        value = _with_hidden(resolver.resolve(), settings, resolver)
        if "\\u" in text:
            hidden = value.hidden.values() if isinstance(value, HiddenSettings) else ()
            json.dumps([value, *hidden], ensure_ascii=False).encode()
    except RecursionError:
        raise _too_deep(max_depth) from None
    except UnicodeEncodeError:
        raise InvalidConfig(message="\\u escapes of surrogates must come in pairs") from None
    return value


def _parse_source(
    path: Path, collected: _Collected, including: tuple[Path, ...] = (), prefix: tuple[str, ...] = ()
) -> Object:
    chain = (*including, path)
    try:
        return Parser(
            Source(_read(path), str(path)),
            max_depth=_TRUSTED_DEPTH,
            include=lambda statement: _include(statement, collected, chain),
            prefix=prefix,
            settings=collected.settings,
            origins=collected.origins,
        ).parse()
    except RecursionError:
        raise _too_deep(_TRUSTED_DEPTH) from None


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode().removeprefix("\ufeff")
    except OSError as error:
        raise InvalidConfig(message=f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InvalidConfig(message=f"{path} must be encoded in UTF-8: {error.reason}") from None


def _include(statement: Include, collected: _Collected, chain: tuple[Path, ...]) -> Object | None:
    if statement.kind not in (None, "file"):
        raise statement.error(f"include {statement.kind}(…) is not supported; include a file")
    path = chain[-1].parent / os.path.expanduser(statement.name)
    candidates = [path] if path.suffix in _SUFFIXES else [Path(f"{path}{suffix}") for suffix in _SUFFIXES]
    found = [candidate for candidate in candidates if candidate.is_file()]
    if not found:
        if statement.required:
            names = " or ".join(map(str, candidates))
            raise statement.error(f"the required file {names} does not exist")
        return None
    merged = Object()
    for file in reversed(found):
        merge_into(merged, _include_file(statement, file, collected, chain, alone=len(candidates) == 1))
    return merged


def _include_file(
    statement: Include, file: Path, collected: _Collected, chain: tuple[Path, ...], *, alone: bool
) -> Object:
    if len(chain) >= _MAX_INCLUDES or file.resolve() in {other.resolve() for other in chain}:
        raise statement.error(f"{file} includes itself, directly or through other files")
    if file.suffix == ".properties" and not alone:
        properties = dict(_pairs(_read(file)))
        keys = (".".join([*statement.prefix, key]) for key in properties)
        collected.origins.update(dict.fromkeys(keys, str(file)))
        return _properties_object(properties)
    return _parse_source(file, collected, chain, statement.prefix)


# -- Java's properties files, which an include reads in addition to .conf and .json -----------------------


_BLANK_OR_COMMENT = re.compile(r"[ \t\f]*(?:[#!].*)?")
_KEY = re.compile(r"[ \t\f]*((?:[^\\ \t\f=:]|\\.)*)[ \t\f]*[=:]?[ \t\f]*")
_ESCAPE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|(.))")
_LETTERS = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
_CONTINUED = re.compile(r"(?:^|[^\\])(?:\\\\)*\\$")


def _properties_object(properties: Mapping[str, str]) -> Object:
    """Return the object of a properties file: keys are paths with dots, all values are strings.

    If a key has both a value and keys below it, the keys below win.
    """
    root = Object()
    for key in sorted(properties, key=lambda key: key.count(".")):
        *parents, name = key.split(".")
        target = root
        for parent in parents:
            if not isinstance(target.fields.get(parent), Object):
                target.fields[parent] = Object()
            target = target.fields[parent]
        target.fields[name] = properties[key]
    return root


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for line in _lines(text):
        match = _KEY.match(line)
        if match is not None:
            yield _unescaped(match[1]), _unescaped(line[match.end() :])


def _lines(text: str) -> Iterator[str]:
    """Yield the lines with content, each joined with its continuation lines."""
    whole = ""
    for line in re.split(r"\r\n|\n|\r", text):
        if not whole and _BLANK_OR_COMMENT.fullmatch(line):
            continue
        whole += line.lstrip(" \t\f") if whole else line
        if _CONTINUED.search(whole):
            whole = whole[:-1]
            continue
        yield whole
        whole = ""
    if whole:
        yield whole


def _unescaped(text: str) -> str:
    def letter(match: re.Match[str]) -> str:
        return chr(int(match[1], 16)) if match[1] else _LETTERS.get(match[2], match[2])

    return _ESCAPE.sub(letter, text)
