"""The messages of the launcher: each survives a round trip, and everything else is rejected."""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import json
import re
import types
import typing
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobserver_core.models.failures import FailureKind
from jobserver_pyspark import jvm
from jobserver_pyspark.protocol import jvm_messages, messages
from jobserver_pyspark.protocol.converter import Payload, ProtocolError, ProtocolMessage, decode, encode
from jobserver_pyspark.protocol.failures import JobFailure, bounded
from jobserver_pyspark.protocol.frames import MAX_HEADER
from jobserver_pyspark.protocol.messages import ErrorDetails

DIRECTIONS: list[type[ProtocolMessage]] = [
    messages.ServerToHost,
    messages.HostToServer,
    messages.HostToRunner,
    messages.RunnerToHost,
    messages.HostToZygote,
    messages.ZygoteToHost,
    jvm_messages.HostToJvm,
    jvm_messages.JvmToHost,
]
KINDS = [(direction, kind) for direction in DIRECTIONS for kind in direction.kinds.values()]
TEXT = st.text(st.characters(), max_size=20)
"""Any text, lone surrogates included: job code can raise errors with them."""


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a declared type; independent of how the converter reads types."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint == Payload:
        return st.binary(max_size=50)
    if hint is Path:
        return TEXT.map(Path)
    if origin in (types.UnionType, typing.Union):
        return st.none() | values(arguments[0])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(TEXT, TEXT, max_size=3)
    if dataclasses.is_dataclass(hint):
        return instances(hint)
    return {str: TEXT, int: st.integers(-(2**63), 2**63), bool: st.booleans()}[hint]


@functools.cache
def instances(wanted: Any) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(wanted)
    return st.builds(
        wanted, **{field.name: values(hints[field.name]) for field in dataclasses.fields(wanted)}
    )


EVERY_KIND = pytest.mark.parametrize(("direction", "kind"), KINDS, ids=[kind.__name__ for _, kind in KINDS])


@EVERY_KIND
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_every_message_is_read_back_as_it_was_written(
    direction: type[ProtocolMessage], kind: type[Any], data: st.DataObject
) -> None:
    message = data.draw(instances(kind))
    header, payload = encode(message)
    assert b"\n" not in header
    assert decode(direction, header, bytes(payload)) == message


@EVERY_KIND
def test_every_message_is_frozen(direction: type[ProtocolMessage], kind: type[Any]) -> None:
    assert kind.__dataclass_params__.frozen
    assert kind.__doc__
    assert direction.sender != direction.receiver


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(direction=st.sampled_from(DIRECTIONS), header=st.binary(max_size=200), payload=st.binary(max_size=10))
def test_random_bytes_are_never_anything_but_a_protocol_error(
    direction: type[ProtocolMessage], header: bytes, payload: bytes
) -> None:
    with pytest.raises(ProtocolError):
        decode(direction, header, payload)


@given(direction=st.sampled_from(DIRECTIONS), tree=JSON, kind=st.data())
def test_random_json_is_read_or_refused(
    direction: type[ProtocolMessage], tree: Any, kind: st.DataObject
) -> None:
    if isinstance(tree, dict):
        tree["kind"] = kind.draw(st.sampled_from(sorted(direction.kinds)) | TEXT)
    read_or_refuse(direction, json.dumps(tree).encode(), b"")


@given(data=st.data())
def test_a_message_with_one_field_replaced_is_read_or_refused(data: st.DataObject) -> None:
    direction, kind = data.draw(st.sampled_from(KINDS))
    header, payload = encode(data.draw(instances(kind)))
    tree = json.loads(header)
    tree[data.draw(st.sampled_from([*tree, "another"]))] = data.draw(JSON)
    read_or_refuse(direction, json.dumps(tree).encode(), bytes(payload))


def read_or_refuse(direction: type[ProtocolMessage], header: bytes, payload: bytes) -> None:
    try:
        read = decode(direction, header, payload)
    except ProtocolError as error:
        assert str(error).startswith(f"{direction.sender} sent ")  # noqa: PT017 - either outcome is right
        assert len(str(error)) < 1000  # noqa: PT017
    else:
        assert type(read) in direction.kinds.values()


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (b"[" * 100_000, "a header that is not JSON"),
        (b'{"kind": "JobRunning", "job_id": "\xff"}', "a header that is not JSON"),
        (b'["JobRunning"]', "a message of unknown kind None to the server; expected one of Hello, "),
        (b'{"kind": ["JobRunning"]}', "a message of unknown kind a list"),
        (b'{"kind": "job-running"}', "a message of unknown kind 'job-running'"),
        (b'{"kind": "JobRunning"}', "a malformed JobRunning: JobRunning lacks job_id"),
        (b'{"kind": "JobRunning", "job_id": 5}', "JobRunning.job_id must be a string, got 5"),
        (b'{"kind": "JobRunning", "job_id": "1", "x": 1}', "JobRunning has the unknown field 'x'"),
        (b'{"kind": "Hello", "protocol": true, "token": ""}', "Hello.protocol must be an integer, got True"),
        (b'{"kind": "Hello", "protocol": 1.0, "token": ""}', "Hello.protocol must be an integer, got 1.0"),
        (
            b'{"kind": "JobEnded", "job_id": "1", "killed": false, "failure": "bored", "error": null}',
            "JobEnded.failure must be one of raised, validation, ",
        ),
        (
            b'{"kind": "ContextDied", "error": {"message": 1, "error_class": "", "stack": ""}, '
            b'"killed_outside": false}',
            "ContextDied.error.message must be a string, got 1",
        ),
        (b'{"kind": "ProgressReport"}', "a malformed ProgressReport: ProgressReport lacks job_id"),
    ],
)
def test_an_error_names_the_sender_and_the_field(header: bytes, problem: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode(messages.HostToServer, header)
    assert str(caught.value).startswith("the context's host sent ")
    assert problem in str(caught.value)


def test_a_payload_belongs_to_messages_that_have_one() -> None:
    with pytest.raises(ProtocolError, match="JobRunning must be no payload, got b'more'"):
        decode(messages.HostToServer, b'{"kind": "JobRunning", "job_id": "1"}', b"more")
    with pytest.raises(ProtocolError, match="lacks stream"):
        decode(messages.HostToServer, b'{"kind": "ResultChunk", "job_id": "1"}', b"more")


def test_the_failures_of_jobs_are_those_of_the_core() -> None:
    of_contexts = {FailureKind.CONTEXT_INIT, FailureKind.CONTEXT_LOST}
    of_the_core = of_contexts | {FailureKind.QUEUE_TIME, FailureKind.RUN_TIME}
    assert set(typing.get_args(messages.JobFailureKind)) == {
        kind.value for kind in set(FailureKind) - of_the_core
    }


@pytest.mark.parametrize("letter", ["a", "€", "𝄞", "\x00", "\ud800"])
def test_the_longest_error_fits_into_a_frame_and_stays_as_it_is(letter: str) -> None:
    text = letter * 10**6
    failure = JobFailure("raised", text, error_class=text, stack=text)
    message = messages.JobEnded(job_id="j" * 100, failure=failure.kind, error=failure.error)
    header, _ = encode(message)
    assert len(header) <= MAX_HEADER
    assert bounded(failure.error) == failure.error
    assert "characters left out" in failure.error.stack


PACKAGE = Path(messages.__file__).parents[1]
PLACES = {
    messages.ServerToHost: ("launcher", "host"),
    messages.HostToServer: ("host", "launcher"),
    messages.HostToRunner: ("host", "runner"),
    messages.RunnerToHost: ("runner", "host"),
    messages.HostToZygote: ("host", "runner"),
    messages.ZygoteToHost: ("runner", "host"),
}
"""The packages that send and receive the messages of a direction; the zygote is in ``runner`` too."""


@functools.cache
def names_used_in(package: str) -> frozenset[str]:
    """The names in the code of a package, also those of ``messages.…``, apart from its imports."""
    trees = (ast.parse(path.read_text()) for path in (PACKAGE / package).glob("*.py"))
    nodes = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name | ast.Attribute))
    return frozenset(ast.unparse(node).removeprefix("messages.") for node in nodes)


@pytest.mark.parametrize(
    ("direction", "kind"),
    [(direction, kind) for direction, kind in KINDS if direction in PLACES],
    ids=[kind.__name__ for direction, kind in KINDS if direction in PLACES],
)
def test_every_message_is_sent_by_one_process_and_handled_by_the_other(
    direction: type[ProtocolMessage], kind: type[Any]
) -> None:
    sender, receiver = PLACES[direction]
    assert kind.__name__ in names_used_in(sender), f"nothing in {sender}/ sends it"
    assert kind.__name__ in names_used_in(receiver), f"nothing in {receiver}/ handles it"


def described(wanted: Any) -> Any:
    """What decides the wire form of a type: the fields of a class, and the values of a literal."""
    if dataclasses.is_dataclass(wanted):
        hints = typing.get_type_hints(wanted)
        return [
            (field.name, field.type, described(hints[field.name])) for field in dataclasses.fields(wanted)
        ]
    return [part if isinstance(part, str) else described(part) for part in typing.get_args(wanted)]


def test_messages_between_server_and_host_change_only_together_with_the_version() -> None:
    wire = [
        (kind, described(message_class))
        for direction in (messages.ServerToHost, messages.HostToServer)
        for kind, message_class in sorted(direction.kinds.items())
    ]
    digest = hashlib.sha256(repr(wire).encode()).hexdigest()[:16]
    assert (messages.PROTOCOL_VERSION, digest) == (6, "f0a6df5a7dd0e337"), (
        "a message between server and host has changed: raise PROTOCOL_VERSION, and write the new pair here"
    )


@pytest.mark.parametrize(
    ("message", "source", "pattern"),
    [
        (jvm_messages.JvmJobRequest, "JobRequest.scala", r'(?:text|required|get)\("(\w+)"\)'),
        (jvm_messages.JvmJobState, "Outcome.scala", r'\.put\w*\("(\w+)"'),
    ],
)
def test_the_jvm_reads_and_writes_each_field_of_its_messages(
    message: type[ProtocolMessage], source: str, pattern: str
) -> None:
    scala = (Path(jvm.__file__).parent / "scala" / "core" / source).read_text(encoding="utf-8")
    names = set(re.findall(pattern, scala))
    parts = {field.name for kind in (jvm_messages.JvmJar, ErrorDetails) for field in dataclasses.fields(kind)}
    assert names - parts - {"kind"} == {field.name for field in dataclasses.fields(message)}
