"""Formatting values of the server's JSON for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, TypedDict

NOT_DONE = "Job not done yet"
FRAMES = 3
"""How many stack frames are shown with an error."""
_LIBRARIES = ("/site-packages/", "/dist-packages/", "/lib/python3.", "<frozen ")
"""Path fragments of installed libraries, as opposed to the job's own code."""
CONTEXT_TERMINATED = "ContextTerminated"
"""The class of the error of a job whose context has ended. Its stack is the reason in words."""
MESSAGE_LINES = 12
"""How many lines of an error message are shown. Messages from the JVM can contain a whole stack trace."""


class JobReport(TypedDict, total=False):
    """A job as the server reports it."""

    jobId: str
    status: str
    startTime: str
    duration: str
    classPath: str
    context: str
    contextId: str
    waiting: bool
    killRequested: bool
    restarts: int
    progress: Mapping[str, int] | None
    result: Any


class ContextReport(TypedDict, total=False):
    """A context as the server reports it."""

    id: str
    name: str
    state: str
    waiting: bool
    startTime: str
    endTime: str
    applicationId: str
    url: str
    error: Any
    restarts: int
    load: Mapping[str, int]
    settings: Mapping[str, Any]


def time_shown(text: object, now: datetime | None = None) -> str:
    """Format a timestamp in local time; the date is left out if it is today's."""
    try:
        moment = datetime.fromisoformat(str(text).replace("Z", "+00:00")).astimezone()
    except ValueError:
        return str(text) if text else ""
    today = (now or datetime.now(timezone.utc)).astimezone().date()
    return f"{moment:%H:%M:%S}" if moment.date() == today else f"{moment:%Y-%m-%d %H:%M}"


def duration_shown(text: object) -> str:
    """Format a duration compactly; empty for a job that is not done."""
    words = str(text or "")
    if words == NOT_DONE:
        return ""
    number = words.removesuffix(" secs")
    try:
        seconds = float(number)
    except ValueError:
        return words
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes}m" if hours else f"{minutes}m {rest}s"


def class_shown(name: object, *, wide: bool) -> str:
    """Return a class name, without its package unless ``wide``."""
    return str(name) if wide else str(name).rpartition(".")[2]


def state_shown(report: JobReport) -> str:
    """Return a job's state, with a note if it waits for a slot or is being killed."""
    state = str(report.get("status", ""))
    if report.get("killRequested"):
        return f"{state}, kill requested"
    return f"{state}, waiting for a slot" if report.get("waiting") else state


def progress_shown(report: JobReport) -> str | None:
    """Format a job's progress, or return None if it is unknown, or has no stage yet."""
    progress = report.get("progress")
    if not isinstance(progress, Mapping) or not (progress.get("stagesTotal") or progress.get("tasksTotal")):
        return None
    stages = f"stage {progress.get('stagesDone', 0)}/{progress.get('stagesTotal', 0)}"
    return f"{stages}, task {progress.get('tasksDone', 0)}/{progress.get('tasksTotal', 0)}"


def load_shown(report: ContextReport) -> str | None:
    """Format how many slots of a context are taken, or return None if the server does not know it."""
    load = report.get("load")
    if not isinstance(load, Mapping):
        return None
    taken = f"{load.get('running', 0)} of {load.get('slots', 0)} slots in use"
    return f"{taken}, {waiting} waiting" if (waiting := load.get("waiting")) else taken


def settings_shown(report: ContextReport) -> str | None:
    """Format the settings of a context, one a line, or return None if there are none."""
    settings = report.get("settings") or {}
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
    if kind == CONTEXT_TERMINATED and (reason := result.get("stack")):
        message = f"{message}: {reason}"
    lines = str(message).splitlines() or [""]
    if len(lines) > MESSAGE_LINES:
        lines = [*lines[:MESSAGE_LINES], "…"]
    message = "\n".join(lines)
    return f"{kind}: {message}" if kind else message


def stack_excerpt(stack: object) -> list[str]:
    """Return the most useful lines of a stack: the innermost frames, preferably of the job's own code.

    Python puts the innermost frame last, the JVM puts it first.
    """
    frames = _python_frames(str(stack or "").splitlines())
    own = [frame for frame in frames if not any(part in frame[0] for part in _LIBRARIES)]
    if frames:
        return [line for frame in (own or frames)[-FRAMES:] for line in frame]
    lines = [line.strip() for line in str(stack or "").splitlines()]
    return [f"  {line}" for line in lines if line.startswith("at ")][:FRAMES]


def _python_frames(lines: list[str]) -> list[list[str]]:
    """Return the frames of the last traceback, each as a list of its lines."""
    frames: list[list[str]] = []
    for line in lines:
        if line.startswith("Traceback "):
            frames = []
        elif line.startswith('  File "'):
            frames.append([line])
        elif frames and line.startswith("    "):
            frames[-1].append(line)
    return frames
