"""Annotated pictures of detectors: their fingerprint, and the tuning pictures."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

from spikedet.data.cache import cache_folder
from spikedet.data.formats.voc import (
    SPLITS,
    VOC_CLASSES,
    is_copy_of_2007,
    parse_splits,
    read_annotation,
    read_ids,
    read_voc,
)
from spikedet.data.samples import Sample, areas_of
from spikedet.detection.defaults import TUNING
from spikedet.errors import DataError, shorten
from spikedet.files import read_lines
from spikedet.pictures import is_picture

log = logging.getLogger(__name__)
TUNING_EVERY = 20  # without a list, every 20th picture is a tuning picture


def trained_on(samples: Sequence[Sample]) -> int:
    """The number of samples that the training or the choice of the released detectors used."""
    known = {
        f"{path.name.split('-')[0]}/{number}"
        for path in SPLITS.glob("*-spikedet-train.txt")
        for number in read_lines(path)
    }
    return sum(sample.id in known for sample in samples)


def fingerprint(samples: Sequence[Sample]) -> str:
    """A hash (12 hexadecimal digits) of the ids, the annotations and the sizes of the files.

    It also depends on class names that are not VOC's, on crowds and on areas, if there are any.
    """
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(f"{sample.id} {sample.path.stat().st_size}\n".encode())
        for values in (sample.boxes, sample.labels, sample.difficult):
            digest.update(values.tobytes())
        if sample.crowd.any() or (sample.areas != areas_of(sample.boxes)).any():
            digest.update(sample.crowd.tobytes() + sample.areas.tobytes())
    names = {sample.names for sample in samples} - {(), VOC_CLASSES}
    digest.update("".join("\n".join(each) for each in sorted(names)).encode())
    return digest.hexdigest()[:12]


def tuning_ids(path: Path) -> list[str]:
    """Read a list of sample ids: one on each line, such as `VOC2007/000005`; `#` starts a comment.

    The name of a picture file is also right: its suffix is left out.

    Raises:
        DataError: The file is missing or is not a text file.
    """
    lines = read_lines(path, "list of tuning pictures")
    entries = [entry for line in lines if (entry := line.split("#")[0].strip())]
    return [str(Path(e).with_suffix("")) if is_picture(Path(e)) else e for e in entries]


def split_off_tuning(samples: list[Sample], tuning: Path) -> tuple[list[Sample], list[Sample]]:
    """Split samples into training samples and tuning samples.

    If `tuning` is the list of this package (pictures of VOC 2007), and the samples have none of
    these pictures, every 20th sample is a tuning sample. With fewer than 20, it is the last sample.

    A warning counts the lines of another list that name none of the samples.

    Raises:
        DataError: There are no training samples or no tuning samples.
    """
    ids = set(tuning_ids(tuning))
    own = Path(tuning) != TUNING
    if len(samples) == 1 and not own:
        raise DataError("1 picture is too few to train with: one is kept for choices")
    if own:
        _warn_of_unknown(tuning, ids, samples)
    elif not any(sample.id in ids for sample in samples):
        last = samples[-1:] if len(samples) < TUNING_EVERY else []
        ids = {sample.id for sample in samples[TUNING_EVERY - 1 :: TUNING_EVERY] + last}
    train = [sample for sample in samples if sample.id not in ids]
    tune = [sample for sample in samples if sample.id in ids]
    if not train or not tune:
        raise DataError(
            f"{tuning}: {len(tune)} of the {len(samples)} pictures are tuning pictures; "
            f"expected some, but not all; a line is for example {samples[0].id}"
        )
    return train, tune


def _warn_of_unknown(tuning: Path, ids: set[str], samples: list[Sample]) -> None:
    """Warn if a list of tuning pictures names others than the samples."""
    if unknown := sorted(ids - {sample.id for sample in samples}):
        log.warning(
            "%s: %d of %d lines name no picture of the data, for example %s; a line is for "
            "example %s",
            tuning, len(unknown), len(ids), shorten(unknown[0]), samples[0].id,
        )  # fmt: skip


__all__ = [
    "SPLITS",
    "VOC_CLASSES",
    "Sample",
    "cache_folder",
    "fingerprint",
    "is_copy_of_2007",
    "parse_splits",
    "read_annotation",
    "read_ids",
    "read_voc",
    "split_off_tuning",
    "trained_on",
    "tuning_ids",
]
