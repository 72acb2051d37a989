"""Number the objects of a video, with ByteTrack of the package `trackers`."""

from __future__ import annotations

import numpy as np

from spikedet.detection.boxes import Detections
from spikedet.errors import UsageError

LOW = 0.1  # lowest confidence at which a known object is tracked further


class Tracker:
    """ByteTrack (Zhang et al., ECCV 2022) for the frames of one video.

    A track predicts the box of its object from the motion. First, boxes above `conf` are matched to
    the tracks. Then boxes with lower scores are matched, so that an object that is hidden for a
    moment keeps its number.

    Args:
        conf: Smallest confidence of a box that starts a track.
        patience: Seconds after which an object that is not seen is dropped.

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
        """Number the detections of the next frame.

        Args:
            detections: Detections of the frame, with confidences of `LOW` and more.
            time: Time of the frame in seconds. It is later than that of the previous frame.

        Returns:
            The detections with a confidence of `conf` and more, and weaker ones of known objects.
            `ids` counts from 1. It is 0 for an object that was seen in only one frame so far.
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
