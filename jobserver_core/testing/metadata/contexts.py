"""The metadata contract's part about contexts."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from itertools import product

import attrs
import pytest

from jobserver_core.errors import ContextExists, DuplicateId, StaleState
from jobserver_core.models.contexts import Context, ContextQuery
from jobserver_core.models.failures import ErrorInfo
from jobserver_core.models.lifecycle import ContextState
from jobserver_core.ports.metadata import MetadataStore
from jobserver_core.testing.builders import a_context, at
from jobserver_core.testing.contract import raising
from jobserver_core.testing.metadata.access import (
    FINAL_CONTEXTS,
    LIVE_CONTEXTS,
    ODD_TEXTS,
    StoreAccess,
    add,
    added,
    present,
    states,
)


def _full() -> Context:
    return a_context(
        "alice~5453779a-jobs.WörkCount$",
        state=ContextState.ERROR,
        settings={"spark": {"cores": 2, "a.b": [1, 2.5, None, True, {"ü": ""}]}, "": {}, "none": None},
        ad_hoc=True,
        owner="server-2",
        owned_since=at(1, microseconds=1),
        started_at=at(2, microseconds=2),
        ended_at=at(3, microseconds=3),
        stop_requested=True,
        application_id="local-1",
        url="http://127.0.0.1:4040",
        error=ErrorInfo(message="no \0 \ud800 🙂", error_class="java.lang.Error", stack="at x\n" * 1000),
        end_reason="stopped by user Zoë",
        restarts=7,
        consecutive_restarts=3,
    )


class ContextsContract(StoreAccess):
    """Contexts: one live context for each name, advanced by compare-and-set."""

    def test_a_context_with_every_field_set_comes_back_equal_in_full(self, store: MetadataStore) -> None:
        context = added(store, _full())
        assert store.context(context.id) == context
        assert store.context_named(context.name) == context
        assert store.contexts(ContextQuery()) == [context]

    def test_a_context_with_nothing_but_defaults_comes_back_equal_in_full(self, store: MetadataStore) -> None:
        context = added(store, a_context())
        assert store.context(context.id) == context

    @pytest.mark.parametrize("text", ODD_TEXTS)
    def test_strings_of_a_context_come_back_unchanged(self, store: MetadataStore, text: str) -> None:
        error = ErrorInfo(message=text, error_class=text, stack=text)
        context = a_context(owner=text, application_id=text, url=text, error=error, settings={text: text})
        store.add_context(context)
        assert store.context(context.id) == context

    def test_empty_strings_and_empty_settings_are_not_none(self, store: MetadataStore) -> None:
        context = added(store, a_context(url="", error=ErrorInfo(message="")))
        assert store.context(context.id) == context

    def test_times_of_a_context_come_back_in_utc(self, store: MetadataStore) -> None:
        local = datetime(2016, 6, 19, 16, 27, 12, 1, tzinfo=timezone(timedelta(hours=-7)))
        context = added(store, a_context(started_at=local, owned_since=local, ended_at=local))
        stored = store.context(context.id)
        assert stored == context
        assert stored is not None
        for time in (stored.started_at, stored.owned_since, stored.ended_at):
            assert time is not None
            assert time.utcoffset() == timedelta(0)

    def test_settings_changed_after_they_were_stored_or_read_change_nothing(
        self, store: MetadataStore
    ) -> None:
        inner = {"cores": 2}
        context = added(store, a_context(settings={"spark": inner}))
        inner["cores"] = 3
        read = present(store.context(context.id))
        read.settings["spark"]["cores"] = 4
        for again in (store.context(context.id), store.context_named(context.name)):
            assert again is not None
            assert again.settings == {"spark": {"cores": 2}}

    @pytest.mark.parametrize("text", ["context-0", *ODD_TEXTS])
    def test_an_unknown_context_is_none(self, store: MetadataStore, text: str) -> None:
        store.add_context(a_context("c"))
        assert store.context(text) is None
        assert store.context_named(text) is None
        assert store.contexts(ContextQuery(name=text)) == []
        assert store.contexts(ContextQuery(owner=text)) == []

    @states(LIVE_CONTEXTS)
    def test_a_name_is_taken_while_its_context_is_live(
        self, store: MetadataStore, state: ContextState
    ) -> None:
        first = added(store, a_context("c", state=state))
        with raising(ContextExists(name="c")):
            store.add_context(a_context("c"))
        assert store.contexts(ContextQuery()) == [first]
        assert self.raw_counts(store)["contexts"] == 1

    @states(FINAL_CONTEXTS)
    def test_a_name_is_free_again_once_its_context_is_final(
        self, store: MetadataStore, state: ContextState
    ) -> None:
        first = added(store, a_context("c", state=ContextState.RUNNING))
        store.advance_context(attrs.evolve(first, state=state), expected=ContextState.RUNNING)
        second = added(store, a_context("c", started_at=at(1)))
        assert store.context_named("c") == second

    def test_any_number_of_ended_contexts_may_share_a_name(self, store: MetadataStore) -> None:
        for state in FINAL_CONTEXTS * 2:
            store.add_context(a_context("c", state=state))
        assert self.raw_counts(store)["contexts"] == 2 * len(FINAL_CONTEXTS)

    def test_advancing_to_live_a_context_whose_name_was_taken_raises_context_exists(
        self, store: MetadataStore
    ) -> None:
        ended = a_context("c", state=ContextState.ERROR)
        add(store, ended, a_context("c"))
        back = attrs.evolve(ended, state=ContextState.RUNNING)
        with pytest.raises(ContextExists):
            store.advance_context(back, expected=ContextState.ERROR)
        assert store.context(ended.id) == ended

    def test_names_of_contexts_that_differ_in_case_are_two_contexts(self, store: MetadataStore) -> None:
        lower, upper = a_context("c"), a_context("C")
        add(store, lower, upper)
        assert (store.context_named("c"), store.context_named("C")) == (lower, upper)

    def test_adding_a_context_with_a_known_id_raises_duplicate_id_and_changes_nothing(
        self, store: MetadataStore
    ) -> None:
        first = added(store, a_context("c", id="same"))
        with raising(DuplicateId(kind="context", id="same", holder="same")):
            store.add_context(a_context("other", id="same"))
        assert store.contexts(ContextQuery()) == [first]

    def test_the_newest_context_of_a_name_is_the_one_started_last(self, store: MetadataStore) -> None:
        def ended(seconds: float, microseconds: int = 0) -> Context:
            started = at(seconds, microseconds=microseconds)
            return a_context("c", state=ContextState.FINISHED, started_at=started)

        newest = ended(2, 1)
        add(store, ended(1), newest, ended(2))
        assert store.context_named("c") == newest

    @states(LIVE_CONTEXTS)
    def test_a_live_context_is_found_by_its_name_even_if_others_were_started_later(
        self, store: MetadataStore, state: ContextState
    ) -> None:
        live = a_context("c", state=state, started_at=at(1))
        add(store, a_context("c", state=ContextState.KILLED, started_at=at(2)), live)
        assert store.context_named("c") == live

    def test_among_contexts_started_at_once_the_newest_is_the_one_added_last(
        self, store: MetadataStore
    ) -> None:
        ids = ["m", "z", "a", "q"]
        for context_id in ids:
            store.add_context(a_context("c", id=context_id, state=ContextState.KILLED))
        changed = attrs.evolve(present(store.context("m")), url="changed")
        store.advance_context(changed, expected=ContextState.KILLED)
        assert present(store.context_named("c")).id == "q"
        assert [c.id for c in store.contexts(ContextQuery())] == ids[::-1]
        assert [c.id for c in store.contexts(ContextQuery(name="c", limit=3))] == ids[:0:-1]

    def test_contexts_are_selected_by_states_name_and_owner_newest_first(self, store: MetadataStore) -> None:
        stored: list[Context] = []
        for number, state in enumerate([*FINAL_CONTEXTS, *LIVE_CONTEXTS] * 3):
            name = f"c{number}" if not state.final else f"c{number % 3}"
            context = a_context(
                name, state=state, owner=f"server-{number % 2}", started_at=at(number * 7 % 10)
            )
            store.add_context(context)
            stored.append(context)
        newest_first = sorted(stored, key=lambda context: context.started_at)[::-1]
        chosen_states = (None, (), (ContextState.KILLED,), tuple(LIVE_CONTEXTS), tuple(ContextState) * 2)
        for wanted, named, owner, limit in product(
            chosen_states, (None, "c1", "c"), (None, "server-1"), (None, 0, 1, 4, 100)
        ):
            query = ContextQuery(states=wanted, name=named, owner=owner, limit=limit)
            expected = [
                context
                for context in newest_first
                if (wanted is None or context.state in wanted)
                and named in (None, context.name)
                and owner in (None, context.owner)
            ]
            assert store.contexts(query) == expected[:limit], query

    def test_advancing_a_context_stores_the_whole_record(self, store: MetadataStore) -> None:
        full = _full()
        store.add_context(a_context("before", id=full.id))
        store.advance_context(full, expected=ContextState.STARTED)
        assert store.context(full.id) == full
        bare = a_context("after", id=full.id, state=ContextState.RUNNING)
        store.advance_context(bare, expected=ContextState.ERROR)
        assert store.context(full.id) == bare
        assert store.context_named(full.name) is None
        assert self.raw_counts(store)["contexts"] == 1

    @pytest.mark.parametrize("stored", list(ContextState))
    @pytest.mark.parametrize("expected", list(ContextState))
    def test_a_context_is_advanced_if_and_only_if_its_state_is_the_expected_one(
        self, store: MetadataStore, stored: ContextState, expected: ContextState
    ) -> None:
        before = added(store, a_context("c", state=stored))
        after = attrs.evolve(before, state=ContextState.STOPPING, url="new")
        if stored is expected:
            store.advance_context(after, expected=expected)
            assert store.context(before.id) == after
            return
        with raising(StaleState(kind="context", id=before.id, expected=expected.value, found=stored.value)):
            store.advance_context(after, expected=expected)
        assert store.context(before.id) == before

    def test_a_context_that_ends_and_its_successor_are_stored_together(self, store: MetadataStore) -> None:
        before = added(store, a_context("c", state=ContextState.RUNNING))
        ended = attrs.evolve(before, state=ContextState.ERROR, ended_at=at(5))
        after = a_context("c", state=ContextState.RESTARTING, started_at=at(5), restarts=1)
        store.advance_context(ended, expected=ContextState.RUNNING, successor=after)
        assert store.context(before.id) == ended
        assert store.context_named("c") == store.context(after.id) == after

    def test_a_context_that_is_not_advanced_gets_no_successor(self, store: MetadataStore) -> None:
        before = added(store, a_context("c", state=ContextState.FINISHED))
        after = a_context("c", state=ContextState.RESTARTING)
        ended = attrs.evolve(before, state=ContextState.ERROR)
        with pytest.raises(StaleState):
            store.advance_context(ended, expected=ContextState.RUNNING, successor=after)
        assert store.context(after.id) is None
        assert store.context(before.id) == before

    def test_a_context_whose_successor_cannot_be_stored_is_not_advanced(self, store: MetadataStore) -> None:
        before, other = a_context("c", state=ContextState.RUNNING), a_context("other")
        add(store, before, other)
        ended = attrs.evolve(before, state=ContextState.ERROR)
        for successor, error in (
            (a_context("c", id=other.id), DuplicateId),
            (a_context("other", state=ContextState.RESTARTING), ContextExists),
        ):
            with pytest.raises(error):
                store.advance_context(ended, expected=ContextState.RUNNING, successor=successor)
            assert store.contexts(ContextQuery(name="c")) == [before]
        assert store.contexts(ContextQuery(name="other")) == [other]

    def test_advancing_an_unknown_context_raises_stale_state_that_found_none(
        self, store: MetadataStore
    ) -> None:
        with raising(StaleState(kind="context", id="nobody", expected="STARTED", found=None)):
            store.advance_context(a_context(id="nobody"), expected=ContextState.STARTED)
        assert self.raw_counts(store)["contexts"] == 0

    def test_a_write_that_keeps_the_state_of_a_context_may_be_repeated(self, store: MetadataStore) -> None:
        context = added(store, a_context(state=ContextState.RUNNING))
        for url in ("a", "b"):
            context = attrs.evolve(context, url=url)
            store.advance_context(context, expected=ContextState.RUNNING)
            assert store.context(context.id) == context
