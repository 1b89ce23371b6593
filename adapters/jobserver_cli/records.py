"""Formatting the records of jobs and contexts that the server returns, for people."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from jobserver_core.models.json_values import Json, JsonMapping, JsonObject

NOT_DONE = "Job not done yet"
FINAL = ("FINISHED", "ERROR", "KILLED")
"""The states of jobs that have ended."""
FRAMES = 3
"""How many stack frames are shown with an error."""
_LIBRARIES = (
    "/site-packages/",
    "/dist-packages/",
    "/lib/python3.",
    "<frozen ",
    "/pyspark.zip/",
    "/jobserver_pyspark/runner/",
)
"""Path fragments of installed libraries and of the runner, as opposed to the job's own code."""
_JVM_LIBRARIES = ("java.", "javax.", "jdk.", "sun.", "scala.", "org.apache.", "py4j.")
"""The same for the names of classes on the JVM."""
WAITING = "WAITING"
"""What is shown for a job or context that has not begun, in place of STARTED or RESTARTING."""
_BEFORE_REASON = {"ContextTerminated": ": ", "JobKilled": " "}
"""The classes of errors whose stack is the reason in words, and what to write between message and reason."""
_MISSING_MODULE = re.compile(r"No module named '([^']+)'(?! \()")
"""Matches Python's message, unless the launcher has added the reason in parentheses."""
_HIDDEN_PACKAGE = re.compile(r"No module named '([^']+)'; '([^']+)' is not a package")
"""Matches Python's message about a module that cannot contain others."""
_NOT_INSTALLED = re.compile(r"(\w+) >= \S+ must be installed; however, it was not found")
"""Matches Spark's message about a module that it needs."""
_CLASS_ERROR = re.compile(r"(?:ClassNotFoundException|NoClassDefFoundError): (.*)")
_CLASS_NAME = re.compile(r"[\w.$/]+")
"""The whole message if a class is missing. Messages about other problems have more words."""
_UNPACKED = re.compile(r'^  File "[^"]*/packages/contents/[0-9a-f]{64}-\w+/', re.MULTILINE)
"""Matches the directory in which the launcher has unpacked a package."""
MESSAGE_LINES = 12
"""How many lines of an error message are shown. Messages from the JVM can contain whole stack traces."""
VERDICT_LINES = 5
"""How many of them are the last line that names an exception, and the lines before it."""


class JobFields(TypedDict, total=False):
    """The members of a job's record, and of its response to a submit."""

    jobId: str
    status: str
    startTime: str
    runningTime: str
    duration: str
    classPath: str
    context: str
    contextId: str
    waiting: bool
    killRequested: bool
    restarts: int
    progress: Mapping[str, int] | None
    callbacks: list[JsonObject]
    result: Json


class ContextFields(TypedDict, total=False):
    """The members of a context's record."""

    id: str
    name: str
    state: str
    waiting: bool
    preparing: str
    startTime: str
    endTime: str
    applicationId: str
    url: str
    error: Mapping[str, str]
    endReason: str
    restarts: int
    lastRestart: JsonMapping
    server: str
    load: Mapping[str, int]
    settings: JsonMapping


_LEFT_OUT = "  …"
"""Stands for the stack frames that are left out of a message."""
_MOMENT = re.compile(r"\b\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?(\+00:00|Z)")
"""A timestamp in UTC, as the server writes it in its messages."""


def times_shown(message: str) -> str:
    """Format the timestamps in a message of the server as :func:`time_shown` does."""
    return _MOMENT.sub(lambda found: time_shown(found[0]), message)


def time_shown(text: object, now: datetime | None = None) -> str:
    """Format a timestamp in local time; the date is left out if it is today's."""
    try:
        moment = datetime.fromisoformat(str(text).replace("Z", "+00:00")).astimezone()
    except ValueError:
        return str(text) if text else ""
    today = (now or datetime.now(timezone.utc)).astimezone().date()
    return f"{moment:%H:%M:%S}" if moment.date() == today else f"{moment:%Y-%m-%d %H:%M}"


def job_duration(record: JobFields, now: datetime | None = None) -> str:
    """Format how long a job took, or how long ago, by this machine's clock, a live one was submitted."""
    if record.get("duration") != NOT_DONE:
        return duration_shown(record.get("duration"))
    try:
        submitted = datetime.fromisoformat(str(record.get("startTime")).replace("Z", "+00:00")).astimezone()
    except ValueError:
        return ""
    elapsed = int(((now or datetime.now(timezone.utc)) - submitted).total_seconds())
    return seconds_shown(elapsed) if elapsed >= 1 else "0 s"


def duration_shown(text: object) -> str:
    """Format a duration compactly."""
    words = str(text or "")
    try:
        return seconds_shown(float(words.removesuffix(" secs")))
    except ValueError:
        return words


_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def seconds_shown(seconds: float) -> str:
    """Format a duration by the rule of the web UI (``format.js``): two units, and never more than has passed.

    Below ten seconds, it is rounded instead.
    """
    if seconds < 0.001:
        return "< 1 ms"
    if seconds < 1:
        return f"{min(999, math.floor(seconds * 1000 + 0.5))} ms"
    if seconds < 60:
        return f"{math.floor(seconds * 100 + 0.5) / 100 if seconds < 10 else math.floor(seconds):g} s"
    at = next(index for index, (_, size) in enumerate(_UNITS) if seconds >= size)
    (unit, size), (next_unit, next_size) = _UNITS[at : at + 2]
    rest = int(seconds % size // next_size)
    return f"{int(seconds // size)} {unit}{f' {rest} {next_unit}' if rest else ''}"


def class_shown(name: object, *, wide: bool) -> str:
    """Return a class name, without its package unless ``wide``."""
    return str(name) if wide else str(name).rpartition(".")[2]


def job_state(record: JobFields) -> str:
    """Return a job's state in one word."""
    return WAITING if record.get("waiting") else str(record.get("status", ""))


def context_state(record: ContextFields) -> str:
    """Return a context's state in one word."""
    return WAITING if record.get("waiting") else str(record.get("state", ""))


def state_shown(record: JobFields) -> str:
    """Return a job's state, with a note if it waits or is being killed."""
    state = str(record.get("status", ""))
    if record.get("killRequested"):
        return f"{state}, kill requested"
    return f"{WAITING} for a slot or its context" if record.get("waiting") else state


def progress_shown(record: JobFields) -> str | None:
    """Format a job's progress, or return None if it is unknown, or has no stage yet."""
    progress = record.get("progress")
    if not isinstance(progress, Mapping) or not (progress.get("stagesTotal") or progress.get("tasksTotal")):
        return None
    stages = f"stage {progress.get('stagesDone', 0)}/{progress.get('stagesTotal', 0)}"
    return f"{stages}, task {progress.get('tasksDone', 0)}/{progress.get('tasksTotal', 0)}"


def callbacks_shown(record: JobFields) -> str | None:
    """Format the deliveries of a job's callback, one a line, or return None if there are none."""
    return "\n".join(map(_delivery_shown, record.get("callbacks") or [])) or None


def _delivery_shown(delivery: JsonMapping) -> str:
    state, attempts = delivery.get("state"), delivery.get("attempts")
    if not attempts or state == "DELIVERED":
        return str(state)
    shown = f"{state} after {attempts} attempt{'' if attempts == 1 else 's'}"
    if state == "PENDING":
        shown += f", the next at {time_shown(delivery.get('dueAt'))}"
    status = delivery.get("lastStatus")
    reason = delivery.get("lastError") or (f"the receiver answered {status}" if status else None)
    return f"{shown}: {reason}" if reason else shown


def why_ended(record: ContextFields) -> str | None:
    """Return why a context has ended, or None if that is not known."""
    return error_text(record["error"]) if record.get("error") else record.get("endReason")


def load_shown(record: ContextFields) -> str | None:
    """Format how many slots of a context are taken, or return None if the server does not know it."""
    load = record.get("load")
    if not isinstance(load, Mapping):
        return None
    taken = f"{load.get('running', 0)} of {load.get('slots', 0)} slots in use"
    return f"{taken}, {waiting} waiting" if (waiting := load.get("waiting")) else taken


def last_restart_shown(record: ContextFields) -> str | None:
    """Format why and after which context this one was started again, or return None if that is not known."""
    before = record.get("lastRestart")
    if not isinstance(before, Mapping):
        return None
    ended, error = time_shown(before.get("endTime")), before.get("error")
    reason = error_text(error) if error else "reason unknown"
    return f"{reason}\n(context {before.get('id')}{ended and f', ended {ended}'})"


def settings_shown(record: ContextFields) -> str | None:
    """Format the settings of a context, one a line, or return None if there are none."""
    settings = record.get("settings") or {}
    lines = [
        f"{key} = {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for key, value in sorted(settings.items())
    ]
    return "\n".join(lines) or None


def error_text(result: object) -> str:
    """Format an error object as ``class: message``."""
    if not isinstance(result, Mapping):
        return str(result)
    kind, message = result.get("errorClass"), result.get("message", "unknown reason")
    before = _BEFORE_REASON.get(str(kind))
    if before and (reason := result.get("stack")):
        message = f"{message}{before}{reason}"
    message = "\n".join(_message_excerpt(_with_short_paths(str(message)).splitlines() or [""]))
    return f"{kind}: {message}" if kind else message


def _message_excerpt(lines: list[str]) -> list[str]:
    """Return the lines of a message, or the first ones and the exception that was the cause."""
    if len(lines) > MESSAGE_LINES:
        lines = _without_libraries(lines)
    if len(lines) <= MESSAGE_LINES:
        return lines
    verdict = _verdict(lines)
    if verdict < MESSAGE_LINES:
        return [*lines[:MESSAGE_LINES], "…"]
    last = lines[verdict - VERDICT_LINES + 1 : verdict + 1]
    return [*lines[: MESSAGE_LINES - VERDICT_LINES], "…", *last, *(["…"] if lines[verdict + 1 :] else [])]


def _without_libraries(lines: list[str]) -> list[str]:
    """Replace each row of stack frames that are not of the job's own code by one line."""
    kept: list[str] = []
    in_library = False
    for line in lines:
        if _is_frame(line):
            in_library = any(part in line for part in _LIBRARIES)
        elif line.startswith(("\tat ", "\t... ")):
            in_library = _jvm_method(line.strip()).startswith(_JVM_LIBRARIES) or line.startswith("\t... ")
        elif not line.startswith("    "):
            in_library = False
        if not in_library:
            kept.append(line)
        elif kept[-1:] != [_LEFT_OUT]:
            kept.append(_LEFT_OUT)
    return kept


def _verdict(lines: list[str]) -> int:
    """Return the index of the last line that names an exception: below a traceback, or a cause on the JVM."""
    found, in_traceback = 0, False
    for index, line in enumerate(lines):
        if "Traceback (most recent call last)" in line:
            in_traceback = True
        elif (in_traceback and line[:1].strip()) or line.startswith("Caused by: "):
            found, in_traceback = index, False
    return found


def missing_code_advice(error: object) -> str | None:
    """Return how to give a job the package or class that it has not found, or None for any other error.

    The error is an error object, or its message.
    """
    text = f"{error.get('errorClass')}: {error.get('message')}" if isinstance(error, Mapping) else str(error)
    if found := _HIDDEN_PACKAGE.search(text):
        name, module = found.groups()
        return f"{module} is a module, so {name} is not in it. If it hides a package, rename the module."
    if found := _MISSING_MODULE.search(text):
        return _in_no_package(found[1])
    if found := _NOT_INSTALLED.search(text):
        return _in_no_package(found[1].lower())
    if (found := _CLASS_ERROR.search(text)) and _CLASS_NAME.fullmatch(found[1].strip()):
        name, settings = found[1].strip().replace("/", "."), "cp or dependent-jar-uris of its context"
        return f"{name} is in no jar of the job: add one with --cp, or set {settings}."
    return None


def _in_no_package(module: str) -> str:
    settings = "cp or python.executable of its context"
    return f"{module} is in no package of the job: add one with --package, or set {settings}."


def stack_of(error: object) -> str | None:
    """Return the stack of an error object, or None. A reason in words is no stack."""
    if not isinstance(error, Mapping) or str(error.get("errorClass")) in _BEFORE_REASON:
        return None
    return str(error.get("stack") or "") or None


def stack_excerpt(stack: object, job_class: str = "", *, message: str = "") -> list[str]:
    """Return the most useful lines of a stack: the innermost frames, preferably of the job's own code.

    Frames of a task in the message of the error are left out: Spark appends them to the driver's traceback.

    Python puts the innermost frame last, the JVM puts it first. On the JVM, nothing but its package tells the
    job's own code from that of the libraries in its jar.
    """
    if "Traceback (most recent call last)" in message:
        stack = str(stack or "").replace(message, "")
    shown = set(_with_short_paths(message).splitlines())
    frames = _python_frames(_with_short_paths(str(stack or "")).splitlines())
    frames = [frame for frame in frames if frame[0] not in shown]
    own = [frame for frame in frames if not any(part in frame[0] for part in _LIBRARIES)]
    if frames:
        return [line for frame in (own or frames)[-FRAMES:] for line in frame]
    lines = [line.strip() for line in str(stack or "").splitlines()]
    calls = [line for line in lines if line.startswith("at ")]
    outside = [line for line in calls if not _jvm_method(line).startswith(_JVM_LIBRARIES)]
    # A job's own classes begin with the first two parts of its package, or are the class itself.
    package = job_class.split(".")[:-1]
    prefix = ".".join([*package[:2], ""]) if package else job_class
    own_calls = [line for line in calls if prefix and _jvm_method(line).startswith(prefix)]
    return [f"  {line}" for line in (own_calls or outside or calls)[:FRAMES]]


def _with_short_paths(text: str) -> str:
    """Replace the paths of files in unpacked packages by those in the package."""
    return _UNPACKED.sub('  File "', text)


def _is_frame(line: str) -> bool:
    return line.startswith('  File "')


def _jvm_method(line: str) -> str:
    """Return the qualified method of a line such as ``at java.base/java.lang.Thread.run(Thread.java:1)``."""
    return line.removeprefix("at ").partition("(")[0].rpartition("/")[2]


def _python_frames(lines: list[str]) -> list[list[str]]:
    """Return the frames of the last traceback or of a crash, each as a list of its lines, innermost last."""
    frames: list[list[str]] = []
    if crash := next((n for n, line in enumerate(lines) if line.startswith("Current thread ")), None):
        return [[line] for line in itertools.takewhile(_is_frame, lines[crash + 1 :])][::-1]
    for line in lines:
        if line.startswith("Traceback "):
            frames = []
        elif _is_frame(line):
            frames.append([line])
        elif frames and line.startswith("    "):
            frames[-1].append(line)
    return frames
