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
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from jobserver_cli.exits import ExitCode

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress

UNLIMITED = 100_000
"""The width of an output that is not a terminal. Nothing is wrapped or truncated there."""
SHORT = 20
"""Cells of a table up to this length are never truncated."""
NARROW = 80
"""Terminals below this width show the first characters of an ID, which are enough to name a job."""
ID_DIGITS = 8
"""How many characters of an ID a narrow terminal shows."""
WIDE = 110
"""Terminals of at least this width show all columns of a table."""
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_CONTROL = re.compile(r"(?:\x1b\[[0-?]*[ -/]*[@-~])|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

STATE_STYLES = {
    "STARTED": "cyan",
    "RUNNING": "blue",
    "RESTARTING": "yellow",
    "STOPPING": "yellow",
    "FINISHED": "green",
    "ERROR": "red",
    "KILLED": "magenta",
}
"""The colours of job and context states."""


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
        self.out = _console(stderr=False)
        self.err = _console(stderr=True)

    @property
    def interactive(self) -> bool:
        """Whether stderr is a terminal, so that progress can be shown."""
        return self.err.is_terminal

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
        self.out.print(
            visible(text) if self.out.is_terminal else text, markup=False, emoji=False, soft_wrap=True
        )

    def note(self, text: str, *, style: str | None = None) -> None:
        """Print a note on stderr."""
        self.err.print(visible(text), style=style, markup=False, emoji=False, soft_wrap=True)

    def done(self, text: str) -> None:
        """Report on stderr that a step succeeded."""
        self.err.print(_marked("✓", "green", text), emoji=False, soft_wrap=True)

    def failed(self, text: str) -> None:
        """Report on stderr that a step failed."""
        self.err.print(_marked("✗", "red", text), emoji=False, soft_wrap=True)

    def marked(self, mark: str, style: str, text: str) -> None:
        """Print a line with a coloured mark on stdout."""
        self.out.print(_marked(mark, style, text), emoji=False, soft_wrap=True)

    def error(self, message: str, advice: str | None = None) -> None:
        """Print an error on stderr, with advice."""
        self.failed(message)
        for line in (advice or "").splitlines():
            self.note(f"  {line}")

    def stop_display(self) -> None:
        """Remove the progress display, from any thread. Idempotent."""
        display, self._display = self._display, None
        if display is not None:
            display.stop()

    def interrupted(self) -> None:
        """Restore the terminal, and print the note for an interrupted command."""
        self.stop_display()
        self.note(self.interrupt_note or "interrupted")

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Print rows under headings. Long cells are truncated to fit, except for the first column."""
        from rich.table import Table  # noqa: PLC0415 - only when a table is shown
        from rich.text import Text  # noqa: PLC0415

        cells = [[visible(cell).replace("\n", " ") for cell in row] for row in rows]
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for number, column in enumerate(columns):
            longest = max((len(row[number]) for row in cells), default=0)
            table.add_column(column, no_wrap=number == 0 or longest <= SHORT, overflow="ellipsis")
        for row in cells:
            table.add_row(*(Text(cell, style=STATE_STYLES.get(cell, "")) for cell in row))
        self._print(table)

    def record(self, fields: Mapping[str, object]) -> None:
        """Print names and values, one a line; None is left out."""
        from rich.table import Table  # noqa: PLC0415 - only when a record is shown
        from rich.text import Text  # noqa: PLC0415

        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in fields.items():
            if value is not None:
                table.add_row(name, Text(visible(value), style=STATE_STYLES.get(str(value), "")))
        self._print(table)

    def copy(self, chunks: Iterable[bytes]) -> None:
        """Copy bytes to stdout as they arrive; on a terminal, without control characters."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for chunk in chunks:
            if self.out.is_terminal:
                self.out.out(visible(decoder.decode(chunk)), end="", highlight=False)
            else:
                self._write(chunk)

    def _write(self, chunk: bytes) -> None:
        try:
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            self.out.on_broken_pipe()

    def status(self, text: str) -> AbstractContextManager[Callable[[str], None]]:
        """Show a status message while the block runs. The block gets a function that changes it.

        Without a terminal, each new message is printed as a line, so that logs of unattended runs have it
        too.
        """
        return _Spinner(self, text) if self.interactive else _Lines(self, text)

    def progress(self) -> Progress:
        """Return a progress bar of bytes on stderr. It is invisible without a terminal."""
        from rich import progress as bars  # noqa: PLC0415 - only when progress is shown

        display = bars.Progress(
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(bar_width=None),
            bars.DownloadColumn(binary_units=True),
            bars.TransferSpeedColumn(),
            bars.TimeRemainingColumn(compact=True),
            console=self.err,
            transient=True,
            disable=not self.interactive,
            expand=True,
        )
        return self.shown(display)

    def shown(self, display: Progress) -> Progress:
        """Remember the display that is on the terminal now, and return it."""
        self._display = display
        return display

    def _print(self, content: RenderableType) -> None:
        if self.out.is_terminal:
            self.out.print(content)
            return
        with self.out.capture() as capture:
            self.out.print(content)
        for line in capture.get().splitlines():
            self.line(line.rstrip())


class _Spinner:
    """A status message with a spinner and the elapsed time."""

    def __init__(self, terminal: Terminal, text: str) -> None:
        from rich import progress as bars  # noqa: PLC0415 - only when progress is shown

        self._progress = bars.Progress(
            bars.SpinnerColumn(),
            bars.TextColumn("{task.description}", markup=False),
            bars.TimeElapsedColumn(),
            console=terminal.err,
            transient=True,
        )
        terminal.shown(self._progress)
        self._task = self._progress.add_task(visible(text), total=None)

    def __enter__(self) -> Callable[[str], None]:
        self._progress.start()
        return self._show

    def __exit__(self, *_exc: object) -> None:
        self._progress.stop()

    def _show(self, text: str) -> None:
        self._progress.update(self._task, description=visible(text))


class _Lines:
    """A status message without a terminal: one line for each new message."""

    def __init__(self, terminal: Terminal, text: str) -> None:
        self._terminal = terminal
        self._shown = ""
        self._first = text

    def __enter__(self) -> Callable[[str], None]:
        self._show(self._first)
        return self._show

    def __exit__(self, *_exc: object) -> None:
        return

    def _show(self, text: str) -> None:
        if text != self._shown:
            self._shown = text
            self._terminal.note(text)


def _marked(mark: str, style: str, text: str) -> RenderableType:
    from rich.text import Text  # noqa: PLC0415 - only when something is shown

    return Text.assemble((mark, style), " ", visible(text))


def _console(*, stderr: bool) -> Console:
    from rich.console import Console  # noqa: PLC0415 - --help does not need it

    class Output(Console):
        """A console that exits with PIPE_CLOSED when the reader closes the pipe."""

        def on_broken_pipe(self) -> None:
            """Exit without a message."""
            self.quiet = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(ExitCode.PIPE_CLOSED)

    terminal = Output(stderr=stderr, highlight=False)
    return terminal if terminal.is_terminal else Output(stderr=stderr, highlight=False, width=UNLIMITED)
