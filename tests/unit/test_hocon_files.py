"""HOCON files of the server: includes, the environment, and properties files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobserver_core.config.hocon import parse_file
from jobserver_core.errors import InvalidConfig

pytestmark = pytest.mark.timeout(60)


# -- files of the server -------------------------------------------------------------------------------


def test_a_file_includes_others_beside_it_and_merges_them(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "main.conf").write_text('include "sub/one"\na.x = 2\ninner { include file("sub/two.json") }')
    (tmp_path / "sub" / "one.conf").write_text('a { x = 1, y = 1 }\ninclude "two.json"')
    (tmp_path / "sub" / "two.json").write_text('{"two": 2}')
    assert parse_file(tmp_path / "main.conf") == {"a": {"x": 2, "y": 1}, "two": 2, "inner": {"two": 2}}


@pytest.mark.parametrize(
    "statement",
    [
        'include\n"c"',
        'include # why\n\n "c"',
        'include"c"',
        'include required(\n"c" )',
        'include file( // x\n"c"\n)',
    ],
)
def test_an_include_reads_all_files_of_its_name_and_may_go_over_several_lines(
    statement: str, tmp_path: Path
) -> None:
    (tmp_path / "c.conf").write_text("x = conf\nonly = ${y}\ny = 1")
    (tmp_path / "c.json").write_text('{"x": "json", "o": {"j": 1}}')
    (tmp_path / "c.properties").write_text("# old\nx=prop\no.p : a \\\n  b\nq.r=5\nq=7\nu=\\u00e9\n")
    (tmp_path / "main.conf").write_text(statement)
    assert parse_file(tmp_path / "main.conf") == {
        "x": "conf",
        "only": 1,
        "y": 1,
        "o": {"j": 1, "p": "a b"},
        "q": {"r": "5"},
        "u": "é",
    }


def test_an_include_with_an_ending_reads_that_file_only(tmp_path: Path) -> None:
    (tmp_path / "d.e.conf").write_text("x = 1")
    (tmp_path / "d.e.json").write_text('{"y": 2}')
    main = tmp_path / "main.conf"
    for statement, expected in (("d.e.json", {"y": 2}), ("d.e", {"x": 1, "y": 2})):
        main.write_text(f'include "{statement}"')
        assert parse_file(main) == expected


def test_appending_continues_across_includes(tmp_path: Path) -> None:
    (tmp_path / "main.conf").write_text('a { c = [1] }\ninclude "more"\na { c += 3 }')
    (tmp_path / "more.conf").write_text("a { c += 2 }")
    assert parse_file(tmp_path / "main.conf") == {"a": {"c": [1, 2, 3]}}


def test_nothing_may_follow_an_include_on_its_line(tmp_path: Path) -> None:
    (tmp_path / "main.conf").write_text('include "c" a = 1')
    with pytest.raises(InvalidConfig, match="expected the end of the line after an include"):
        parse_file(tmp_path / "main.conf")


def test_a_file_with_substitutions_cannot_be_included_in_a_list(tmp_path: Path) -> None:
    (tmp_path / "c.conf").write_text("x = ${y}\ny = 1")
    (tmp_path / "plain.conf").write_text("x = 1")
    main = tmp_path / "main.conf"
    main.write_text('a = [{ include "plain" }]')
    assert parse_file(main) == {"a": [{"x": 1}]}
    main.write_text('a = [{ include "c" }]')
    with pytest.raises(InvalidConfig, match="only files without substitutions"):
        parse_file(main)


def test_references_of_an_included_file_mean_its_own_keys_first(tmp_path: Path) -> None:
    (tmp_path / "main.conf").write_text('x = outer\nonly = here\nin { include "in.conf" }\nin.x = changed')
    (tmp_path / "in.conf").write_text("x = inner\nown = ${x}\nother = ${only}")
    found = parse_file(tmp_path / "main.conf")
    assert found["in"] == {"x": "changed", "own": "changed", "other": "here"}


def test_a_missing_include_is_nothing_unless_it_is_required(tmp_path: Path) -> None:
    main = tmp_path / "main.conf"
    main.write_text('include "none.conf"\na = 1')
    assert parse_file(main) == {"a": 1}
    for statement in ('include required("none.conf")', 'include required(file("none.conf"))'):
        main.write_text(f"a = 1\n{statement}")
        with pytest.raises(InvalidConfig, match=r"the required file .*none.conf does not exist") as caught:
            parse_file(main)
        assert caught.value.line == 2
        assert str(main) in str(caught.value)


@pytest.mark.parametrize("kind", ["url", "classpath", "package"])
def test_other_kinds_of_include_are_refused_in_files_too(kind: str, tmp_path: Path) -> None:
    (tmp_path / "main.conf").write_text(f'include {kind}("x")')
    with pytest.raises(InvalidConfig, match="is not supported; include a file"):
        parse_file(tmp_path / "main.conf")


def test_an_include_with_lost_parentheses_is_refused(tmp_path: Path) -> None:
    (tmp_path / "main.conf").write_text('include required(file("x")')
    with pytest.raises(InvalidConfig, match="parentheses"):
        parse_file(tmp_path / "main.conf")


def test_files_that_include_each_other_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.conf").write_text('include "b.conf"')
    (tmp_path / "b.conf").write_text('include "a.conf"')
    with pytest.raises(InvalidConfig, match="includes itself"):
        parse_file(tmp_path / "a.conf")


def test_a_file_may_use_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "main.conf"
    file.write_text('master = "local[4]"\nmaster = ${?MASTER}\npaths = [${ROOT}/python]\nROOT2 = ${?NONE}')
    assert parse_file(file, env={"ROOT": "/spark"}) == {"master": "local[4]", "paths": ["/spark/python"]}
    monkeypatch.setenv("ROOT", "/s")
    monkeypatch.setenv("MASTER", "yarn")
    assert parse_file(file) == {"master": "yarn", "paths": ["/s/python"]}


def test_a_key_of_the_file_comes_before_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "main.conf"
    file.write_text("HOME = here\na = ${HOME}")
    assert parse_file(file, env={"HOME": "/root"})["a"] == "here"


def test_a_variable_that_is_not_set_is_an_error_with_the_files_name(tmp_path: Path) -> None:
    file = tmp_path / "main.conf"
    file.write_text("a = 1\nb = ${NOT_SET}")
    with pytest.raises(
        InvalidConfig, match=r"main.conf: \$\{NOT_SET\} is not defined .* environment"
    ) as caught:
        parse_file(file, env={})
    assert (caught.value.line, caught.value.column) == (2, 5)


@pytest.mark.parametrize("case", ["missing", "directory", "binary"])
def test_a_file_that_cannot_be_read_is_a_clear_error(case: str, tmp_path: Path) -> None:
    file = tmp_path / "main.conf"
    if case == "directory":
        file.mkdir()
    if case == "binary":
        file.write_bytes(b"a = \xff")
    with pytest.raises(InvalidConfig, match=r"main\.conf"):
        parse_file(file)


def test_importing_the_library_imports_no_parser() -> None:
    code = (
        "import jobserver_core.config.loading, sys\n"
        "print(*(n in sys.modules for n in ('pyhocon', 'pyparsing')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.split() == ["False", "False"]
