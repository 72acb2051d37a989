"""Code of the pages: which blocks there are, and what runs each.

A block of a page (```sh or ```python) runs in tests/docs unless an HTML comment stands before it:

    <!-- not run: the reason -->
    <!-- run by tests/commands/test_x.py::test_y -->
"""

import re
from dataclasses import dataclass
from pathlib import Path

from support.places import ROOT

DOCS = ROOT / "docs"
FOLDERS = ("docs", "demo", "data", "examples", "weights")  # and the pages beside the README
BLOCK = re.compile(
    r"(?:<!-- (?P<mark>not run|run by):? (?P<words>[^>]*?) -->\n+)?"
    r"^ *```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
COMMAND = re.compile(r"^ *(?:\w+=\S+ )*(?:torchrun .*? -m )?spikedet ([\w-]+)(.*)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A block of code: on which page and line, in which language, and the comment before it."""

    page: str
    line: int
    language: str
    code: str
    mark: str | None = None
    words: str = ""

    def __str__(self):
        return f"{self.page}:{self.line}"


def pages():
    """All pages of the clone, as paths from its root."""
    paths = list(ROOT.glob("*.md"))
    for folder in FOLDERS:
        paths += (ROOT / folder).rglob("*.md")
    return sorted(str(path.relative_to(ROOT)) for path in paths)


def blocks(page, *languages):
    """The blocks of a page in these languages, or all."""
    text = (ROOT / page).read_text()
    for match in BLOCK.finditer(text):
        if not languages or match["language"] in languages:
            line = text.count("\n", 0, match.start("code"))
            yield Block(page, line, match["language"], match["code"], match["mark"],
                        match["words"] or "")  # fmt: skip


def commands(text):
    """(command, its words in one string) of every `spikedet NAME ...` at the start of a line."""
    text = re.sub(r"\\\\?\n\s*", " ", text)
    return [(name, words.split("#")[0]) for name, words in COMMAND.findall(text)]


def links(page):
    """Where a page leads to, code left out."""
    text = re.sub(r"^ *```.*?^ *```$", "", (ROOT / page).read_text(), flags=re.M | re.S)
    return LINK.findall(re.sub(r"`[^`\n]*`", "", text))


def code(page):
    """All Python that runs of a page of docs/, in its order."""
    return "\n".join(each.code for each in blocks(f"docs/{page}", "python") if not each.mark)


def anchors(path: Path):
    """Anchors of the headings of a page."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    plain = [re.sub(r"[^\w\- ]", "", title.lower()).strip() for title in titles]
    return {re.sub(r" ", "-", title) for title in plain}
