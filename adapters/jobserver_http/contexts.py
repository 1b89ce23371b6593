"""Handlers and routes of ``/contexts``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from starlette.responses import Response

from jobserver_core.config.trees import all_settings, merged
from jobserver_core.errors import ContextNotFound, ResultTimeout, ServerClosed
from jobserver_core.models.arguments import check_settings
from jobserver_core.models.contexts import Context, ContextQuery
from jobserver_core.models.json_values import JsonMapping, JsonObject
from jobserver_core.models.lifecycle import CONTEXTS
from jobserver_core.running.fetching import Preparation
from jobserver_core.running.waiting import Waiter
from jobserver_http.calls import Call
from jobserver_http.parameters import Flag, Integer, Parameter
from jobserver_http.responses import json_response, success
from jobserver_http.routing import (
    CONFIGURATION,
    NO_CONTEXT,
    RESET,
    SUCCESS_BODY,
    SYNC,
    RouteResponse,
    Routes,
    failures,
)
from jobserver_http.wire import context_details, pool_object, restart_object

DEFAULT_ENDED, MOST_ENDED = 50, 10_000
"""How many ended contexts are listed by default and at most."""
KILL_TIMEOUT = 10.0
"""How many seconds to wait for a killed context before responding that it has not ended yet."""

ROUTES = Routes()


def context_settings_of(config: JsonMapping) -> JsonObject:
    """Return the ``spark.context-settings`` block of a posted configuration, or an empty dict.

    It includes settings below settings, which the configuration itself cannot hold.
    """
    spark = all_settings(config).get("spark")
    settings = spark.get("context-settings") if isinstance(spark, Mapping) else None
    if settings is None:
        return {}
    check_settings(settings)
    return dict(settings)


def _renamed(settings: JsonMapping) -> JsonObject:
    """Rename ``mem-per-node``, which old clients send, to its current name, which takes precedence."""
    renamed = dict(settings)
    if "mem-per-node" in renamed:
        renamed.setdefault("memory-per-node", renamed.pop("mem-per-node"))
    return renamed


@ROUTES.add(
    "GET /contexts",
    permission="contexts:read",
    summary="List the names of the live contexts",
    parameters=(
        Parameter("details", "true returns the records instead of the names", Flag()),
        Parameter("spares", "true returns the pools of spare contexts instead", Flag()),
        Parameter("ended", "true returns the records of ended contexts instead, newest first", Flag()),
        Parameter("limit", f"how many ended contexts; default {DEFAULT_ENDED}", Integer(1, MOST_ENDED)),
    ),
    responses=(RouteResponse(200, "The names, the records, or the pools", "Contexts"),),
)
async def list_contexts(call: Call) -> Response:
    if call.params["spares"]:
        return json_response([pool_object(pool) for pool in call.server.spare_pools()])
    if call.params["ended"]:
        ended = await call.threads.quick.run(_read_ended, call, call.params["limit"] or DEFAULT_ENDED)
        return json_response(_details(call, ended))
    live = await call.threads.quick.run(call.server.contexts)
    contexts = [context for context in live if call.names.owns(context.name)]
    if call.params["details"]:
        return json_response(_details(call, contexts))
    return json_response([call.names.shown(context.name) for context in contexts])


def _read_ended(call: Call, limit: int) -> list[Context]:
    """Return the newest contexts of the user that have ended; reads on past those of other users."""
    reading = limit
    while True:
        found = call.server.contexts(ContextQuery(states=CONTEXTS.final_states, limit=reading))
        own = [context for context in found if call.names.owns(context.name)][:limit]
        if len(own) == limit or len(found) < reading or reading == MOST_ENDED:
            return own
        reading = min(10 * reading, MOST_ENDED)


@ROUTES.add(
    "GET /contexts/{name}",
    permission="contexts:read",
    summary="Get the newest context with a name, or the context with this id, even after it has ended",
    responses=(RouteResponse(200, "The context", "Context"), *NO_CONTEXT),
)
async def get_context(call: Call) -> Response:
    context = await call.threads.quick.run(named_context, call)
    before = await call.threads.quick.run(call.server.context_before, context) if context.restarts else None
    record = _details(call, [context])[0]
    if before is not None:
        record["lastRestart"] = restart_object(before, call.names)
    return json_response(record)


def named_context(call: Call) -> Context:
    """Return the newest context with the name in the path, or the context with this id.

    Raises:
        ContextNotFound: There is neither, or it belongs to another user.
    """
    given = call.path["name"]
    try:
        return call.server.context(call.names.stored(given))
    except ContextNotFound as missing:
        try:
            context = call.server.context(given)
        except ContextNotFound:
            raise missing from None
        if context.id != given or not call.names.owns(context.name):
            raise
        return context


def _details(call: Call, contexts: Iterable[Context]) -> list[JsonObject]:
    queued, loads = call.server.start_queue().waiting, call.server.context_loads()
    return [
        context_details(
            context,
            call.names,
            waiting=not context.state.final and context.name in queued,
            load=None if context.state.final else loads.get(context.id),
            slots=call.server.settings.jobs.max_jobs_per_context,
        )
        for context in contexts
    ]


@ROUTES.add(
    "POST /contexts/{name}",
    permission="contexts:start",
    summary="Start a context, and wait until jobs can run in it",
    parameters=(
        Parameter(
            "num-cpu-cores",
            "how many cores the context may use; without effect if the master says it, as local[2] does",
        ),
        Parameter("memory-per-node", "memory of each executor, such as 512m"),
        Parameter(
            "context-factory",
            "the context type: the kind of session that jobs get. With custom, or a class of your own in a "
            "jar of the context's class path, each Python job builds its context in build_context",
        ),
        Parameter("spark.proxy.user", "the user to impersonate"),
    ),
    open_query=True,
    body=CONFIGURATION,
    responses=(
        RouteResponse(200, "The context is ready", SUCCESS_BODY),
        *failures(
            s400="The name is taken or invalid, a setting is invalid, "
            "or the context can never fit (context_too_large)",
            s404="A binary of its class path does not exist",
            s413="The body is larger than the limit",
            s500="The context could not be started",
            s503="No more contexts, cores or memory are allowed, or the server is shutting down",
        ),
    ),
)
async def create_context(call: Call) -> Response:
    name = call.names.new(call.path["name"])
    text = await call.text("the configuration")
    warnings: list[str] = []

    def begin(config: JsonMapping) -> Preparation[Waiter[Context]]:
        posted = context_settings_of(config)
        if config and not posted:
            warnings.append("the body has nothing in spark.context-settings; its other keys have no effect")
        settings = merged(_renamed(call.query), _renamed(posted))
        return call.server.begin_context(name, call.names.settings(settings), caller=call.caller)

    await call.wait(await call.run_prepared(text, begin))
    return success("Context initialized", warnings=warnings)


@ROUTES.add(
    "DELETE /contexts/{name}",
    permission="contexts:delete",
    summary="Stop a context and the jobs in it",
    parameters=(Parameter("force", "true kills it", Flag()),),
    responses=(
        RouteResponse(200, "The context has stopped", SUCCESS_BODY),
        RouteResponse(202, "The context has not stopped yet; Location has the URL of its record"),
        *NO_CONTEXT,
        *failures(
            s500="The context could not be stopped",
            s503="The server of the context does not respond, or is gone and not taken over yet; try again",
        ),
    ),
)
async def delete_context(call: Call) -> Response:
    name = call.names.stored(call.path["name"])
    force = call.params["force"]
    end = call.server.kill_context if force else call.server.stop_context
    timeout = KILL_TIMEOUT if force else call.server.settings.contexts.deletion_timeout
    waiter = await call.threads.ending.run(end, name, user=call.user)
    try:
        await call.wait(waiter, timeout)
    except (ResultTimeout, ServerClosed):
        return Response(status_code=202, headers={"Location": call.url("contexts", call.path["name"])})
    return success("Context stopped")


@ROUTES.add(
    "PUT /contexts",
    permission="contexts:reset",
    summary="Stop all contexts of all servers, and restart those of the configuration",
    parameters=(RESET, SYNC),
    responses=(
        RouteResponse(200, "The reset is complete, or was requested", SUCCESS_BODY),
        *failures(s503="The server is shutting down"),
    ),
)
async def reset_contexts(call: Call) -> Response:
    waiter = await call.threads.ending.run(call.server.reset_contexts, user=call.user)
    if call.params["sync"] is False:
        return success("Context reset requested")
    await call.wait(waiter)
    return success("Context reset")
