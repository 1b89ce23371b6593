"""Tables that stay readable on every terminal, whatever names are in them.

The problem: users choose names of up to 255 characters, and terminals have 60 columns or 200. A table that is
too wide wraps in the middle of its rows, and one that is squeezed shows a letter of each value.

The idea: each column has a least width. Short values are never cut, and an ID always fits. If a terminal is
too narrow for that, optional columns are left out. What is left over is shared among the columns that need
more: the first one, which has the name of the row, is folded rather than cut, so that it can be used in
commands, and the others are truncated. If even that is too wide, each row becomes a list of its values.

In a pipe there is no width, so nothing is left out, folded or truncated.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from rich.console import RenderableType

GAP = 2
"""The number of spaces between columns."""
SHORT = 20
"""Values up to this length are never truncated."""
LEAST, LEAST_OF_FIRST = 10, 36
"""The least widths of a column with longer values, and of the first one, which often has IDs."""


@attrs.frozen
class Table:
    """Headings and rows of cells, without control characters or line breaks.

    ``optional`` columns are left out first if there is no room, in this order. With ``fold``, no value is
    truncated.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    optional: Sequence[str] = ()
    fold: bool = False

    def lines(self) -> Iterable[str]:
        """Yield the lines for a pipe."""
        rows = [self.columns, *self.rows]
        wanted = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
        for row in rows:
            yield "  ".join(cell.ljust(width) for cell, width in zip(row, wanted, strict=True)).rstrip()

    def fitted(self, available: int) -> tuple[Table, list[int] | None]:
        """Return the table without the columns that do not fit, and the widths of the others.

        The widths are None if the table is too wide even so.
        """
        table, dropped = self, 0
        while (found := widths(table._wanted(), available)) is None and dropped < len(self.optional):
            dropped += 1
            table = self._without(self.optional[:dropped])
        return table, found

    def _wanted(self) -> list[int]:
        from rich.cells import cell_len  # noqa: PLC0415 - only a terminal needs it

        return [max(map(cell_len, cells)) for cells in zip(self.columns, *self.rows, strict=True)]

    def _without(self, names: Collection[str]) -> Table:
        kept = [number for number, name in enumerate(self.columns) if name not in names]
        rows = [[row[number] for number in kept] for row in self.rows]
        return attrs.evolve(self, columns=[self.columns[number] for number in kept], rows=rows)

    def drawn(self, found: Sequence[int], styles: dict[str, str]) -> RenderableType:
        """Return the table with these widths; ``styles`` are those of cells with these values."""
        from rich import table as tables  # noqa: PLC0415 - only a terminal needs it
        from rich.text import Text  # noqa: PLC0415

        drawn = tables.Table(box=None, pad_edge=False, header_style="bold", padding=(0, GAP, 0, 0))
        for number, (column, width) in enumerate(zip(self.columns, found, strict=True)):
            folds = self.fold or number == 0
            drawn.add_column(
                Text(column), width=width, overflow="fold" if folds else "ellipsis", no_wrap=not folds
            )
        for row in self.rows:
            drawn.add_row(*(Text(cell, style=styles.get(cell, "")) for cell in row))
        return drawn


def widths(wanted: Sequence[int], available: int) -> list[int] | None:
    """Return the widths of columns that want these ones, or None if not even the least ones fit."""
    found = [width if width <= SHORT else LEAST for width in wanted]
    found[0] = min(wanted[0], LEAST_OF_FIRST)
    spare = available - GAP * (len(wanted) - 1) - sum(found)
    if spare < 0:
        return None
    by_need = sorted(range(len(wanted)), key=lambda number: wanted[number] - found[number])
    for done, number in enumerate(by_need):
        more = min(wanted[number] - found[number], spare // (len(wanted) - done))
        found[number] += more
        spare -= more
    return found
