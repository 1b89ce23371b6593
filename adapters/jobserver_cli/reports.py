"""What the contract's JSON says, put into words and columns for people."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

__all__ = [
    "class_shown",
    "duration_shown",
    "error_text",
    "progress_shown",
    "stack_excerpt",
    "state_shown",
    "time_shown",
]

NOT_DONE = "Job not done yet"
FRAMES = 3
"""How many frames of a stack are shown with a failure."""
_LIBRARIES = ("/site-packages/", "/dist-packages/", "/lib/python3.", "<frozen ")
"""What the paths of installed libraries have in common, unlike those of a job's own code."""
MESSAGE_LINES = 12
"""How many lines of an error's message are shown; one from the JVM may carry its whole stack."""


def time_shown(text: object, now: datetime | None = None) -> str:
    """Return a time of the wire in local time: only the hour for today's, with the date for others."""
    try:
        moment = datetime.fromisoformat(str(text).replace("Z", "+00:00")).astimezone()
    except ValueError:
        return str(text) if text else ""
    today = (now or datetime.now(timezone.utc)).astimezone().date()
    return f"{moment:%H:%M:%S}" if moment.date() == today else f"{moment:%Y-%m-%d %H:%M}"


def duration_shown(text: object) -> str:
    """Return a duration of the wire in few letters; empty for a job that is not done."""
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
    """Return a class's name, where room is short without its package."""
    return str(name) if wide else str(name).rpartition(".")[2]


def state_shown(report: Mapping[str, Any]) -> str:
    """Return a job's state, and what the record says beside it."""
    state = str(report.get("status", ""))
    if report.get("killRequested"):
        return f"{state}, to be killed"
    return f"{state}, waits for its turn" if report.get("waiting") else state


def progress_shown(report: Mapping[str, Any]) -> str | None:
    """Return how far a job is, or None when nothing is known."""
    progress = report.get("progress")
    if not isinstance(progress, Mapping):
        return None
    stages = f"stage {progress.get('stagesDone', 0)}/{progress.get('stagesTotal', 0)}"
    return f"{stages}, task {progress.get('tasksDone', 0)}/{progress.get('tasksTotal', 0)}"


def error_text(result: object) -> str:
    """Return an error object's class and message in one text."""
    if not isinstance(result, Mapping):
        return str(result)
    kind, message = result.get("errorClass"), result.get("message", "no reason is known")
    lines = str(message).splitlines() or [""]
    if len(lines) > MESSAGE_LINES:
        lines = [*lines[:MESSAGE_LINES], "…"]
    message = "\n".join(lines)
    return f"{kind}: {message}" if kind else message


def stack_excerpt(stack: object) -> list[str]:
    """Return the lines of a stack that tell the most: the innermost frames, of the job's own code if any.

    Python puts the innermost frame last, the JVM first.
    """
    frames = _python_frames(str(stack or "").splitlines())
    own = [frame for frame in frames if not any(part in frame[0] for part in _LIBRARIES)]
    if frames:
        return [line for frame in (own or frames)[-FRAMES:] for line in frame]
    lines = [line.strip() for line in str(stack or "").splitlines()]
    return [f"  {line}" for line in lines if line.startswith("at ")][:FRAMES]


def _python_frames(lines: list[str]) -> list[list[str]]:
    """Return the frames of the last traceback among the lines, each with its own lines."""
    frames: list[list[str]] = []
    for line in lines:
        if line.startswith("Traceback "):
            frames = []
        elif line.startswith('  File "'):
            frames.append([line])
        elif frames and line.startswith("    "):
            frames[-1].append(line)
    return frames
