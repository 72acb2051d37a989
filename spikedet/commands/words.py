"""Parse the command line with tyro, and shorten its error messages to one sentence."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any

from spikedet.commands.option import Option
from spikedet.errors import UsageError

GROUPS = (  # in this order, others behind them
    "data", "training", "distillation", "stage I", "stage II", "end-to-end pass", "detectors",
    "classifiers",
)  # fmt: skip
COMMON = "common"  # the group of what every command has, behind all others


def grouped(known: Sequence[Option]) -> dict[str, list[Option]]:
    """Group options by their heading in the help. The main options come first."""
    groups: dict[str, list[Option]] = {}
    for each in known:
        groups.setdefault(each.more["group"], []).append(each)
    order = ("", *GROUPS, *(title for title in groups if title != COMMON), COMMON)
    return dict(sorted(groups.items(), key=lambda item: order.index(item[0])))


def read(known: Sequence[Option], words: Sequence[str], prog: str) -> Any:
    """Parse command-line arguments with tyro.

    Raises:
        UsageError: The arguments are wrong. The message is tyro's, in one sentence.
    """
    for each in known:
        if each.flag and any(word.partition("=")[0] in (each.word, each.off) and "=" in word
                             for word in words):  # fmt: skip
            raise UsageError(f"{each.word}: takes no value")
    raw = io.BytesIO()
    printed = io.TextIOWrapper(raw, "utf-8", write_through=True)  # for which boxes are drawn
    try:
        with (
            columns("10000"),
            contextlib.redirect_stderr(printed),
            contextlib.redirect_stdout(printed),
        ):
            return by_tyro(known, words, prog)
    except SystemExit:
        raise UsageError(sentence(raw.getvalue().decode())) from None


@contextlib.contextmanager
def columns(number: str) -> Iterator[None]:
    """Set the width of the terminal inside the `with` block."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = number
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def by_tyro(known: Sequence[Option], words: Sequence[str], prog: str) -> Any:
    """Parse command-line arguments with tyro, which prints its own messages and help."""
    import tyro

    groups = {
        title: [(each.name, *_field(each)) for each in members]
        for title, members in grouped(known).items()
    }
    main = groups.pop("", [])
    for title, members in groups.items():
        group = make_dataclass("Group", members, kw_only=True, namespace={"in_group": True})
        group.__doc__ = ""
        kind = Annotated[group, tyro.conf.arg(name=title)]  # type: ignore[valid-type]
        main.append((f"group_{len(main)}", kind, field(default_factory=group)))
    all_words = make_dataclass("Words", main, kw_only=True)
    all_words.__doc__ = ""
    return tyro.cli(all_words, args=list(words), prog=prog, description="")


def _field(each: Option) -> tuple[Any, Any]:
    """The type and the field of an option for tyro."""
    import tyro
    from tyro.constructors import PrimitiveConstructorSpec

    shown = each.more.get("shown")
    hint = "(required)" if each.default is MISSING else ""
    if shown is not None:
        hint = f"({shown})" if shown else ""
    elif each.default not in (None, False, MISSING) and each.default != []:
        text = " ".join(map(str, each.default)) if each.many else shown_as(each.default)
        hint = f"(default: {text})"
    argument = tyro.conf.arg(
        name=each.word[2:],
        help=each.more["help"],
        help_behavior_hint=hint,
        prefix_name=False,
        aliases=each.more.get("aliases"),
    )
    if each.flag:
        kind: Any = Annotated[bool, argument]
        if not each.pair:
            kind = tyro.conf.FlagCreatePairsOff[kind]  # type: ignore[misc]
        return kind, field(default=bool(each.default))
    nargs: Any = each.more.get("nargs", "*") if each.many else 1

    def value(texts: list[str]) -> Any:
        if each.many and not texts and not each.more.get("positional"):
            raise ValueError("expected at least one value")
        values = [each.parse(text) for text in texts]
        return values if each.many else values[0]

    metavar = each.more.get("metavar") or _metavar(each)
    spec = PrimitiveConstructorSpec(
        nargs=nargs,
        metavar=metavar + (" ..." if nargs == "*" else ""),
        instance_from_str=value,
        is_instance=lambda _: True,
        str_from_instance=lambda v: list(map(str, v or [])) if each.many else [str(v)],
    )
    kind = Annotated[Any, spec, argument]
    if each.more.get("positional"):
        kind = tyro.conf.Positional[kind]  # type: ignore[misc]
    if each.default is MISSING:
        return kind, field()
    if each.many and each.default is not None:
        return kind, field(default_factory=lambda: list(each.default))
    return kind, field(default=each.default)


def _metavar(each: Option) -> str:
    """The name of the value of an option in the help."""
    if each.choices:
        return "{" + ",".join(each.choices) + "}"
    if each.type in (int, float):
        return {int: "N", float: "X"}[each.type]
    return "PATH" if each.type is Path else "NAME"


# ------------------------------------------------------------------ what tyro prints


def sentence(printed: str) -> str:
    """Shorten tyro's message about wrong arguments to one sentence."""
    lines = [line.strip("│").rstrip() for line in printed.splitlines()]
    title = lines[0].strip("╭╮─ ") if lines else ""
    sections: list[list[str]] = [[]]
    for line in lines[1:]:
        if set(line.strip()) <= set("─╰╯"):
            sections.append([])
        else:
            sections[-1].append(line[1:])
    first = " ".join(line.strip() for line in sections[0])
    names = [line.strip() for line in sections[0] if re.match(r"    \S", line)]
    if title == "Required options":
        return f"expected {' and '.join(names)}"
    near = [
        line.split(",")[0].split()[0]
        for section in sections
        if section and section[0].startswith("Perhaps you meant")
        for line in section
        if re.match(r"    \S", line)
    ]
    first = first.removeprefix("Error parsing ").removesuffix(".")
    if first.startswith("Unrecognized options: "):
        rest = first.removeprefix("Unrecognized options: ")
        first = f"unrecognized arguments: {rest.replace(', ', ' ')}"
    first = re.sub(r"^Missing value for argument '(.*)'\. .*$", r"\1: expected a value", first)
    return first + (f" (did you mean {' or '.join(near[:2])}?)" if near else "")


def shown_as(value: Any) -> str:
    """The text for a default in the help."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "off" if value is None else str(value)
