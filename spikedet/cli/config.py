"""Options of a command in a YAML file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from spikedet import resources
from spikedet.errors import UsageError


def with_config(arguments: argparse.ArgumentParser, words: list[str]) -> list[str]:
    """Put the options of a `--config` file before the words of the command line, which win.

    The file is YAML: a section for each command (`train:`, `finetune:`), in it the command's
    options without dashes. `true` and `false` switch, a list gives several values, and what is
    `null` counts as left out.

    Raises:
        UsageError: No such file, not YAML of that form, or an option that the command has not.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path)
    path = finder.parse_known_args(words)[0].config
    if path is None:
        return words
    from spikedet.files import read_yaml

    section = Path(arguments.prog).stem
    options = read_yaml(resources.config(path, "experiments")).get(section)
    if not isinstance(options, dict):
        raise UsageError(f"{path}: expected a section {section!r} of options")
    before = []
    for name, value in options.items():
        try:
            before += _option_words(arguments, str(name), value)
        except UsageError as error:
            raise UsageError(f"{path}: {section} {error}") from None
    # a list ends where the next option begins
    return [*before, "--config", str(path), *words]


def _option_words(arguments: argparse.ArgumentParser, name: str, value: Any) -> list[str]:
    """One option of a `--config` file as on a command line."""
    options = {word: action for action in arguments._actions for word in action.option_strings}
    word = f"--{name.replace('_', '-')}"
    if word not in options or word in ("--config", "--help"):
        raise UsageError(f"has no option {name!r}")
    if value is None:
        return []
    nargs = options[word].nargs
    if nargs == 0:
        if not isinstance(value, bool):
            raise UsageError(f"has {name}: {value}; expected true or false")
        off = word.replace("--", "--no-", 1)
        return [word] if value else [off] if off in options else []
    values = value if isinstance(value, list) else [value]
    if not values or any(type(v) not in (str, int, float) for v in values):
        raise UsageError(f"has {name}: {value}; expected text (perhaps in quotes) or a number")
    if nargs is None and len(values) > 1:
        raise UsageError(f"has {name}: {value}; expected a single value")
    return [f"{word}={values[0]}"] if nargs is None else [word, *map(str, values)]
