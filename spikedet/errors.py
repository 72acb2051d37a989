"""Exceptions for errors that a user can correct. Each has one clear sentence and an exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 2000  # characters; a longer message is cut


def shorten(text: object, most: int = 80) -> str:
    """Shorten a text to about `most` characters by leaving out its middle."""
    text = str(text)
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}...{text[-(most // 2) :]} ({len(text):,} characters)"


def message_of(error: BaseException) -> str:
    """The message of an exception, short enough to be quoted in one of our messages.

    Messages of our own exceptions are returned unchanged. For exceptions of other libraries it is
    the first line, cut after about 200 characters. If there is no message, it is the class name.
    """
    if isinstance(error, SpikedetError):
        return str(error)
    lines = (line.strip() for line in str(error).splitlines())
    return shorten(next(filter(None, lines), type(error).__name__), 200)


def did_you_mean(text: str, words: Iterable[str]) -> str:
    """The question `(did you mean WORD?)` for the most similar word, or an empty text."""
    known = {word.lower(): word for word in words}
    matches = difflib.get_close_matches(str(text)[:100].lower(), known, 1)
    return f" (did you mean {shorten(known[matches[0]])}?)" if matches else ""


def list_choices(text: str, words: Iterable[str]) -> str:
    """A list of the known words, with a question if one of them is similar to `text`.

    Examples:
        >>> from spikedet.errors import list_choices
        >>> list_choices("evnts", ["torch", "events"])
        'torch, events (did you mean events?)'
    """
    words = list(words)
    return ", ".join(shorten(word, 40) for word in words) + did_you_mean(text, words)


def counted(number: int, noun: str) -> str:
    """A number with its noun: `1 picture`, `2 pictures`, `2 boxes`."""
    return f"{number} {noun}" + ("" if number == 1 else "es" if noun.endswith("x") else "s")


class SpikedetError(Exception):
    """Base class of all errors with a message for the user.

    The message names the wrong value and says what is expected. `commands.main.run` prints the
    message and exits with `exit_code`. Any other exception is a bug and keeps its traceback. A
    message longer than `LONGEST` characters is cut.
    """

    exit_code = 1

    def __str__(self) -> str:
        return shorten(super().__str__(), LONGEST)


class UsageError(SpikedetError):
    """An argument is wrong, or arguments contradict each other. Exit code 2."""

    exit_code = 2


class DataError(SpikedetError):
    """A data set or an annotation is missing, damaged or contradicts itself. Exit code 3."""

    exit_code = 3


class PictureError(DataError):
    """A picture is missing, truncated or not a picture. Exit code 3."""


class WeightsError(SpikedetError):
    """A weights file is missing, damaged or of another kind. Exit code 4."""

    exit_code = 4


class ConversionError(SpikedetError):
    """A network has an operation without a spiking counterpart. Exit code 5."""

    exit_code = 5


class TrainingError(SpikedetError):
    """A training run cannot start, resume or continue. Exit code 6."""

    exit_code = 6


class ResourceError(SpikedetError):
    """The memory is too small, or the system ended a process. Exit code 1."""


MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "a primitive")


def resource_error(error: BaseException) -> SpikedetError | None:
    """Convert an out-of-memory error of torch to a `ResourceError`; None for other errors."""
    reason = message_of(error) if str(error).strip() else "no reason given"
    if "DataLoader worker" in str(error) or "/torch_" in str(error):
        return ResourceError(
            "the system ended a loader process, or the shared memory is too small "
            f"({reason}); use fewer --workers (0 needs no shared memory), and continue a training "
            "with --resume"
        )
    if isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in MEMORY):
        return ResourceError(
            f"the memory is too small for this ({reason}); use a smaller --batch or a smaller "
            "--imgsz"
        )
    return None


def wrong_task(task: str, expected: str) -> WeightsError:
    """The error for weights of another task than expected.

    Args:
        task: The task of the weights; `none` for a network that `spikedet.save` wrote.
        expected: What is expected.
    """
    of = "of a network of your own, which has no task" if task == "none" else f"for {task}"
    return WeightsError(f"these weights are {of}; expected {expected}")
