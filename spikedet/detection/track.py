"""The same number for the same object in all frames of a video: ByteTrack, by `trackers`."""

from __future__ import annotations

import numpy as np

from spikedet.detection.boxes import Detections
from spikedet.errors import UsageError

LOW = 0.1  # confidence down to which a known object is followed


class Tracker:
    """ByteTrack (Zhang et al., ECCV 2022) over the frames of one video.

    Boxes are joined to the tracks whose motion predicts them, those above `conf` first; then the
    weaker ones, so that an object that is hidden for a moment keeps its number.

    Args:
        conf: Confidence from which a box begins a track.
        patience: Seconds after which an object that is not seen is forgotten.

    Raises:
        UsageError: The package `trackers` is not installed.
    """

    def __init__(self, conf: float = 0.25, patience: float = 1.0):
        try:
            from trackers import ByteTrackTracker
        except ImportError:
            raise UsageError("tracking needs the package trackers; pip install trackers") from None
        self.conf = conf
        self._tracker = ByteTrackTracker(
            lost_track_buffer=round(30 * patience),  # it counts frames of 1/30 s
            track_activation_threshold=conf,
            high_conf_det_threshold=conf,
            minimum_consecutive_frames=2,
        )

    def update(self, detections: Detections, time: float) -> Detections:
        """The detections of the next frame, with their numbers.

        Args:
            detections: Of the frame, also weak ones: from `LOW` on.
            time: Of the frame, in seconds; later than that of the one before.

        Returns:
            Those from `conf` on, and weaker ones of known objects; `ids` counts from 1, 0 is
            of an object that was seen in one frame only so far.
        """
        import supervision

        boxes = supervision.Detections(
            xyxy=detections.boxes.reshape(-1, 4).astype(np.float32),
            confidence=detections.scores.astype(np.float32),
            class_id=detections.labels.astype(int),
            data={"number": np.arange(len(detections))},
        )
        tracked = self._tracker.update(boxes, timestamp=time)
        ids = np.zeros(len(detections), np.int64)
        if len(tracked):
            ids[tracked.data["number"]] = np.asarray(tracked.tracker_id) + 1
        detections = Detections(**{**vars(detections), "ids": ids})
        return detections.some((detections.scores >= self.conf) | (ids > 0))
