"""Help that is quick, complete, and the same as the reference."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from command_line import CommandLine
from jobserver_cli.application import app
from jobserver_cli.exits import ExitCode
from loopback import Loopback

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


def written(command: Any) -> Iterator[str]:
    """Yield the lines of the reference about the arguments and options of a command."""
    for parameter in command.params:
        names = (
            [parameter.metavar or parameter.name] if not parameter.opts[0].startswith("-") else parameter.opts
        )
        names += getattr(parameter, "secondary_opts", None) or []
        takes = f" {parameter.metavar}" if parameter.opts[0].startswith("-") and parameter.metavar else ""
        shown = ", ".join(f"`{name}{takes}`" for name in names)
        help_text = (parameter.help or "").replace("|", "\\|")
        notes = [f"environment: `{parameter.envvar}`"] if parameter.envvar else []
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


@pytest.mark.parametrize(("path", "command"), [pytest.param(*one, id=" ".join(one[0])) for one in commands()])
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


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_offered_for_the_common_shells(shell: str) -> None:
    environment = {**os.environ, "_JOBSERVER_COMPLETE": f"source_{shell}"}
    script = "from jobserver_cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert "jobserver" in done.stdout


def test_completion_knows_commands_and_options() -> None:
    words = "jobserver submit --fol"
    environment = {
        **os.environ,
        "_JOBSERVER_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": "2",
    }
    done = subprocess.run(
        [sys.executable, "-c", "from jobserver_cli import main; main()"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert done.stdout.split() == ["--follow"]


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


def completed(words: str) -> list[str]:
    """Return what the shell offers for a command line."""
    environment = {
        **os.environ,
        "_JOBSERVER_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    script = "from jobserver_cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.split()


def test_completion_asks_the_server_for_names(client: CommandLine) -> None:
    client("submit", "words.Count", "--cp", "words", "-d", "input.string=a", "--sync")
    [found] = client("jobs", "--json").json
    assert completed(f"jobserver result {found['jobId'][:6]}") == [found["jobId"]]
    assert completed("jobserver logs @") == ["@last"]
    assert completed("jobserver context show w") == ["warm"]
    assert completed("jobserver submit words.Count -c w") == ["warm"]
    assert completed("jobserver binary versions wo") == ["words"]


def test_completion_is_empty_when_no_server_answers(jobserver: CommandLine) -> None:
    jobserver.environment.setenv("JOBSERVER_URL", "http://127.0.0.1:9")
    assert completed("jobserver result a") == []


def test_completion_asks_the_server_only_once(jobserver: CommandLine) -> None:
    with Loopback(lambda handler: handler.say(502, b"<html>")) as web:
        jobserver.environment.setenv("JOBSERVER_URL", web.url(""))
        assert completed("jobserver context show w") == []
        assert len(web.calls) == 1
