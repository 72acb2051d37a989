"""Annotated pictures of detectors: what tells them from others, and those kept aside."""

from __future__ import annotations

import hashlib
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
from spikedet.errors import DataError
from spikedet.files import read_lines

TUNING_EVERY = 20  # every so-manieth picture is kept aside where no list says which


def trained_on(samples: Sequence[Sample]) -> int:
    """How many of the samples the released detectors were trained on, or chosen by."""
    known = {
        f"{path.name.split('-')[0]}/{number}"
        for path in SPLITS.glob("*-spikedet-train.txt")
        for number in read_lines(path)
    }
    return sum(sample.id in known for sample in samples)


def fingerprint(samples: Sequence[Sample]) -> str:
    """Twelve hexadecimal digits of ids, annotations and sizes of the picture files.

    And of class names that are not VOC's, crowds and areas, where there are any.
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
    """Sample ids of a committed list, one `VOC2007/000005` a line, `#` starts a comment.

    Raises:
        DataError: No such list, or not text.
    """
    lines = read_lines(path, "list of tuning pictures")
    return [entry for line in lines if (entry := line.split("#")[0].strip())]


def split_off_tuning(samples: list[Sample], tuning: Path) -> tuple[list[Sample], list[Sample]]:
    """Separate the tuning pictures from the ones to train on.

    Where the list is ours, which names pictures of VOC 2007, and none of them is among the samples,
    every 20th picture is kept aside, the last one of fewer.

    Raises:
        DataError: Nothing is left on one of the sides.
    """
    ids = set(tuning_ids(tuning))
    if Path(tuning) == TUNING and not any(sample.id in ids for sample in samples):
        last = samples[-1:] if len(samples) < TUNING_EVERY else []
        ids = {sample.id for sample in samples[TUNING_EVERY - 1 :: TUNING_EVERY] + last}
    train = [sample for sample in samples if sample.id not in ids]
    tune = [sample for sample in samples if sample.id in ids]
    if not train or not tune:
        raise DataError(
            f"{tuning}: {len(tune)} of the {len(samples)} pictures are tuning pictures; "
            "expected some, but not all"
        )
    return train, tune


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
