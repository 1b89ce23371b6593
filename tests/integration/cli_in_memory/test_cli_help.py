"""Help that is quick, complete, and the same as the reference."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from enum import EnumMeta
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from typer.main import get_command

from command_line import CommandLine
from jobserver_cli.application import app
from jobserver_cli.exits import ExitCode

REFERENCE = Path(__file__).parents[3] / "docs" / "reference" / "cli.md"
SLOW = ("httpx", "starlette", "uvicorn", "pyspark", "pyhocon", "cattrs", "asyncio", "ssl", "sqlalchemy")
WRITE = "JOBSERVER_WRITE_REFERENCE"


def commands(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command that can be run, with the words that name it."""
    for name, command in (group or get_command(app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def examples_of(path: tuple[str, ...]) -> tuple[str, ...]:
    """Return the examples of a command."""
    command: Any = get_command(app)
    for name in path:
        command = command.commands[name]
    return tuple(line.strip() for line in command.epilog.splitlines() if line.startswith("  "))


def written(command: Any) -> Iterator[str]:
    """Yield the lines of the reference about the arguments and options of a command."""
    annotations = get_type_hints(inspect.unwrap(command.callback))
    for parameter in command.params:
        names = (
            [parameter.metavar or parameter.name] if not parameter.opts[0].startswith("-") else parameter.opts
        )
        names += getattr(parameter, "secondary_opts", None) or []
        takes = f" {parameter.metavar}" if parameter.opts[0].startswith("-") and parameter.metavar else ""
        shown = ", ".join(f"`{name}{takes}`" for name in names)
        help_text = (parameter.help or "").replace("|", "\\|")
        annotation = annotations.get(parameter.name)
        kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, EnumMeta)]
        choices = [f"`{one.value}`" for kind in kinds for one in kind]
        notes = [f"one of {', '.join(choices)}"] if choices else []
        notes += [f"environment: `{parameter.envvar}`"] if parameter.envvar else []
        if parameter.required:
            notes.append("required")
        elif parameter.default not in (None, False, [], ()):
            notes.append(f"default: `{getattr(parameter.default, 'value', parameter.default)}`")
        noted = f" ({'; '.join(notes)})" if notes else ""
        yield f"| {shown} | {help_text}{noted} |"


def reference() -> str:
    """Return the part of the reference that is generated from the commands."""
    lines: list[str] = []
    names: dict[Any, str] = {}
    for path, command in sorted(commands(), key=lambda one: len(one[0])):
        first = names.setdefault(inspect.unwrap(command.callback), " ".join(path))
        if first != " ".join(path):
            lines += [f"### `jobserver {' '.join(path)}`", "", f"The same as `jobserver {first}`.", ""]
            continue
        lines += [f"### `jobserver {' '.join(path)}`", "", " ".join(command.help.split()), ""]
        lines += ["| | |", "| --- | --- |", *written(command), ""]
        lines += ["```sh", *examples_of(path), "```", ""]
    return "\n".join(lines).strip()


def exit_codes() -> str:
    """Return the table of exit codes."""
    rows = [f"| {code.value} | {code.meaning} |" for code in ExitCode]
    return "\n".join(["| code | meaning |", "| --- | --- |", *rows])


def part(name: str, text: str) -> str:
    found = re.search(rf"<!-- {name}: begin -->\n(.*?)\n<!-- {name}: end -->", text, re.DOTALL)
    assert found is not None, f"{REFERENCE} has no part {name}"
    return found[1].strip()


@pytest.mark.parametrize(("name", "made"), [("commands", reference), ("exit codes", exit_codes)])
def test_the_reference_matches_the_commands(name: str, made: Any) -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    if os.environ.get(WRITE):
        start, end = f"<!-- {name}: begin -->\n", f"\n<!-- {name}: end -->"
        text = text.partition(start)[0] + start + made() + end + text.partition(end)[2]
        REFERENCE.write_text(text, encoding="utf-8")
    assert part(name, text) == made(), f"run the tests once with {WRITE}=1 to renew the reference"


EVERY = pytest.mark.parametrize(
    ("path", "command"), [pytest.param(*one, id=" ".join(one[0])) for one in commands()]
)


@EVERY
def test_the_help_of_every_command_shows_all_its_options(
    jobserver: CommandLine, path: tuple[str, ...], command: Any
) -> None:
    jobserver.environment.setenv("COLUMNS", "200")
    shown = jobserver(*path, "--help")
    assert shown.code == 0
    for parameter in command.params:
        assert parameter.help, parameter.name
        if parameter.opts[0].startswith("-"):
            assert all(name in shown.out for name in parameter.opts)


@EVERY
def test_the_help_of_every_command_shows_its_examples(
    jobserver: CommandLine, path: tuple[str, ...], command: Any
) -> None:
    examples = examples_of(path)
    assert 1 <= len(examples) <= 3
    lines = jobserver(*path, "--help").out.splitlines()
    assert [line.strip() for line in lines if line.strip() in examples] == list(examples)


@pytest.mark.parametrize("example", sorted({one for path, _ in commands() for one in examples_of(path)}))
def test_every_example_is_a_command_line_that_is_accepted(
    example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    inner = re.findall(r"\$\((.*?)\)", example)
    outer = re.sub(r"\$\(.*?\)", "output", example)
    lines = [line for line in [*inner, outer] if line.startswith("jobserver ")]
    assert lines
    for line in lines:
        words = shlex.split(re.split("[|>]", line)[0])[1:]
        for word in words:
            if "/" in word or word.endswith((".gz", ".txt")):
                file = tmp_path / word
                file.parent.mkdir(exist_ok=True, parents=True)
                file.touch()
        command: Any = get_command(app)
        while hasattr(command, "commands"):
            context = command.make_context("jobserver", words)
            _, command, words = command.resolve_command(context, [*context._protected_args, *context.args])
        command.make_context("jobserver", words)


def test_help_fits_into_80_columns(jobserver: CommandLine) -> None:
    for path in [(), ("submit",), ("context", "create"), ("serve",)]:
        lines = jobserver(*path, "--help").out.splitlines()
        assert max(len(line) for line in lines) <= 80


def test_without_a_command_the_help_is_shown_and_it_is_a_mistake(jobserver: CommandLine) -> None:
    done = jobserver()
    assert done.code == 2
    assert "Usage: jobserver" in done.out + done.err


@pytest.mark.parametrize(
    "arguments", [("sbumit",), ("jobs", "--limit", "many"), ("submit",), ("jobs", "--what")]
)
def test_a_usage_error_exits_with_2(jobserver: CommandLine, arguments: tuple[str, ...]) -> None:
    done = jobserver(*arguments)
    assert (done.code, done.out) == (2, "")


@pytest.mark.parametrize(
    ("arguments", "suggested"),
    [
        (("run", "w.Count", "--cp", "w", "--url", "http://127.0.0.1:9"), True),
        (("context", "stop", "warm", "--host=127.0.0.1"), True),
        (("serve", "--url", "http://127.0.0.1:9"), False),
    ],
)
def test_other_names_of_the_option_for_the_server_are_a_mistake_that_suggests_it(
    jobserver: CommandLine, arguments: tuple[str, ...], *, suggested: bool
) -> None:
    done = jobserver(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "No such option: --" in done.err
    assert ("(Possible options: --server)" in done.err) is suggested


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("jobs", "--limit", "x"), "expected a whole number from 1 to 10000, got 'x'"),
        (("jobs", "--limit", "0"), "expected a whole number from 1 to 10000, got '0'"),
        (("serve", "--port", "http"), "expected a whole number from 0 to 65535, got 'http'"),
        (("submit", "w.C", "--cp", "w", "--priority", "1e3"), "expected a whole number from -100 to 100"),
        (("jobs", "--output", "json"), "No such option: --output. For JSON, use --json"),
        (("contexts", "-o", "json"), "No such option: -o. For JSON, use --json"),
        (("binaries", "--format=json"), "No such option: --format. For JSON, use --json"),
        (
            ("submit", "w.C", "--cp", "w", "--sync", "--table"),
            "For a table of a result: jobserver result JOB --table",
        ),
        (
            ("submit", "w.C", "--cp", "w", "--conf", "x"),
            "No such option: --conf. Give the job's configuration with -d @FILE",
        ),
        (
            ("run", "w.C", "--cp", "w", "--config", "x"),
            "Spark's settings belong to the context: jobserver context",
        ),
        (
            ("context", "create", "c", "--conf", "a=b"),
            "--conf. Give settings with --set KEY=VALUE or -d @FILE",
        ),
        (
            ("context", "create", "c", "idle-timeout=30m"),
            "(idle-timeout=30m). For a setting, use --set KEY=VALUE",
        ),
        (("submit", "w.C", "--cp", "w", "a.b=c d"), "(a.b=c d). For a setting, use --set KEY=VALUE"),
    ],
)
def test_a_usage_error_says_what_would_be_right(
    jobserver: CommandLine, arguments: tuple[str, ...], words: str
) -> None:
    jobserver.environment.setenv("COLUMNS", "240")
    done = jobserver(*arguments)
    assert (done.code, done.out) == (2, "")
    assert words in done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("--server", "http://127.0.0.1:9", "jobs"),
            "Name the server after the command: jobserver … --server URL",
        ),
        (
            ("context", "--server", "http://127.0.0.1:9", "list"),
            "Name the server after the command: jobserver context … --server URL",
        ),
        (("--host", "0.0.0.0", "serve"), "--host. Options belong after the command: jobserver … --host"),
        (("--url=http://127.0.0.1:9", "jobs"), "--url. Options belong after the command: jobserver … --url"),
        (("-c", "server.conf", "serve"), "-c. Options belong after the command: jobserver … -c"),
        (("--version=3",), "Option '--version' does not take a value"),
        (("--versoin",), "(Possible options: --version)"),
    ],
)
def test_an_option_before_the_command_is_a_mistake_that_says_where_it_belongs(
    jobserver: CommandLine, arguments: tuple[str, ...], words: str
) -> None:
    jobserver.environment.setenv("COLUMNS", "120")
    done = jobserver(*arguments)
    assert (done.code, done.out) == (2, "")
    assert words in done.err
    assert ("after the command: " in words) is ("after the command: " in done.err)


def test_version_is_that_of_the_distribution(jobserver: CommandLine) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+.*\n", jobserver("--version").out)


@pytest.mark.parametrize("arguments", [["--help"], ["submit", "--help"], ["--version"]])
def test_help_imports_nothing_slow(arguments: list[str]) -> None:
    script = (
        "import sys; from jobserver_cli import main\n"
        f"sys.argv = ['jobserver', *{arguments!r}]\n"
        "try: main()\n"
        f"finally: print([name for name in {SLOW!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stderr == "[]\n"


UNUSED_BY_CLIENTS = {
    *(
        "alembic",
        "cattrs",
        "click",
        "jobserver_http",
        "jobserver_pyspark",
        "jobserver_sql",
        "py4j",
        "pygments",
    ),
    *("pyhocon", "pyparsing", "pyspark", "rich", "sqlalchemy", "starlette", "uvicorn"),
    *("httpx._main", "jobserver_core.config", "jobserver_core.ports", "jobserver_core.server"),
}
"""What a command that talks to a server must not import if its output is a pipe."""


@pytest.mark.parametrize(
    "arguments", [["job", "list"], ["contexts"], ["binaries"], ["servers"], ["job", "list", "--json"]]
)
def test_a_client_command_imports_nothing_of_a_server(client: CommandLine, arguments: list[str]) -> None:
    script = (
        "import sys; from jobserver_cli import main\n"
        f"sys.argv = ['jobserver', *{arguments!r}]\n"
        "try: main()\n"
        "finally: print(*[name for name, module in sys.modules.items() if module], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert "jobserver_client" in (imported := set(done.stderr.splitlines()[-1].split()))
    assert imported & UNUSED_BY_CLIENTS == set()


def modules_after(script: str) -> set[str]:
    """Return the packages that a script has imported when it has shown its help."""
    told = "finally: print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    text = f"import sys\nsys.argv = ['jobserver', '--help']\ntry:\n{script}\n{told}"
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, check=True, timeout=30
    )
    return set(done.stderr.split())


def test_help_costs_little_more_than_typer_itself() -> None:
    """Check the imports, which determine the start-up time. Times would depend on the load."""
    bare = "    import typer, typing\n    app = typer.Typer()\n    app.command()(lambda: None)\n    app()"
    ours = modules_after("    from jobserver_cli import main\n    main()")
    own = {"jobserver_cli", "attr", "attrs"}
    standard = sys.stdlib_module_names
    assert {name for name in ours - modules_after(bare) if name not in standard and name[0] != "_"} <= own


def test_without_the_extra_the_command_says_how_to_install_it(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'typer': raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "from jobserver_cli import main; main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=30
    )
    assert (done.returncode, done.stdout) == (7, "")
    assert "pip install 'jobserver-core[cli]'" in done.stderr
