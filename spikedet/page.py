"""Build an HTML page in one file, with headings, tables and pictures inside."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; margin: 2rem 0 .6rem; }
table { border-collapse: collapse; font-size: .9rem; margin: .6rem 0; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #8884; text-align: left;
         vertical-align: top; overflow-wrap: anywhere; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.wide { overflow-x: auto; }
.wide th, .wide td { white-space: nowrap; }
figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; background: white; }
figcaption, .small { font-size: .85rem; opacity: .8; }
@media print { details { display: none; } }
"""
TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}


class Page:
    """An HTML page. New parts are added at the end.

    Args:
        title: Title of the page.
    """

    def __init__(self, title: str):
        self.title = title
        self._parts: list[str] = [f"<h1>{escape(title)}</h1>"]

    def heading(self, text: str, level: int = 2) -> None:
        """Add a heading of level 2 or 3."""
        self._parts.append(f"<h{level}>{escape(text)}</h{level}>")

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self._parts.append(f"<p>{escape(text)}</p>")

    def facts(self, values: Mapping[str, Any]) -> None:
        """Add a table of names and values, without values that are None."""
        rows = [
            f"<tr><th>{escape(str(name))}</th><td>{escape(shown(value))}</td></tr>"
            for name, value in values.items()
            if value is not None
        ]
        self._parts.append(f"<table>{''.join(rows)}</table>")

    def table(self, rows: Sequence[Mapping[str, Any]], title: str = "", most: int = 200) -> None:
        """Add a table. Its columns are all keys of the rows.

        Args:
            rows: Rows of the table.
            title: Title of a table that is collapsed at first. Empty: the table is visible at once.
            most: Largest number of rows. The page says how many more there are.
        """
        columns = list(dict.fromkeys(name for row in rows for name in row))
        head = "".join(f"<th>{escape(str(name))}</th>" for name in columns)
        body = "".join(
            f"<tr>{''.join(_cell(row.get(name)) for name in columns)}</tr>" for row in rows[:most]
        )
        more = f"<p class=small>{len(rows) - most} more rows</p>" if len(rows) > most else ""
        html = f"<div class=wide><table><tr>{head}</tr>{body}</table>{more}</div>"
        if title:
            html = f"<details><summary>{escape(title)}</summary>{html}</details>"
        self._parts.append(html)

    def picture(self, data: bytes, suffix: str, caption: str) -> None:
        """Add a picture. Its data are stored in the page.

        Args:
            data: Content of the picture file.
            suffix: Suffix of the file, a key of `TYPES`.
            caption: Text below the picture.
        """
        text = base64.b64encode(data).decode()
        source, words = f"data:{TYPES[suffix.lower()]};base64,{text}", escape(caption)
        self._parts.append(
            f'<figure><img src="{source}" alt="{words}"><figcaption>{words}</figcaption></figure>'
        )

    def html(self) -> bytes:
        """The page as HTML. It forbids the browser to run scripts and to load other addresses."""
        policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
        head = (
            '<meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{STYLE}</style>"
        )
        body = "\n".join(self._parts)
        page = f'<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'
        return f"<!doctype html>\n{page}".encode(errors="backslashreplace")


def shown(value: Any) -> str:
    """Convert a value to text: numbers with four digits, lists with commas."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {shown(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value))
    return "-" if value is None else str(value)


def _cell(value: Any) -> str:
    text = shown(value)
    try:
        text = f"{float(text):.4g}" if "." in text or "e" in text.lower() else str(int(text))
    except ValueError:
        return f"<td>{escape(text)}</td>"
    return f"<td class=number>{escape(text)}</td>"
