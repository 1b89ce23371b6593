"""Resolving what users type: job ID prefixes, ``@last``, and suggestions for misspelled names."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import attrs

from jobserver_cli.client import Client
from jobserver_cli.exits import CommandFailed, ExitCode

LAST = "@last"
"""Means the newest job."""
RECENT = 1000
"""How many of the newest jobs are searched for an ID prefix."""
FULL_LENGTH = 32
"""An ID with at least this many characters is complete."""


@attrs.frozen
class _Kind:
    """A kind of named object: its noun, a function that lists the names, and the command that does."""

    noun: str
    names: Callable[[Client], Iterable[str]]
    listed_by: str

    def not_found(self, client: Client, name: str) -> CommandFailed:
        """Return the error for a name that does not exist, with a suggestion."""
        found = _close(client, name, self.names)
        hint = f"Did you mean {shlex.quote(found)}? " if found else ""
        advice = f"{hint}List them with: {self.listed_by}"
        return CommandFailed(f"{self.noun} {name!r} not found", ExitCode.REFUSED, advice)


def _recent_jobs(client: Client) -> list[str]:
    return [report["jobId"] for report in client.get("/jobs", limit=RECENT)]


_KINDS = {
    "binary_not_found": _Kind("binary", lambda client: client.get("/binaries"), "jobserver binaries"),
    "context_not_found": _Kind("context", lambda client: client.get("/contexts"), "jobserver contexts"),
    "data_file_not_found": _Kind("data file", lambda client: client.get("/data"), "jobserver data list"),
    "job_not_found": _Kind("job", _recent_jobs, "jobserver jobs"),
}


def _close(client: Client, name: str, names: Callable[[Client], Iterable[str]]) -> str | None:
    """Return the most similar name, or None if there is none or the server does not list the names."""
    try:
        return nearest(name, names(client))
    except CommandFailed:
        return None


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most similar to this one, ignoring case, or None."""
    by_folded = {one.casefold(): one for one in known}
    found = difflib.get_close_matches(name.casefold(), by_folded, n=1)
    return by_folded[found[0]] if found else None


@contextmanager
def explained(client: Client, **named: str | None) -> Iterator[None]:
    """Add a suggestion to errors about names that the server does not know.

    ``named`` has the names that the user gave, by kind: ``context="warm"``.
    """
    try:
        yield
    except CommandFailed as refused:
        kind = _KINDS.get(refused.reason or "")
        name = named.get(kind.noun.replace(" ", "_")) if kind else None
        if kind is None or name is None:
            raise
        raise kind.not_found(client, name) from None


def unknown_binaries(client: Client, names: Iterable[str]) -> list[CommandFailed]:
    """Return an error for each name that is not the name of a binary."""
    known = client.get("/binaries")
    return [_KINDS["binary_not_found"].not_found(client, name) for name in names if name not in known]


def resolved_job(client: Client, given: str) -> str:
    """Return the full ID for an ID, a unique prefix of an ID, or ``@last``.

    A string that matches no job is returned unchanged, and the server rejects it.

    Raises:
        CommandFailed: The prefix is empty or ambiguous, or there are no jobs for ``@last``.
    """
    if given == LAST:
        newest = client.get("/jobs", limit=1)
        if not newest:
            raise CommandFailed("there are no jobs", ExitCode.REFUSED)
        return str(newest[0]["jobId"])
    if not given:
        raise CommandFailed("the job ID is empty", ExitCode.USAGE, "List jobs with: jobserver jobs")
    if len(given) >= FULL_LENGTH:
        return given
    try:
        matching = [job_id for job_id in _recent_jobs(client) if job_id.startswith(given)]
    except CommandFailed as refused:
        if refused.code is not ExitCode.DENIED:
            raise
        return given
    if len(matching) > 1 and given not in matching:
        shown = ", ".join(matching[:5]) + (", …" if len(matching) > 5 else "")
        raise CommandFailed(f"{given} is a prefix of several job IDs: {shown}", ExitCode.USAGE)
    return given if given in matching or not matching else matching[0]
