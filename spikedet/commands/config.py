"""Options of a command in a YAML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spikedet import resources
from spikedet.commands.option import Option
from spikedet.errors import UsageError, did_you_mean


def with_config(known: Sequence[Option], words: Sequence[str], command: str) -> list[str]:
    """Convert the options of a `--config` file to command-line arguments.

    The file is YAML. It has a section for each command (`train:`, `finetune:`) with its options,
    without dashes. `true` and `false` set flags, a list gives several values, and `null` leaves an
    option out.

    Args:
        known: The options of the command.
        words: The command-line arguments. They override the file if they come after its arguments.
        command: Name of the command.

    Returns:
        Arguments to put before `words`.

    Raises:
        UsageError: The file does not exist or does not have this form, or the command does not have
            an option.
    """
    path = _named(words)
    if path is None:
        return []
    from spikedet.files import read_yaml

    options = read_yaml(resources.config(path, "experiments")).get(command)
    if not isinstance(options, dict):
        raise UsageError(f"{path}: expected a section {command!r} with options")
    before = []
    for name, value in options.items():
        try:
            before += _option_words(known, str(name), value)
        except UsageError as error:
            raise UsageError(f"{path}: {command} {error}") from None
    # a list ends where the next option begins
    return [*before, "--config", str(path)] if before else []


def _named(words: Sequence[str]) -> Path | None:
    """The file of the last `--config`. The parser reports errors in it later."""
    path = None
    for word, after in zip(words, [*words, ""][1:], strict=True):
        option, equals, value = word.partition("=")
        if option == "--config" and (equals or (after and not after.startswith("--"))):
            path = Path(value if equals else after)
    return path


def _option_words(known: Sequence[Option], name: str, value: Any) -> list[str]:
    """Convert one option of a `--config` file to command-line arguments."""
    options = {each.word: each for each in known if not each.more.get("positional")}
    word = f"--{name.replace('_', '-')}"
    if word not in options or word == "--config":
        raise UsageError(f"has no option {name!r}{did_you_mean(word, options)}")
    option = options[word]
    if value is None:
        return []
    if option.flag:
        if not isinstance(value, bool):
            raise UsageError(f"has {name}: {value}; expected true or false")
        return [word] if value else [option.off] if option.off else []
    values = value if isinstance(value, list) else [value]
    if not values or any(type(v) not in (str, int, float) for v in values):
        raise UsageError(f"has {name}: {value}; expected text (perhaps in quotes) or a number")
    if not option.many and len(values) > 1:
        raise UsageError(f"has {name}: {value}; expected a single value")
    try:
        for each in values:
            option.parse(str(each))
    except ValueError as error:
        raise UsageError(f"has {name}: {error}") from None
    return [word, *map(str, values)] if option.many else [f"{word}={values[0]}"]
