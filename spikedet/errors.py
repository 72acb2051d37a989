"""Exceptions for what a user can put right: one clear sentence and an exit code each."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 2000  # characters of a sentence that a user can still read


def cut(text: object, most: int = 80) -> str:
    """Text, its middle left out where it has more than `most` characters."""
    text = str(text)
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}...{text[-(most // 2) :]} ({len(text):,} characters)"


def said(error: BaseException) -> str:
    """What an exception says in a sentence of ours.

    Of another library the first line, cut where it is long; our own are sentences already.
    """
    if isinstance(error, SpikedetError):
        return str(error)
    lines = (line.strip() for line in str(error).splitlines())
    return cut(next(filter(None, lines), type(error).__name__), 200)


def nearest(text: str, words: Iterable[str]) -> str:
    """A question after the word that was meant, or nothing."""
    known = {word.lower(): word for word in words}
    matches = difflib.get_close_matches(str(text)[:100].lower(), known, 1)
    return f" (did you mean {cut(known[matches[0]])}?)" if matches else ""


def among(text: str, words: Iterable[str]) -> str:
    """The words that there are, and a question after the one that was meant.

    Examples:
        >>> from spikedet.errors import among
        >>> among("evnts", ["torch", "events"])
        'torch, events (did you mean events?)'
    """
    words = list(words)
    return ", ".join(cut(word, 40) for word in words) + nearest(text, words)


class SpikedetError(Exception):
    """Base of all errors with a sentence meant for the user.

    The sentence names the offending value and what would be right. `commands.main.run` prints it
    and exits with `exit_code`; anything else that is raised is a bug and keeps its traceback. A
    sentence that would be longer than `LONGEST`, because it echoes what a file holds, is cut.
    """

    exit_code = 1

    def __str__(self) -> str:
        return cut(super().__str__(), LONGEST)


class UsageError(SpikedetError):
    """An argument or a combination of arguments that makes no sense."""

    exit_code = 2


class DataError(SpikedetError):
    """A data set or an annotation that is missing, damaged or contradicts itself."""

    exit_code = 3


class PictureError(DataError):
    """A picture that is missing, truncated or not a picture."""


class WeightsError(SpikedetError):
    """A weights file that is missing, damaged or of another kind."""

    exit_code = 4


class ConversionError(SpikedetError):
    """A network that holds an operation which has no spiking counterpart."""

    exit_code = 5


class TrainingError(SpikedetError):
    """A training run that cannot start, resume or go on."""

    exit_code = 6


class ResourceError(SpikedetError):
    """Memory that was too small, or a process that the system took away."""


MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "a primitive")


def plainly(error: BaseException) -> SpikedetError | None:
    """A sentence for what torch raises where the machine is too small; None for other errors."""
    reason = said(error) if str(error).strip() else "no reason given"
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
