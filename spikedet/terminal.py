"""Progress bars and tables, with or without a terminal.

On a terminal, bars show the rate and the remaining time, and tables fit its width. Colours follow
`NO_COLOR` and the terminal. Without a terminal, a bar is one plain line per minute, and tables have
a fixed width, so that other programs can read them. With `quiet` there are no bars.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

LOG_INTERVAL = 60.0  # seconds between two lines of a bar where there is no terminal
LEAST_BESIDE = 24  # letters of a text beside its head
NARROWEST = 7  # letters of a column of a table, one between columns: as many as `0.2834` has
_bars: list[Bar] = []  # that are open
_quiet = False
_nowhere: Any = None


@contextlib.contextmanager
def quietly(quiet: bool) -> Iterator[None]:
    """Show no bars, notes and standard output inside the `with` block, if `quiet` is True."""
    global _quiet, _nowhere
    if not quiet:
        yield
        return
    if _nowhere is None:  # stays open: loggers may keep it
        _nowhere = open(os.devnull, "w")  # noqa: SIM115
    before, _quiet = _quiet, True
    try:
        with contextlib.redirect_stdout(_nowhere):
            yield
    finally:
        _quiet = before


def note(text: str) -> None:
    """Print a line on standard error that is not an error. Standard output is only for results."""
    if not _quiet:
        print(text, file=sys.stderr)


def close_bars() -> None:
    """Close bars that were left open by an error, so that the cursor is visible again."""
    while _bars:
        _bars[-1].close()


def console(stream: Any) -> Any:
    """Make a rich console that writes to a stream, with colours unless `NO_COLOR` is set."""
    from rich.console import Console

    return Console(file=stream, highlight=False, markup=False, emoji=False)


class Bar:
    """Progress on standard error: a bar, or one line per minute without a terminal.

    Iterate over it, or call `update`. Use `with` to close it.

    Args:
        items: Items to iterate over and count.
        desc: Description of the work.
        total: Total number. None: the length of `items` if it is known.
        unit: Unit of the count.
        initial: Number that was done before. It does not count towards the rate.
        leave: Whether the bar stays visible after it is closed.
        unit_scale: True if the numbers are bytes.
        shown: False to show nothing.

    Attributes:
        n: Number done so far.
        unit: Unit of the count.
    """

    def __init__(
        self,
        items: Iterable[Any] | None = None,
        desc: str = "",
        *,
        total: int | None = None,
        unit: str = "step",
        initial: int = 0,
        leave: bool = True,
        unit_scale: bool = False,
        shown: bool = True,
    ):
        if total is None and items is not None and hasattr(items, "__len__"):
            total = len(items)  # type: ignore[arg-type]
        self.items, self.desc, self.total, self.unit = items, desc, total, unit
        self.n = self._initial = initial
        self._leave, self._bytes = leave, unit_scale
        self._start = self._said = time.monotonic()
        self._more, self._lines = "", 0
        self._progress: Any = None
        self._task: Any = None
        if not shown:
            return
        if not _quiet and sys.stderr.isatty():
            self._open()
        _bars.append(self)

    def _open(self) -> None:
        from rich import progress

        columns = [progress.TextColumn("{task.description}"), progress.BarColumn(bar_width=None),
                   progress.TextColumn("{task.fields[state]}")]  # fmt: skip
        bars = progress.Progress(
            *columns, console=console(sys.stderr), transient=not self._leave, expand=True,
            refresh_per_second=4,
        )  # fmt: skip
        self._task = bars.add_task(self.desc, total=self.total, state=self.state())
        self._progress = bars
        bars.start()
        self._start = time.monotonic()  # not before rich was imported, which may take its time

    def state(self) -> str:
        """The progress as text, such as `12 of 64 pictures, 3.2 a second, 0:16 left`."""
        what = _bytes(self.n) if self._bytes else str(self.n)
        if self.total is not None:
            what += f" of {_bytes(self.total) if self._bytes else self.total}"
        what += "" if self._bytes else f" {self.unit}{'' if self.total == 1 else 's'}"
        passed = time.monotonic() - self._start
        rate = (self.n - self._initial) / passed if passed > 0 else 0.0
        if rate:
            much, of = (rate, "a second") if rate >= 0.1 else (60 * rate, "a minute")
            what += f", {_bytes(much) if self._bytes else f'{much:.3g}'} {of}"
            if self.total is not None:
                what += f", {_clock((self.total - self.n) / rate)} left"
        return what + (f", {self._more}" if self._more else "")

    def update(self, count: int = 1) -> None:
        """Add to the number done so far."""
        self.n += count
        if self._progress is not None:
            self._progress.update(
                self._task, completed=self.n, total=self.total, state=self.state()
            )
        elif self in _bars and time.monotonic() - self._said >= LOG_INTERVAL:
            self._say()

    def _say(self) -> None:
        self._said, self._lines = time.monotonic(), self._lines + 1
        note(f"{self.desc}: {self.state()}")

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """Set the text after the numbers."""
        self._more = text
        if self._progress is not None:
            self._progress.update(self._task, state=self.state())

    def write(self, text: str) -> None:
        """Print a line above the bar."""
        print(text)  # which rich puts there

    def close(self) -> None:
        """Show the last state. The bar stays visible if `leave` is True."""
        if self not in _bars:
            return
        _bars.remove(self)
        if self._progress is not None:
            self._progress.stop()
        elif self._leave or self._lines:
            self._say()

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self.items or ():
                yield item
                self.update()


class Table:
    """A table whose rows are printed one after the other.

    Args:
        columns: Title and width in characters of each column.
        left: Number of left-aligned columns, from the first on. The others are right-aligned.
    """

    def __init__(self, columns: Sequence[tuple[str, int]], left: int = 1):
        self.titles, self.left = [title for title, _ in columns], left
        self.widths = [width for _, width in columns]
        self._console = console(sys.stdout) if sys.stdout.isatty() else None
        if self._console is not None:
            self.widths = fitted(self.widths, self._console.width)
        # a number in two lines would be read as two
        self._stacked = self._console is not None and sum(self.widths) > self._console.width

    def head(self) -> None:
        """Print the titles. On a narrow terminal, each row has them next to its values."""
        if not self._stacked:
            self._print(self.titles, "bold")

    def row(self, *cells: str) -> None:
        """Print a row."""
        if not self._stacked:
            self._print(cells, "")
            return
        wide = max(map(len, self.titles)) + 2
        for title, cell in zip(self.titles, cells, strict=True):
            if cell.strip():
                print(f"  {title:{wide}}{cell}" if title else cell)

    def _print(self, cells: Sequence[str], style: str) -> None:
        if self._console is None:
            print("".join(
                f"{cell:{'<' if n < self.left else '>'}{width}}"
                for n, (cell, width) in enumerate(zip(cells, self.widths, strict=True))
            ).rstrip())  # fmt: skip
            return
        from rich.table import Table as Grid

        grid = Grid.grid(padding=(0, 1, 0, 0))
        for n, width in enumerate(self.widths):
            justify: Literal["left", "right"] = "left" if n < self.left else "right"
            grid.add_column(width=max(1, width - 1), justify=justify, overflow="fold")
        grid.add_row(*cells, style=style)
        self._console.print(grid)


def beside(head: str, text: str) -> str:
    """Put text to the right of a heading, wrapped to the width of the terminal.

    If the terminal is too narrow, the text is below the heading.
    """
    lines, indent = [line.strip() for line in text.splitlines()] or [""], len(head)
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        if width - indent < LEAST_BESIDE:
            head, indent = f"{head.rstrip()}\n    ", 4
        room = max(LEAST_BESIDE, width - indent)
        lines = [part for line in lines for part in textwrap.wrap(line, room) or [""]]
    return head + f"\n{' ' * indent}".join(lines)


def fitted(widths: Sequence[int], most: int) -> list[int]:
    """Reduce the widths of columns to at most `most` in total. The widest columns shrink first."""
    fit = list(widths)
    while sum(fit) > most and max(fit) > NARROWEST:
        fit[fit.index(max(fit))] -= 1
    return fit


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _bytes(number: float) -> str:
    return f"{number / 1e6:.1f} MB" if number >= 1e6 else f"{number / 1e3:.1f} kB"
