"""Whether scores are what they say: how often answers of each score are right."""

from __future__ import annotations

from typing import Any

import numpy as np

BINS = 10


def reliability(scores: np.ndarray, right: np.ndarray, bins: int = BINS) -> list[dict[str, Any]]:
    """How often answers are right, by their scores.

    Args:
        scores: [N] in 0..1.
        right: [N] bool.
        bins: Of equal width.

    Returns:
        Of each bin `low`, `high`, `count`, the mean `score`, and the share that is `right`, both
        None without answers.
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
