"""The output of commands: tables and progress for people, JSON for programs.

Results go to stdout. Everything else (progress, notes, the log of a followed job) goes to stderr, so that
stdout can be piped. Control characters from servers and jobs are removed before a terminal shows them.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, BinaryIO, NoReturn, TextIO

from jobserver_cli.exits import ExitCode
from jobserver_cli.tables import Table

if TYPE_CHECKING:
    from pathlib import Path
    from typing import TypeAlias

    from rich.console import Console
    from rich.progress import Progress

    Output: TypeAlias = "Console | Pipe"

UNLIMITED = 100_000
"""The width of an output that is not a terminal. Nothing is wrapped or truncated there."""
NARROW = 80
"""Terminals below this width show the first characters of an ID, which are enough to name a job."""
ID_DIGITS = 8
"""How many characters of an ID a narrow terminal shows."""
REFUSAL_DELAY = 1.0
"""Seconds after which a request that the server may refuse has most likely begun to do its work."""
WIDE = 110
"""Terminals of at least this width show all columns of a table."""
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_CONTROL = re.compile(r"(?:\x1b\[[0-?]*[ -/]*[@-~])|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_LINE_BREAK = re.compile("[\t\n\u2028\u2029]")

STATE_STYLES = {
    "STARTED": "cyan",
    "RUNNING": "blue",
    "RESTARTING": "yellow",
    "STOPPING": "yellow",
    "FINISHED": "green",
    "ERROR": "red",
    "KILLED": "magenta",
}
"""The colors of job and context states."""


def visible(text: object) -> str:
    """Remove escape sequences and control characters, so that a terminal can show the text safely.

    Lone surrogates, which cannot be encoded, become the replacement character.
    """
    return _SURROGATE.sub("\ufffd", _CONTROL.sub("", str(text)))


class Terminal:
    """Stdout and stderr of a command. With ``as_json``, stdout gets only JSON documents."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.interrupt_note: str | None = None
        """The message to print when Ctrl-C ends the command."""
        self._display: Progress | None = None
        self.out: Output = _output("stdout")
        self.err: Output = _output("stderr")

    @property
    def wide(self) -> bool:
        """Whether there is room for all columns of a table."""
        return self.out.width >= WIDE

    def id_shown(self, value: object) -> str:
        """Return an ID, or on a narrow terminal its first characters."""
        narrow = self.out.is_terminal and self.out.width < NARROW
        return str(value)[:ID_DIGITS] if narrow else str(value)

    def json(self, value: object) -> None:
        """Print a value as a JSON document, indented on a terminal, otherwise on one line."""
        indent = 2 if self.out.is_terminal else None
        self.line(json.dumps(value, indent=indent, ensure_ascii=self.out.is_terminal is False))

    def line(self, text: str) -> None:
        """Print a line on stdout, without wrapping it."""
        _print(self.out, visible(text) if self.out.is_terminal else text)

    def note(self, text: str, *, style: str | None = None) -> None:
        """Print a note on stderr."""
        _print(self.err, visible(text), style=style)

    def report_done(self, text: str) -> None:
        """Report on stderr that a step succeeded."""
        _print(self.err, visible(text), mark="✓", mark_style="green")

    def print_marked(self, mark: str, style: str, text: str) -> None:
        """Print a line with a colored mark on stdout."""
        _print(self.out, visible(text), mark=mark, mark_style=style)

    def error(self, message: str, advice: str | None = None) -> None:
        """Print an error on stderr, with advice."""
        _print(self.err, visible(message), mark="✗", mark_style="red")
        for line in (advice or "").splitlines():
            self.note(f"  {line}")

    def clear(self) -> None:
        """Clear the terminal, if stdout is one."""
        if not isinstance(self.out, Pipe):
            self.out.clear()

    def stop_display(self) -> None:
        """Remove the progress display, from any thread. Idempotent."""
        display, self._display = self._display, None
        if display is not None:
            display.stop()

    def report_interruption(self) -> None:
        """Restore the terminal, and print the note for an interrupted command."""
        self.stop_display()
        self.note(self.interrupt_note or "interrupted")

    def records(
        self,
        found: Sized,
        columns: Sequence[str],
        rows: Iterable[Sequence[object]],
        *,
        none: str = "",
        optional: Sequence[str] = (),
        fold: bool = False,
    ) -> None:
        """Print what the server returned: as JSON, or the rows for it as a table, or the note ``none``."""
        if self.as_json:
            self.json(found)
        elif none and not found:
            self.note(none)
        else:
            self.table(columns, rows, optional=optional, fold=fold)

    def report_deleted(self, name: str, response: object) -> None:
        """Report that something was deleted; as JSON, print the server's response."""
        if self.as_json:
            self.json(response)
        else:
            self.report_done(f"deleted {name}")

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[object]],
        *,
        optional: Sequence[str] = (),
        fold: bool = False,
    ) -> None:
        """Print rows under headings, as :mod:`jobserver_cli.tables` fits them to the terminal."""
        headings, *cells = [[_LINE_BREAK.sub(" ", visible(cell)) for cell in row] for row in (columns, *rows)]
        table = Table(headings, cells, optional, fold)
        if isinstance(self.out, Pipe):
            for line in table.lines():
                self.line(line)
            return
        table, found = table.fitted(self.out.width)
        if found is not None:
            self.out.print(table.drawn(found, STATE_STYLES))
            return
        for number, row in enumerate(table.rows):
            if number:
                self.line("")
            self._pairs(list(zip(table.columns, row, strict=True)))

    def record(self, fields: Mapping[str, object]) -> None:
        """Print names and values, one a line; None is left out."""
        self._pairs([(name, visible(value)) for name, value in fields.items() if value is not None])

    def _pairs(self, values: Sequence[tuple[str, str]]) -> None:
        longest = max((len(name) for name, _ in values), default=0)
        if isinstance(self.out, Pipe):
            for name, value in values:
                indented = value.replace("\n", "\n" + " " * (longest + 2))
                self.line(f"{name.ljust(longest)}  {indented}".rstrip())
            return
        from rich import table as tables  # noqa: PLC0415 - only a terminal needs it
        from rich.text import Text  # noqa: PLC0415

        table = tables.Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in values:
            table.add_row(Text(name), Text(value, style=STATE_STYLES.get(value, "")))
        self.out.print(table)

    def copy(self, chunks: Iterable[bytes]) -> None:
        """Copy bytes to stdout as they arrive; on a terminal, without control characters."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for chunk in chunks:
            if not isinstance(self.out, Pipe):
                self.out.out(visible(decoder.decode(chunk)), end="", highlight=False)
            else:
                with writing(sys.stdout):
                    sys.stdout.buffer.write(chunk)
                    sys.stdout.buffer.flush()

    def status(self, text: str, *, delay: float = 0.0) -> AbstractContextManager[Callable[[str], None]]:
        """Show a status message while the block runs. The block gets a function that changes it.

        A terminal shows it with a spinner and the elapsed time. Without one, each new message is printed as a
        line, so that logs of unattended runs have it too. A line cannot be removed again, so ``delay`` is for
        what may be refused: a block that ends within this many seconds announces nothing.
        """
        return self._lines(text, delay) if isinstance(self.err, Pipe) else self._spinner(self.err, text)

    @contextmanager
    def _lines(self, first: str, delay: float) -> Iterator[Callable[[str], None]]:
        shown = ""

        def show(text: str) -> None:
            nonlocal shown
            if text != shown:
                shown = text
                self.note(text)

        later = threading.Timer(delay, show, (first,))
        later.daemon = True
        later.start() if delay else show(first)
        try:
            yield show
        finally:
            if delay:
                later.cancel()
                later.join()

    @contextmanager
    def _spinner(self, console: Console, text: str) -> Iterator[Callable[[str], None]]:
        from rich import progress as bars  # noqa: PLC0415 - only when progress is shown

        columns = (bars.TextColumn("{task.description}", markup=False), bars.TimeElapsedColumn())
        display = bars.Progress(bars.SpinnerColumn(), *columns, console=console, transient=True)
        task = display.add_task(visible(text), total=None)
        with self._remember(display):
            yield lambda text: display.update(task, description=visible(text))

    @contextmanager
    def opened(self, file: Path) -> Iterator[BinaryIO]:
        """Open a file for reading its bytes; a terminal shows how many of them were read."""
        if isinstance(self.err, Pipe):
            with file.open("rb") as content:
                yield content
            return
        from rich import progress as bars  # noqa: PLC0415 - only when progress is shown

        display = bars.Progress(
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(bar_width=None),
            bars.DownloadColumn(binary_units=True),
            bars.TransferSpeedColumn(),
            bars.TimeRemainingColumn(compact=True),
            console=self.err,
            transient=True,
            expand=True,
        )
        with self._remember(display), display.open(file, "rb", description=file.name) as content:
            yield content

    def _remember(self, display: Progress) -> Progress:
        """Remember the display that is on the terminal now, and return it."""
        self._display = display
        return display


class Pipe:
    """An output that is not a terminal: text as it is. Imports nothing, so that calls in loops are cheap."""

    is_terminal = False
    width = UNLIMITED

    def __init__(self, name: str) -> None:
        self._name = name

    def print(self, text: str) -> None:
        """Print a line, or exit if the reader has closed the pipe."""
        stream = getattr(sys, self._name)  # at each call, as print() does
        if stream is not None:
            with writing(stream):
                stream.write(f"{text}\n")
                stream.flush()


@contextmanager
def writing(stream: TextIO) -> Iterator[None]:
    """Write to an output in the block; exit without a message if its reader has closed the pipe.

    After a failure nothing more reaches the output. Otherwise Python would try to write the rest at exit,
    fail again, and replace the exit code.

    Raises:
        OSError: The output cannot be written for another reason, such as a full disk.
    """
    try:
        yield
    except BrokenPipeError:
        close_pipe()
    except OSError:
        _discard_rest(stream)
        raise


def close_pipe() -> NoReturn:
    """Exit without a message, because the reader of the output has closed the pipe."""
    _discard_rest(sys.stdout)
    raise SystemExit(ExitCode.PIPE_CLOSED)


def _discard_rest(stream: TextIO) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def _print(
    output: Output, text: str, *, style: str | None = None, mark: str = "", mark_style: str = ""
) -> None:
    """Print a line without wrapping it, perhaps with a colored mark before it."""
    if isinstance(output, Pipe):
        output.print(f"{mark} {text}" if mark else text)
        return
    from rich.text import Text  # noqa: PLC0415 - only a terminal needs it

    marked = Text.assemble((mark, mark_style), " ", text) if mark else Text(text)
    output.print(marked, style=style, soft_wrap=True)


def _output(name: str) -> Output:
    """Return an output for ``stdout`` or ``stderr``."""
    forced = any(os.environ.get(variable) for variable in ("FORCE_COLOR", "TTY_COMPATIBLE"))
    stream = getattr(sys, name)
    if stream is None or not (forced or stream.isatty()):
        return Pipe(name)
    from rich.console import Console  # noqa: PLC0415 - only a terminal needs it

    class Screen(Console):
        """A console that exits with PIPE_CLOSED when the reader closes the pipe."""

        def on_broken_pipe(self) -> None:
            """Exit without a message."""
            self.quiet = True
            close_pipe()

    screen = Screen(stderr=name == "stderr", highlight=False)
    return screen if screen.is_terminal else Pipe(name)
