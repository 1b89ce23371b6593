"""Storage and its limits on the command line."""

from __future__ import annotations

import os

from command_line import CommandLine
from jobserver_core import JobServer


def test_storage_shows_a_table_of_kinds_with_their_limits(client: CommandLine) -> None:
    done = client("storage")
    assert done.code == 0
    assert "binaries" in done.out
    assert "jobserver.jobs.retention = 30 days" in " ".join(done.out.split())


def test_storage_with_json_prints_the_response_of_the_server(client: CommandLine) -> None:
    kinds = {kind["kind"]: kind for kind in client("storage", "--json").json}
    assert kinds["binaries"]["count"] == 1
    assert kinds["jobs"]["bytes"] is None


def test_servers_shows_a_table_with_the_state_of_each(client: CommandLine, server: JobServer) -> None:
    done = client("servers")
    assert done.code == 0
    assert server.id in "".join(done.out.split())
    [found] = client("servers", "--json").json
    assert (found["id"], found["state"], found["contexts"]) == (server.id, "alive", len(server.contexts()))
    assert found["leased"] is False
    assert done.out.split()[-1] == "-", "a server that shares nothing has no lease"


def test_prune_says_what_was_removed(client: CommandLine, server: JobServer) -> None:
    done = client("prune")
    assert (done.code, done.out) == (0, "")
    assert "nothing is beyond the limits" in done.err
    assert client("prune", "--json").json == {"removed": {}}
    path = server.add_data_file("old", b"x").path
    os.utime(path, (1000, 1000))
    done = client("prune")
    assert "data-files" in done.out
    assert not path.exists()
