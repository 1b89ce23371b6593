"""What the contract cannot see of pins in a database: servers of earlier releases, and the end of a day."""

from contextlib import closing

from sqlalchemy import create_engine, insert, text, update

from jobserver_core.testing.builders import at, digest_of
from jobserver_sql import SqlMetadataStore, tables

BLOB = digest_of("blob")
HOUR = 3600.0


def test_nothing_is_removed_while_a_server_runs_that_does_not_pin(url: str) -> None:
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    old = {"id": "old", "started_at": at(), "address": "", "lease_until": at()}
    with closing(SqlMetadataStore(url)) as store:
        store.register_server("new", started_at=at(), address="", lease=HOUR)
        with engine.begin() as connection:  # as an earlier release does
            connection.execute(insert(tables.servers).values(old))
        assert store.begin_removal([BLOB], server_id="new", lease=HOUR) == []
        assert store.pin_blob("pin", server_id="new", digest=BLOB)
        store.unpin_blobs(["pin"])
        store.remove_server("old")
        assert store.begin_removal([BLOB], server_id="new", lease=HOUR) == [BLOB]
    engine.dispose()


def test_pins_of_servers_that_have_ended_expire(url: str) -> None:
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with closing(SqlMetadataStore(url)) as store:
        store.register_server("runs", started_at=at(), address="", lease=HOUR)
        for pin_id, server_id in (("kept", "runs"), ("dropped", "ended")):
            store.pin_blob(pin_id, server_id=server_id, digest=digest_of(pin_id))
        asked = [digest_of("kept"), digest_of("dropped")]
        assert store.begin_removal(asked, server_id="runs", lease=HOUR) == []
        with engine.begin() as connection:
            found = connection.scalars(text("SELECT id FROM blob_pins WHERE expires_at IS NOT NULL")).all()
            assert found == ["dropped"]
            limited = update(tables.blob_pins).where(tables.blob_pins.c.id == "dropped")
            connection.execute(limited.values(expires_at=at()))
        assert store.begin_removal(asked, server_id="runs", lease=HOUR) == [digest_of("dropped")]
    engine.dispose()
