"""Commands, options, settings and configurations in the documents exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import attrs
import pytest
import typer

from jobserver_cli.application import app
from jobserver_core import load_settings
from jobserver_core.config.loading import setting_types
from jobserver_core.running.context_settings import check_common_settings
from jobserver_pyspark import PySparkLauncher

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("README.md"), *ROOT.glob("*.md")]
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in sorted(DOCUMENTS)}
BLOCK = re.compile(r"^[ ]*```(\w*)\n(.*?)^[ ]*```$", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`([^`\n]+)`")
COMMAND = re.compile(r"(?:^|[;&|(] ?|\bdo |=\S+ )(?:/\S+/)?jobserver +([a-z-][^\n|;&>#)]+)", re.MULTILINE)
SETTING = re.compile(r"(?<![\w./-])jobserver(?:\.[a-z][a-z-]*)+(?![\w/(:])")
QUOTED = re.compile(r"'[^']*(?:'|$)|\"[^\"]*(?:\"|$)")
NO_SETTINGS = {"jobserver.conf", "jobserver.service", "jobserver.egg-info"}
"""Names of files."""


def code(text: str) -> Iterator[str]:
    """Yield the code of a document: its blocks, with continued lines joined, and its spans."""
    for _, block in BLOCK.findall(text):
        yield block.replace("\\\n", " ")
    yield from SPAN.findall(BLOCK.sub("", text))


def members(command: Any) -> dict[str, Any]:
    """Return the commands of a group."""
    found: dict[str, Any] = getattr(command, "commands", {})
    return found


@attrs.frozen
class Command:
    """A command that a document shows."""

    document: str
    text: str

    def problem(self) -> str | None:
        """Return what the command line does not know in it."""
        words = QUOTED.sub("value", self.text.replace("…", "")).split()
        root: Any = typer.main.get_command(app)
        command = root
        while words and words[0] in members(command):
            command = members(command)[words.pop(0)]
        if command is root and words and not words[0].startswith("-"):
            return f"there is no command {words[0]}"
        options = [option for part in [command, *members(command).values()] for option in part.params]
        known = {name for option in options for name in [*option.opts, *option.secondary_opts]}
        known |= {"--help", "-h", "--install-completion", "--show-completion"}
        given = [word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)]
        unknown = [word for word in given if word not in known]
        return f"{command.name} has no option {unknown[0]}" if unknown else None


def commands(document: str, text: str) -> list[Command]:
    found = [match for part in code(text) for match in COMMAND.findall(part)]
    return [Command(document, one.strip()) for one in found]


def test_commands_and_options_in_documents_exist() -> None:
    found = [command for document, text in TEXTS.items() for command in commands(document, text)]
    assert len(found) > 100
    advice = COMMAND.findall((ROOT / "deploy" / "monitoring" / "alerts.yml").read_text(encoding="utf-8"))
    assert advice
    found += [Command("alerts.yml", text.strip()) for text in advice]
    assert [(one.document, one.text, one.problem()) for one in found if one.problem()] == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("`jobserver sbmit x.Y`", "there is no command sbmit"),
        ("```sh\nexport A=1 && jobserver run x.Y --weel ./x.whl\n```", "run has no option --weel"),
        ("```sh\nJOB=$(jobserver submit x.Y --cp x \\\n    --synk)\n```", "submit has no option --synk"),
        ("`jobserver context create x --set a=b`", None),
    ],
)
def test_a_command_that_does_not_exist_is_found(text: str, problem: str | None) -> None:
    [found] = commands("page.md", text)
    assert found.problem() == problem


def known_settings() -> set[str]:
    keys = set(setting_types())
    sections = {".".join(key.split(".")[:length]) for key in keys for length in range(1, key.count(".") + 1)}
    groups = {group for group in entry_points().groups if group.startswith("jobserver.")}
    return keys | sections | groups


def test_settings_in_documents_exist() -> None:
    known = known_settings()
    free = tuple(f"{key}." for key, kind in setting_types().items() if kind.free)
    unknown = {
        (document, name)
        for document, text in TEXTS.items()
        for part in code(text)
        for name in SETTING.findall(part)
        if name not in known | NO_SETTINGS and not name.startswith((*free, "jobserver.auth.options."))
    }
    assert unknown == set()


def configurations() -> list[tuple[str, str]]:
    return [
        (document, block)
        for document, text in TEXTS.items()
        for kind, block in BLOCK.findall(text)
        if kind == "hocon"
    ]


@pytest.mark.parametrize(("document", "block"), configurations())
def test_a_configuration_in_a_document_is_valid(document: str, block: str, tmp_path: Path) -> None:
    file = tmp_path / "jobserver.conf"
    file.write_text(block, encoding="utf-8")
    settings = load_settings(file, env={"HOME": str(tmp_path)})
    assert settings.warnings == ()
    with closing(PySparkLauncher.from_settings(settings, tmp_path / "data")) as launcher:
        check_common_settings(settings.spark, launcher)
