"""Reliability: how often answers with a given score are right."""

from __future__ import annotations

from typing import Any

import numpy as np

BINS = 10


def reliability(scores: np.ndarray, right: np.ndarray, bins: int = BINS) -> list[dict[str, Any]]:
    """Compute how often answers are right, by their scores.

    Args:
        scores: [N], 0..1.
        right: [N] bool, whether each answer is right.
        bins: Number of bins of equal width.

    Returns:
        One row for each bin: `low`, `high`, `count`, the mean `score`, and the share `right` of
        right answers. The last two are None if the bin is empty.
    """
    place = np.minimum((scores * bins).astype(int), bins - 1)
    rows = []
    for number in range(bins):
        own = place == number
        count = int(own.sum())
        rows.append(
            {
                "low": number / bins,
                "high": (number + 1) / bins,
                "count": count,
                "score": float(scores[own].mean()) if count else None,
                "right": float(right[own].mean()) if count else None,
            }
        )
    return rows
