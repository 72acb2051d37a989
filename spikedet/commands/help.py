"""The help of a command: the main options (`--help`) or everything (`--help-all`)."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence

from spikedet.commands import words
from spikedet.commands.option import Option

WIDTH = 100  # of a page of help, in characters


def show_help(known: Sequence[Option], prog: str, texts: Sequence[str], everything: bool) -> None:
    """Print the help (all of it, or the main options only) and end the process.

    Raises:
        SystemExit: Always, after the help is printed.
    """
    groups = [title for title in words.grouped(known) if title]
    columns = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
    for text in filter(None, map(str.strip, texts)):
        print(_filled(text, columns) + "\n")
    shown = [each for each in known if everything or not each.more["group"]]
    printed = _Printed(io.BytesIO(), sys.stdout.encoding or "utf-8", write_through=True)
    with (
        words.columns(str(columns)),
        contextlib.suppress(SystemExit),
        contextlib.redirect_stdout(printed),
    ):
        words.by_tyro(shown, ["--help"], prog)
    usage, _, boxes = printed.text().partition("\n")
    usage = re.sub(r"\x1b\[[\d;]*m", "", usage)  # colours, which have no width
    print(_wrapped(usage, columns, "       ") + "\n" + boxes, end="")
    if not everything:
        rest = f"Run {prog} --help-all for more text and more options ({', '.join(groups)})."
        print(_filled(rest, columns))
    raise SystemExit(0)


def _filled(text: str, columns: int) -> str:
    """Wrap the paragraphs of a text to the width of the terminal, except indented lines."""
    parts = text.split("\n\n")
    return "\n\n".join(p if p.startswith(" ") else _wrapped(p, columns) for p in parts)


def _wrapped(text: str, columns: int, indent: str = "") -> str:
    """Wrap a text. All lines but the first are indented."""
    wide = max(20, columns)
    return textwrap.fill(text, wide, subsequent_indent=indent, break_on_hyphens=False)


class _Printed(io.TextIOWrapper):
    """Stores what is printed, with the colours of standard output."""

    def isatty(self) -> bool:
        assert sys.__stdout__ is not None
        return sys.__stdout__.isatty()

    def text(self) -> str:
        self.seek(0)
        return self.read()
