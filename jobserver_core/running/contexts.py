"""The use cases of contexts: creating, listing, stopping and resetting them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Container, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import attrs

from jobserver_core.errors import (
    ContextExists,
    ContextNotFound,
    ContextStopping,
    JobServerError,
    ServerClosed,
    Unavailable,
)
from jobserver_core.models.arguments import check_settings
from jobserver_core.models.contexts import Context, ContextQuery
from jobserver_core.models.json_values import JsonMapping, JsonObject
from jobserver_core.models.lifecycle import CONTEXTS, ContextState
from jobserver_core.models.validation import check_context_name
from jobserver_core.ports import ContextSpec, Fetched, MetadataStore
from jobserver_core.running.context_registry import ContextRegistry
from jobserver_core.running.fetching import FetchService, Preparation
from jobserver_core.running.live_context import LiveContext
from jobserver_core.running.records import Records
from jobserver_core.running.requests import Action, Requests
from jobserver_core.running.waiting import Promise, Waiter, all_done
from jobserver_core.running.watching import Watch

if TYPE_CHECKING:
    from jobserver_core.config.settings import Settings

_log = logging.getLogger(__name__)

_PREDECESSORS = 100
"""How many of the newest ended contexts of a name to search for a predecessor."""


@attrs.define(kw_only=True, eq=False)
class ContextService:
    """The use cases of contexts, with the errors of :class:`~jobserver_core.JobServer`.

    ``watch`` waits for contexts of other servers to be ready, and to end.
    """

    _registry: ContextRegistry
    _fetching: FetchService
    _metadata: MetadataStore
    _settings: Settings
    _requests: Requests
    _records: Records
    watch: Watch[Context] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        for action in (Action.STOP_CONTEXT, Action.KILL_CONTEXT):
            self._requests.on(action, partial(self._end_for_another, action))
        self._requests.on(Action.RESET_CONTEXTS, self._reset_for_another)
        self.watch = Watch(
            self._metadata.context, lambda key: ContextNotFound(name=key), self._records.call_back
        )

    # -- creating ----------------------------------------------------------------------------------

    def begin(self, name: str, settings: JsonMapping, caller: str = "") -> Preparation[Waiter[Context]]:
        """Begin to fetch the files of a context; finishing the preparation starts the context."""
        check_context_name(name)
        check_settings(settings, "settings")

        def start(fetched: Mapping[str, Fetched]) -> Waiter[Context]:
            context, spec = self._registry.create(name, settings, fetched, ad_hoc=False, caller=caller)
            context.begin(spec)
            return context.ready.waiter

        return self._fetching.prepare(self._registry.uris(settings), start, caller)

    def uris_of_replacement(self, context_id: str, name: str) -> list[str]:
        """Return the URIs of the files that :meth:`replacement` needs."""
        before = self._metadata.context(context_id)
        if before is not None and not before.ad_hoc:
            with suppress(ContextNotFound):
                self._registry.get(name)
                return []
        return self._registry.uris(before.settings if before else {})

    def replacement(
        self, context_id: str, name: str, fetched: Mapping[str, Fetched]
    ) -> tuple[LiveContext, ContextSpec | None]:
        """Return the context that replaces one of an earlier server, for the jobs that waited for it.

        This is the living context of the same name (without a spec, because it has been started already), or
        a new one with the settings of the earlier one.
        """
        before = self._metadata.context(context_id)
        ad_hoc = before is None or before.ad_hoc
        if not ad_hoc:
            with suppress(ContextNotFound):
                return self._registry.get(name), None
        return self._registry.create(name, before.settings if before else {}, fetched, ad_hoc=ad_hoc)

    def start_configured(self, names: Container[str] | None = None) -> list[Waiter[Context]]:
        """Begin to start the contexts of the configuration file, or only those in ``names``.

        Living contexts are left alone, and failures are logged. The files of all contexts are fetched in
        parallel, so that slow hosts delay the start once, not once per context.
        """
        begun: list[tuple[str, Preparation[Waiter[Context]]]] = []
        started = []
        living = {context.record.name for context in self._registry.all()}
        for name, settings in self._settings.spark.contexts.items():
            if name in living or (names is not None and name not in names):
                continue
            with self._logging_failure(name):
                begun.append((name, self.begin(name, settings)))
        for name, preparation in begun:
            with preparation, self._logging_failure(name):
                started.append(preparation.finish())
        return started

    @contextmanager
    def _logging_failure(self, name: str) -> Iterator[None]:
        self._records.refused.pop(name, None)
        try:
            yield
        except ServerClosed:
            _log.info("the configured context %s is not started: the server is closing", name)
        except ContextExists:
            _log.info("the configured context %s is already running", name)
        except JobServerError as error:
            self._records.refused[name] = str(error)
            _log.error("the configured context %s could not be started: %s", name, error)

    def failed_configured(self) -> dict[str, str]:
        """Return why contexts of the configuration file have failed and not been replaced, by name."""
        failed = {}
        for name in self._settings.spark.contexts:
            last = self._metadata.context_named(name)
            if last is not None and last.state is ContextState.ERROR and last.error is not None:
                failed[name] = last.error.message
            if name in self._records.refused and (last is None or last.state.final):
                failed[name] = self._records.refused[name]
        return failed

    # -- queries -----------------------------------------------------------------------------------

    def select(self, query: ContextQuery | None) -> list[Context]:
        """Return contexts, newest first; without a query, only those that are not final."""
        return self._metadata.contexts(query or ContextQuery(states=CONTEXTS.live_states))

    def get(self, name: str) -> Context:
        """Return the newest context of a name, or the one with an id."""
        try:
            return named_context(self._metadata, name)
        except ContextNotFound:
            raise self._records.context_not_found(name, or_id=True) from None

    def before(self, context: Context) -> Context | None:
        """Return the context whose death led to this one, or None; its record may have been removed."""
        if not context.restarts:
            return None
        query = ContextQuery(name=context.name, states=CONTEXTS.final_states, limit=_PREDECESSORS)
        ended = (one for one in self._metadata.contexts(query) if one.id != context.id)
        return next((one for one in ended if one.started_at <= context.started_at), None)

    def waiter(self, name: str) -> Waiter[Context]:
        """Return a waiter for a living context to be ready, wherever it runs."""
        found = self._find(name)
        if isinstance(found, LiveContext):
            return found.when_ready()
        if found.state is ContextState.STOPPING:
            raise ContextStopping(name=found.name)
        return self.watch.watch(found).started.waiter

    # -- ending ------------------------------------------------------------------------------------

    def stop(self, name: str, timeout: float | None, user: str) -> Waiter[Context]:
        """Begin to stop a context on request, wherever it runs."""
        grace_period = self._settings.contexts.deletion_timeout if timeout is None else timeout
        return self._end(Action.STOP_CONTEXT, name, {"timeout": grace_period, "user": user})

    def kill(self, name: str, user: str) -> Waiter[Context]:
        """End a context by force on request, wherever it runs."""
        return self._end(Action.KILL_CONTEXT, name, {"user": user})

    def _end(self, action: Action, name: str, arguments: JsonObject) -> Waiter[Context]:
        found = self._find(name)
        if isinstance(found, LiveContext):
            return _end_here(action, found, arguments)
        arguments |= {"id": found.id, "name": found.name}
        self._requests.ask(found.owner, action, arguments, f"context {found.name}")
        return self.watch.watch(found).finished.waiter

    def _find(self, name: str) -> LiveContext | Context:
        """Return the living context of this name, or its record if it is on another server.

        Raises:
            ContextNotFound: No living context has it; says why, if that is known.
        """
        try:
            return self._registry.find(name)
        except ContextNotFound:
            raise self._records.context_not_found(name) from None

    def _end_for_another(self, action: Action, arguments: JsonMapping) -> JsonObject:
        context = self._registry.get(arguments["name"])
        if context.record.id != arguments["id"]:
            raise Unavailable(message=f"context {context.record.name} has just been replaced; try again")
        _end_here(action, context, arguments)
        return {}

    # -- resetting ---------------------------------------------------------------------------------

    def reset(self, user: str) -> Waiter[None]:
        """Have every server stop its contexts, and then start those of its configuration again.

        The waiter is done once all contexts have stopped and this server has started its own again. If the
        servers and contexts cannot be read, nothing is stopped.
        """
        if not self._metadata.shared:
            return self._reset_here((), user)
        contexts = self.select(None)
        others = [server.id for server in self._metadata.servers() if server.id != self._records.server_id]
        # In parallel, so that servers that do not respond cost one timeout together, not one each.
        with ThreadPoolExecutor(len(others) + 1, "jobserver-reset") as pool:
            asked = {server_id: pool.submit(self._reset_elsewhere, server_id, user) for server_id in others}
            reset = {server_id for server_id, answer in asked.items() if answer.result()}
        watched = [self.watch.watch(context) for context in contexts if context.owner in reset]
        return self._reset_here([each.finished.waiter for each in watched], user)

    def _reset_here(self, others: Iterable[Waiter[Context]], user: str) -> Waiter[None]:
        """Stop every context here. Once the ``others`` have ended too, start the configured ones."""
        grace_period = self._settings.contexts.deletion_timeout
        reason = _by(user, "stopped with all other contexts")
        stopping = [
            context.stop_eventually(grace_period, requested=True, reason=reason)
            for context in self._registry.all()
        ]
        stopped: Waiter[None] = all_done([*stopping, *others])
        done: Promise[None] = Promise("reset of the contexts", self._records.call_back)

        def start_again() -> None:
            all_done(self.start_configured()).notify(lambda _started: done.keep(None))

        # Not on the thread that ended the last context: fetching files for the new ones may be slow.
        stopped.notify(
            lambda _stopped: threading.Thread(target=start_again, name="jobserver-reset", daemon=True).start()
        )
        return done.waiter

    def _reset_elsewhere(self, server_id: str, user: str) -> bool:
        """Have another server reset its contexts; return whether it accepted."""
        try:
            self._requests.ask(
                server_id, Action.RESET_CONTEXTS, {"user": user}, f"the contexts of server {server_id}"
            )
        except JobServerError as error:
            _log.warning("the contexts of server %s are not reset: %s", server_id, error)
            return False
        return True

    def _reset_for_another(self, arguments: JsonMapping) -> JsonObject:
        self._reset_here((), arguments.get("user", ""))
        return {}


def _end_here(action: Action, context: LiveContext, arguments: JsonMapping) -> Waiter[Context]:
    """Stop or kill a context of this server, for a user who may have asked another one."""
    user = arguments.get("user", "")
    if action is Action.STOP_CONTEXT:
        return context.stop(arguments["timeout"], requested=True, reason=_by(user, "stopped"))
    return context.kill(requested=True, reason=_by(user, "killed"))


def _by(user: str, what: str) -> str:
    """Return a reason that names the user, for the owners of jobs that end with a context."""
    return f"{what} by user {user}" if user else f"{what} on request"


def named_context(metadata: MetadataStore, name: str) -> Context:
    """Return the newest context of a name, or else the one with this id.

    Raises:
        ContextNotFound: Neither exists.
    """
    context = metadata.context_named(name) or metadata.context(name)
    if context is None:
        raise ContextNotFound(name=name)
    return context
