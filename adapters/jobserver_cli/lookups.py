"""Resolving what users type: prefixes of IDs, ``@last``, and suggestions for misspelled names."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import attrs

from jobserver_cli.client import CommandClient, quoted_segment
from jobserver_cli.exits import CommandFailed, ExitCode
from jobserver_cli.records import context_state, time_shown, why_ended

LAST = "@last"
"""Means the newest job."""
RECENT = 1000
"""How many of the newest jobs, and of the newest ended contexts, are searched for an ID prefix."""
LEAST_PREFIX = 4
"""The shortest prefix of the ID of an ended context."""
SUGGESTED = 3
"""How many names are suggested at most."""
FULL_LENGTH = 32
"""An ID with at least this many characters is complete."""
VERSION_DIGITS = 8
"""The shortest prefix of a SHA-256 that names a version of a binary."""
_ID_PREFIX = re.compile("[0-9a-f]{1,8}(-[0-9a-f-]*)?")


@attrs.frozen
class _Kind:
    """A kind of named object: its noun, a function that lists the names, and the command that does."""

    noun: str
    names: Callable[[CommandClient], Iterable[str]]
    listed_by: str

    def not_found(self, client: CommandClient, name: str, *, for_job: bool = False) -> CommandFailed:
        """Return the error for a name that does not exist, with a suggestion."""
        if self is _KINDS["context_not_found"] and (ended := _ended_context(client, name, for_job=for_job)):
            return ended
        found = [shlex.quote(one) for one in similar(name, _listed(client, self.names))]
        hint = f"Did you mean {' or '.join(found)}? " if found else ""
        advice = f"{hint}List them with: {self.listed_by}"
        if self is _KINDS["job_not_found"] and name in _listed(client, _KINDS["context_not_found"].names):
            shown = shlex.quote(name)
            advice = f"It is a context: jobserver context show {shown}, jobserver logs --context {shown}"
        return CommandFailed(f"{self.noun} {name!r} not found", ExitCode.REFUSED, advice)


def _ended_context(client: CommandClient, given: str, *, for_job: bool) -> CommandFailed | None:
    """Return the error for the name or ID of a context that has ended, or was configured and refused.

    None if there is none, or if the server does not show it. With ``for_job``, the error says in which
    context a job could run instead.
    """
    try:
        record = client.context(given)
    except CommandFailed as refused:
        if refused.reason != "context_not_found" or not refused.detail:
            return None
        return CommandFailed(f"context {given!r} not found: {refused.detail}", ExitCode.REFUSED)
    if record.get("endTime", "Empty") == "Empty":
        return None
    name = str(record.get("name"))
    shown = repr(name) if given == name else f"{name!r} ({given})"
    advice = f"Show it with: jobserver context show {shlex.quote(given)}"
    if for_job:
        advice = f"{_other_context(client, name)}\n{advice}"
    ended = f"has already ended ({context_state(record)}, {time_shown(record.get('endTime'))})"
    why = why_ended(record)
    return CommandFailed(f"context {shown} {ended}{f': {why}' if why else ''}", ExitCode.REFUSED, advice)


def _other_context(client: CommandClient, name: str) -> str:
    """Return in which context a job can run instead of the one with this name, which has ended."""
    live = similar_context(client, name)
    if live == name:
        return f"Another context of this name is live: {shlex.quote(name)}"
    hint = f"Did you mean {shlex.quote(live)}, which is live? " if live else ""
    return f"{hint}Create it again with: jobserver context create {shlex.quote(name)}"


def _recent_jobs(client: CommandClient) -> list[str]:
    return [record["jobId"] for record in client.records("/jobs", limit=RECENT)]


_KINDS = {
    "binary_not_found": _Kind("binary", lambda client: client.get("/binaries"), "jobserver binaries"),
    "context_not_found": _Kind("context", lambda client: client.get("/contexts"), "jobserver contexts"),
    "data_file_not_found": _Kind("data file", lambda client: client.get("/data"), "jobserver data list"),
    "job_not_found": _Kind("job", _recent_jobs, "jobserver jobs"),
}


def _listed(client: CommandClient, names: Callable[[CommandClient], Iterable[str]]) -> list[str]:
    """Return the names; none if the server does not list them."""
    try:
        return list(names(client))
    except CommandFailed:
        return []


def similar(name: str, known: Iterable[str]) -> list[str]:
    """Return a few known names that begin with this one, ignoring case, or else the nearest one, if any."""
    known = list(known)
    beginning = [one for one in known if name and one.casefold().startswith(name.casefold())]
    found = nearest(name, known)
    return beginning[:SUGGESTED] or ([found] if found else [])


def similar_context(client: CommandClient, name: str) -> str | None:
    """Return the name of the live context that is most similar to this one, or None."""
    return nearest(name, _listed(client, _KINDS["context_not_found"].names))


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most similar to this one, ignoring case, or None."""
    by_folded = {one.casefold(): one for one in known}
    found = difflib.get_close_matches(name.casefold(), by_folded, n=1)
    return by_folded[found[0]] if found else None


@contextmanager
def suggestions(client: CommandClient, *, for_job: bool = False, **named: str | None) -> Iterator[None]:
    """Add a suggestion to errors about names that the server does not know.

    ``named`` has the names that the user gave, by kind: ``context="warm"``. With ``for_job``, the context is
    to run a job.
    """
    try:
        yield
    except CommandFailed as refused:
        kind = _KINDS.get(refused.reason or "")
        name = named.get(kind.noun.replace(" ", "_")) if kind else None
        if kind is None or name is None:
            raise
        missing = kind.not_found(client, name, for_job=for_job)
        missing.reason = refused.reason
        raise missing from None


def unknown_filters(client: CommandClient, *, context: str | None, main_class: str | None) -> Iterator[str]:
    """Yield a hint for each name by which an empty list of jobs was filtered, and which the server lacks."""
    if context is not None:
        try:
            client.context(context)
        except CommandFailed as refused:
            if refused.reason == "context_not_found":
                missing = _KINDS["context_not_found"].not_found(client, context)
                yield f"{missing}. {missing.advice}" if missing.advice else str(missing)
    if main_class is not None:
        recent = client.records("/jobs", limit=RECENT)
        classes = {str(record.get("classPath")) for record in recent}
        if main_class not in classes:
            by_short_name = {name.rpartition(".")[2]: name for name in classes}
            found = similar(main_class, classes) or list(
                map(by_short_name.__getitem__, similar(main_class, by_short_name))
            )
            hint = f". Did you mean {' or '.join(found)}?" if found else ""
            yield f"none of the newest {RECENT} jobs has the class {main_class}{hint}"


def unknown_binaries(client: CommandClient, names: Iterable[str]) -> list[CommandFailed]:
    """Return an error for each name that is neither the name of a binary nor a version of one."""
    known = client.get("/binaries")
    return [error for name in names if name not in known and (error := _unknown_binary(client, name, known))]


def _unknown_binary(client: CommandClient, name: str, known: Iterable[str]) -> CommandFailed | None:
    """Return the error for ``name``, or None if it is a version, as in ``words@4517bab2``."""
    base, _, digits = name.rpartition("@")
    if base not in known:
        error = _KINDS["binary_not_found"].not_found(client, name)
        if name.lower().endswith((".jar", ".egg", ".zip", ".whl")):
            error.advice = f"There is no file {shlex.quote(name)} here, either. {error.advice}"
        return error
    versions = client.get(f"/binaries/{quoted_segment(base)}/versions")
    if len(digits) >= VERSION_DIGITS and any(one["digest"].startswith(digits) for one in versions):
        return None
    example = f"{base}@{versions[0]['digest'][:VERSION_DIGITS]}"
    advice = (
        f"A version is named by {VERSION_DIGITS} or more digits of its SHA-256, as in {example}. "
        f"List them with: jobserver binary versions {shlex.quote(base)}"
    )
    return CommandFailed(f"binary {base!r} has no version {digits!r}", ExitCode.REFUSED, advice)


def resolve_job(client: CommandClient, given: str) -> str:
    """Return the full ID for an ID, a unique prefix of an ID, or ``@last``.

    A string that matches no job is returned unchanged, and the server rejects it.

    Raises:
        CommandFailed: The prefix is empty or ambiguous, or there are no jobs for ``@last``.
    """
    if given == LAST:
        newest = client.records("/jobs", limit=1)
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
    if given in matching:
        return given
    return _only(given, matching, "job") or given


def _only(given: str, matching: list[str], noun: str) -> str | None:
    """Return the only ID that begins like this, or None."""
    if len(matching) > 1:
        shown = ", ".join(matching[:5]) + (", …" if len(matching) > 5 else "")
        raise CommandFailed(f"{given} is a prefix of several {noun} IDs: {shown}", ExitCode.USAGE)
    return matching[0] if matching else None


def resolve_context(client: CommandClient, given: str) -> str:
    """Return the name of the live context, or else the ID of the ended one, whose ID begins like this.

    A name has precedence. A string that matches no context is returned unchanged, and the server rejects it.

    Raises:
        CommandFailed: The prefix is ambiguous, or the server does not answer.
    """
    if not _ID_PREFIX.fullmatch(given):
        return given
    try:
        found = client.context(given)
    except CommandFailed as refused:
        if refused.code is ExitCode.DENIED:
            return given
        if refused.reason != "context_not_found":
            raise
    else:
        # Only the name can be stopped. That of an ended context may belong to another one by now.
        lives = found["id"] == given and found["endTime"] == "Empty"
        return str(found["name"]) if lives else given
    names = {str(record["id"]): str(record["name"]) for record in client.records("/contexts", details="true")}
    if live := _only(given, [one for one in names if one.startswith(given)], "context"):
        return names[live]
    if len(given) < LEAST_PREFIX:  # more likely the name of no context
        return given
    ended = [str(record["id"]) for record in client.records("/contexts", ended="true", limit=RECENT)]
    return _only(given, [one for one in ended if one.startswith(given)], "context") or given
