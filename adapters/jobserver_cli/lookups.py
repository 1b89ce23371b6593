"""Finding what a person meant: jobs by the beginning of their IDs, and the nearest existing name."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import attrs

from jobserver_cli.client import Client
from jobserver_cli.exits import CommandFailed, ExitCode

__all__ = ["LAST", "explained", "nearest", "resolved_job", "unknown_binaries"]

LAST = "@last"
"""Stands for the newest job."""
RECENT = 1000
"""How many of the newest jobs are searched for the beginning of an ID."""
WHOLE = 32
"""Characters from which an ID is taken as complete."""


@attrs.frozen
class _Kind:
    """Something with a name: what it is called, who lists the names, and which command does."""

    noun: str
    names: Callable[[Client], Iterable[str]]
    listed_by: str

    def missing(self, client: Client, name: str) -> CommandFailed:
        """Return the failure of a command that named something which is not there."""
        found = _close(client, name, self.names)
        hint = f"Did you mean {shlex.quote(found)}? " if found else ""
        advice = f"{hint}List them with: {self.listed_by}"
        return CommandFailed(f"there is no {self.noun} {name!r}", ExitCode.REFUSED, advice)


def _recent_jobs(client: Client) -> list[str]:
    return [report["jobId"] for report in client.get("/jobs", limit=RECENT)]


_KINDS = {
    "binary_not_found": _Kind("binary", lambda client: client.get("/binaries"), "jobserver binaries"),
    "context_not_found": _Kind("context", lambda client: client.get("/contexts"), "jobserver contexts"),
    "data_file_not_found": _Kind("data file", lambda client: client.get("/data"), "jobserver data list"),
    "job_not_found": _Kind("job", _recent_jobs, "jobserver jobs"),
}


def _close(client: Client, name: str, names: Callable[[Client], Iterable[str]]) -> str | None:
    """Return the nearest of the names; None as well when the server does not list them."""
    try:
        return nearest(name, names(client))
    except CommandFailed:
        return None


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most like this one, in any case; None when none is."""
    by_folded = {one.casefold(): one for one in known}
    found = difflib.get_close_matches(name.casefold(), by_folded, n=1)
    return by_folded[found[0]] if found else None


@contextmanager
def explained(client: Client, **named: str | None) -> Iterator[None]:
    """Say of a name that the server does not know which one is like it.

    ``named`` has what the command line named, by its noun: ``context="warm"``.
    """
    try:
        yield
    except CommandFailed as refused:
        kind = _KINDS.get(refused.reason or "")
        name = named.get(kind.noun.replace(" ", "_")) if kind else None
        if kind is None or name is None:
            raise
        raise kind.missing(client, name) from None


def unknown_binaries(client: Client, names: Iterable[str]) -> list[CommandFailed]:
    """Return a failure for each of the names that no binary has."""
    known = client.get("/binaries")
    return [_KINDS["binary_not_found"].missing(client, name) for name in names if name not in known]


def resolved_job(client: Client, given: str) -> str:
    """Return the ID of the job that is meant by an ID, by the beginning of one, or by ``@last``.

    What is like no ID at all is returned as it is, for the server to refuse. Raises CommandFailed when
    several jobs could be meant, or when there is none.
    """
    if given == LAST:
        newest = client.get("/jobs", limit=1)
        if not newest:
            raise CommandFailed("there are no jobs", ExitCode.REFUSED)
        return str(newest[0]["jobId"])
    if len(given) >= WHOLE:
        return given
    try:
        matching = [job_id for job_id in _recent_jobs(client) if job_id.startswith(given)]
    except CommandFailed as refused:
        if refused.code is not ExitCode.DENIED:
            raise
        return given
    if len(matching) > 1 and given not in matching:
        shown = ", ".join(matching[:5]) + (", …" if len(matching) > 5 else "")
        raise CommandFailed(f"{given} begins the IDs of several jobs: {shown}", ExitCode.USAGE)
    return given if given in matching or not matching else matching[0]
