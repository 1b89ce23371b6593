"""The catalog of commands: where each of them is, and examples of its use.

A command is imported when it runs, or when its help is shown, so that none of them pays for the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Command(NamedTuple):
    """A command: the module and the name of its function, and the examples that its help shows."""

    module: str
    function: str
    examples: tuple[str, ...]


class Group(NamedTuple):
    """Commands that begin with the same word. ``default`` is the one for arguments that name none."""

    help: str
    commands: Mapping[str, Command]
    default: str | None = None


_RUN = Command(
    "submissions",
    "run",
    (
        "jobserver run words.WordCount --wheel dist/words-1.0-py3-none-any.whl",
        "jobserver run words.WordCount --cp words -c warm -d 'input.string = \"a b a\"'",
        "jobserver run com.example.Words --jar target/words.jar -d @words.conf",
    ),
)
_SUBMIT = Command(
    "submissions",
    "submit",
    (
        "jobserver submit words.WordCount --cp words -c warm -d @words.conf",
        "jobserver submit words.WordCount --cp words -c warm --sync > result.json",
        "jobserver submit words.WordCount --cp words -f --max-run-time 2h",
    ),
)
_JOBS = Command(
    "job_commands",
    "jobs",
    (
        "jobserver jobs --since 1h --status ERROR",
        "jobserver jobs -c warm --watch",
        "jobserver jobs --limit 1000 --json | jq -r '.[].jobId'",
    ),
)
_SHOW = Command(
    "job_commands",
    "job",
    ("jobserver job 5453779a", "jobserver job @last --follow", "jobserver job 5453779a --config"),
)
_RESULT = Command(
    "job_commands",
    "result",
    (
        "jobserver result @last",
        "jobserver result @last --table",
        "jobserver result 5453779a --wait > result.json",
    ),
)
_LOGS = Command("job_commands", "logs", ("jobserver logs @last -f", "jobserver logs --context warm"))
_KILL = Command(
    "job_commands", "kill", ("jobserver kill 5453779a", "jobserver kill 5453779a 8fb30e51 --force")
)
_UPLOAD = Command(
    "file_commands",
    "upload",
    (
        "jobserver upload words dist/words-1.0-py3-none-any.whl",
        "jobserver upload birds target/birds-assembly --type jar",
    ),
)
_BINARIES = Command("file_commands", "binaries", ("jobserver binaries", "jobserver binaries --json"))
_CONTEXTS = Command(
    "context_commands",
    "contexts",
    ("jobserver contexts", "jobserver contexts --ended", "jobserver contexts --spares"),
)

PANELS: Mapping[str, Mapping[str, Command | Group]] = {
    "Server": {
        "serve": Command(
            "serving_commands",
            "serve",
            (
                "jobserver serve",
                "jobserver serve --config server.conf --port 8091",
                "jobserver serve --data-dir /srv/jobserver --log-level warning",
            ),
        ),
        "demo": Command("serving_commands", "demo", ("jobserver demo", "jobserver demo --keep")),
        "servers": Command("serving_commands", "servers", ("jobserver servers", "jobserver servers --json")),
        "storage": Command("serving_commands", "storage", ("jobserver storage",)),
        "prune": Command("serving_commands", "prune", ("jobserver prune", "jobserver prune --json")),
        "login": Command(
            "login_commands",
            "login",
            (
                "jobserver login prod --server https://jobs.example.com --user ann",
                "jobserver login lab --server http://10.1.2.3:8090",
            ),
        ),
        "logout": Command("login_commands", "logout", ("jobserver logout prod",)),
    },
    "Jobs": {
        "run": _RUN,
        "submit": _SUBMIT,
        "jobs": _JOBS,
        "result": _RESULT,
        "kill": _KILL,
        "logs": _LOGS,
        "job": Group(
            "Show a job: jobserver job JOB. Or list, submit and kill jobs.",
            {
                "show": _SHOW,
                "list": _JOBS,
                "submit": _SUBMIT,
                "run": _RUN,
                "result": _RESULT,
                "logs": _LOGS,
                "kill": _KILL,
            },
            default="show",
        ),
    },
    "Code and data": {
        "upload": _UPLOAD,
        "binaries": _BINARIES,
        "binary": Group(
            "List, upload and delete binaries.",
            {
                "list": _BINARIES,
                "upload": _UPLOAD,
                "versions": Command("file_commands", "versions", ("jobserver binary versions words",)),
                "delete": Command("file_commands", "delete", ("jobserver binary delete words",)),
            },
        ),
        "data": Group(
            "Data files: uploaded files on the server's machine that jobs can read.",
            {
                "list": Command("file_commands", "data_list", ("jobserver data list",)),
                "upload": Command(
                    "file_commands",
                    "data_upload",
                    (
                        "jobserver data upload birds birds.csv.gz",
                        'jobserver run w.Count --cp w --set file="$(jobserver data upload a a.txt)"',
                    ),
                ),
                "delete": Command(
                    "file_commands",
                    "data_delete",
                    ("jobserver data delete birds-2026-01-31T08_30_00.000+00_00.csv.gz",),
                ),
            },
        ),
    },
    "Contexts": {
        "contexts": _CONTEXTS,
        "context": Group(
            "List, start, show and stop contexts.",
            {
                "list": _CONTEXTS,
                "create": Command(
                    "context_commands",
                    "create",
                    (
                        "jobserver context create warm",
                        "jobserver context create big -s num-cpu-cores=8 -s memory-per-node=4g",
                        "jobserver context create etl -d @etl.conf",
                    ),
                ),
                "show": Command("context_commands", "show", ("jobserver context show warm",)),
                "stop": Command(
                    "context_commands",
                    "stop",
                    ("jobserver context stop warm", "jobserver context stop warm --force"),
                ),
            },
        ),
    },
    "This machine": {
        "doctor": Command(
            "machine_commands",
            "doctor",
            (
                "jobserver doctor",
                "jobserver doctor --config server.conf",
                "jobserver doctor --migrate old-server.conf",
            ),
        ),
        "prepare": Command(
            "machine_commands", "prepare", ("jobserver prepare", "jobserver prepare --config server.conf")
        ),
        "config": Group(
            "Show the configuration.",
            {
                "show": Command(
                    "machine_commands",
                    "config_show",
                    (
                        "jobserver config show --changed",
                        "jobserver config show --config server.conf --port 8091",
                    ),
                )
            },
        ),
        "completion": Command(
            "shells",
            "completion",
            (
                'eval "$(jobserver completion bash)"',
                "jobserver completion zsh > ~/.zfunc/_jobserver",
                "jobserver completion fish > ~/.config/fish/completions/jobserver.fish",
            ),
        ),
        "jvm-api": Command(
            "machine_commands",
            "jvm_api",
            ('javac -cp "$(jobserver jvm-api)" -d classes WordCount.java',),
        ),
        "credentials": Group(
            "Create entries for password and token files.",
            {
                "password": Command(
                    "machine_commands",
                    "password",
                    ("jobserver credentials password ann jobs,contexts:read >> passwords",),
                ),
                "token": Command(
                    "machine_commands", "token", ("jobserver credentials token ci '*' >> tokens",)
                ),
            },
        ),
    },
}
"""All commands, by the panel of the help that shows them and by their names."""
