"""Write detections: annotated pictures and videos, tables, labels and crops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from spikedet.detection.boxes import Detections
from spikedet.detection.draw import draw
from spikedet.errors import PictureError, UsageError
from spikedet.files import expect_folder, expect_writable, write_atomic
from spikedet.outputs.coco import CocoResults
from spikedet.outputs.names import Names, frame_suffix, picture_suffix, safe_name, stem_of
from spikedet.outputs.text import csv_rows, csv_table, json_lines, json_list, json_text
from spikedet.outputs.video import VideoFile
from spikedet.sources import Frame

__all__ = ["Counts", "Outputs", "Save", "VideoFile", "entry_of"]


@dataclass(frozen=True)
class Save:
    """The outputs to write. Each is optional.

    Attributes:
        folder: Folder for annotated pictures and videos, `crops/` and `labels/`.
        annotated: Write annotated pictures and videos. A video keeps the frame times of its source.
        frames: Also write each frame of a video as an annotated picture.
        crops: Write a picture of each object, in one folder for each class.
        yolo: Write YOLO labels, one file for each picture, and `classes.txt`.
        json: File for a JSON list of entries (see `entry_of`).
        jsonl: File for the same entries, one on each line. It can be read while it grows.
        csv: File for a table with one row for each object.
        coco: File for results in the format of COCO's evaluation. Of several time steps it has only
            the last one, because it has one result for each picture.
        coco_annotations: File with COCO annotations. `coco` uses its picture ids and category ids.
        head: Fields to put at the start of each entry of `json` and `jsonl`.
    """

    folder: Path = Path("detections")
    annotated: bool = True
    frames: bool = False
    crops: bool = False
    yolo: bool = False
    json: Path | None = None
    jsonl: Path | None = None
    csv: Path | None = None
    coco: Path | None = None
    coco_annotations: Path | None = None
    head: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("folder", "json", "jsonl", "csv", "coco", "coco_annotations"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, Path(value))


@dataclass
class Counts:
    """Counts of what was written.

    Attributes:
        pictures: Number of single pictures.
        frames: Number of video frames.
        objects: Number of objects by class.
        files: Number of annotated pictures and videos, crops and label files.
    """

    pictures: int = 0
    frames: int = 0
    objects: Counter[str] = field(default_factory=Counter)
    files: int = 0


class Outputs:
    """Write the detections of frames, one frame after the other.

    Always close it, even after an error, so that every file is complete. It is best to use `with`.

    Args:
        save: The outputs to write.
        inputs: Files that are read (`Sources.files`). They are never overwritten.

    Attributes:
        counts: Counts of what was written so far.

    Raises:
        UsageError: A file to write is an input, is named twice or cannot be written, or `folder`
            cannot be a folder.
        DataError: The COCO annotations cannot be read.
    """

    def __init__(self, save: Save, inputs: Iterable[Path] = ()):
        self.save, self.counts = save, Counts()
        self._names = Names(inputs)
        if save.annotated or save.frames or save.crops or save.yolo:
            expect_folder(save.folder)
        for path in (save.json, save.jsonl, save.csv, save.coco):
            if path is not None:
                self._names.reserve(expect_writable(path))
        self._json = json_list(save.json) if save.json else None
        self._lines = json_lines(save.jsonl) if save.jsonl else None
        self._table = csv_table(save.csv) if save.csv else None
        self._coco = CocoResults(save.coco, save.coco_annotations) if save.coco else None
        self._videos: dict[str, VideoFile] = {}  # at most one: that of the current source
        self._classes_known = False

    def write(self, frame: Frame, detections: Detections | Sequence[Detections]) -> list[Path]:
        """Write the detections of a frame.

        Args:
            frame: The frame.
            detections: Detections of the frame, or a list of detections after different numbers of
                time steps. The files of a list are named `-t01` and so on. In a video, they share
                the time of the frame.

        Returns:
            Path of the annotated picture or video of each of the detections.

        Raises:
            PictureError: A picture cannot be written in its format.
            UsageError: An output would overwrite an input.
            OSError: The file cannot be written, for example because the disk is full. Then close
                the outputs.
        """
        several = not isinstance(detections, Detections)
        steps = [detections] if isinstance(detections, Detections) else list(detections)
        written = []
        for number, one in enumerate(steps):
            one = replace(one, picture=frame.picture, file=frame.source)
            share = _share(frame, number, len(steps))
            name = frame_suffix(frame) + (f"-t{one.T:02}" if several and one.T else "")
            annotated = self._annotate(share, one, name)
            written += [annotated] if annotated else []
            self._write_parts(frame, one, name)
            self._append_entry(frame, one, annotated)
        if self._coco is not None:
            self._coco.add(frame, steps[-1])
        self.counts.objects.update(steps[-1].classes)
        if frame.video:
            self.counts.frames += 1
        else:
            self.counts.pictures += 1
        return written

    def _annotate(self, frame: Frame, detections: Detections, name: str) -> Path | None:
        """Write the annotated picture or the video of a frame; returns its path."""
        path = None
        if self.save.annotated or self.save.frames:
            drawn = draw(detections, enlarge=True)
        if self.save.annotated and frame.video:
            video = self._video_of(frame)
            video.write(drawn, frame.time, frame.duration)
            path = video.path
        if self.save.frames if frame.video else self.save.annotated:
            end = name + picture_suffix(frame)
            file = self._names.new(self.save.folder, stem_of(frame), end)
            self._write_picture(file, drawn)
            path = path or file
        return path

    def _video_of(self, frame: Frame) -> VideoFile:
        """The open video file of the frame's source."""
        if frame.source not in self._videos:
            self._close_videos()
            path = self._names.new(self.save.folder, stem_of(frame), ".mp4")
            self._videos[frame.source] = VideoFile(path)
            self.counts.files += 1
        return self._videos[frame.source]

    def _write_parts(self, frame: Frame, detections: Detections, name: str) -> None:
        """Write the crops and the labels of a frame."""
        stem, folder = stem_of(frame), self.save.folder
        if self.save.crops:
            height, width = frame.picture.shape[:2]
            for box, label in zip(detections.boxes, detections.classes, strict=True):
                x1, y1 = np.floor(box[:2]).astype(int).clip(0)
                x2, y2 = np.ceil(box[2:]).astype(int).clip(0, (width, height))
                if x2 > x1 and y2 > y1:
                    place = folder / "crops" / (safe_name(label) or "unnamed")
                    path = self._names.new(place, stem, name + picture_suffix(frame))
                    self._write_picture(path, frame.picture[y1:y2, x1:x2])
        if self.save.yolo:
            if not self._classes_known:
                names = "".join(f"{name}\n" for name in detections.names)
                write_atomic(self._names.reserve(folder / "classes.txt"), names.encode())
                self._classes_known = True
            write_atomic(
                self._names.new(folder / "labels", stem, name + ".txt"),
                detections.to_yolo().encode(),
            )
            self.counts.files += 1

    def _write_picture(self, path: Path, picture: np.ndarray) -> None:
        try:
            done, data = cv2.imencode(path.suffix, picture)
        except cv2.error:
            done = False
        if not done:
            height, width = picture.shape[:2]
            size = f"{width} x {height} pixels"
            raise PictureError(f"{path}: {size} cannot be written as {path.suffix}")
        write_atomic(path, data.tobytes())
        self.counts.files += 1

    def _append_entry(self, frame: Frame, detections: Detections, annotated: Path | None) -> None:
        """Append the frame to the JSON and CSV files."""
        entry = entry_of(frame, detections, annotated)
        if self._json is not None:
            self._json.add(json_text({**self.save.head, **entry}))
        if self._lines is not None:
            self._lines.add(json_text({**self.save.head, **entry}) + "\n")
        if self._table is not None:
            self._table.add(csv_rows(entry))

    def _close_videos(self) -> None:
        while self._videos:
            _, video = self._videos.popitem()
            video.close()

    def close(self) -> None:
        """Finish every file.

        Raises:
            OSError: A file could not be finished. The others are finished.
        """
        files = [self._json, self._lines, self._table, self._coco]
        closers = [self._close_videos, *(file.close for file in files if file is not None)]
        failed = None
        for close in closers:
            try:
                close()
            except (OSError, UsageError) as error:
                failed = failed or error
        if failed is not None:
            raise failed

    def __enter__(self) -> Outputs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def entry_of(frame: Frame, detections: Detections, annotated: Path | None = None) -> dict[str, Any]:
    """Make the JSON entry of a frame.

    Args:
        frame: The frame.
        detections: Detections of the frame.
        annotated: Path of its annotated picture, or of the annotated video.

    Returns:
        A dict with `file` (name of the source), `frame` (number in the source, from 0 on), `time`
        (seconds in the source), `T`, `width` and `height` (pixels), `annotated` (or None), and
        `detections`: a list of dicts with `class`, `score` and `xyxy` (x1 y1 x2 y2 in pixels). With
        tracking they also have `id`, which is None if it is not known yet.
    """
    height, width = frame.picture.shape[:2]
    listed = [
        {"class": one["class"], "score": one["score"], "xyxy": one["box"]}
        | ({"id": one["id"]} if "id" in one else {})
        for one in detections.to_dict()["objects"]
    ]
    return {
        "file": frame.source, "frame": frame.index, "time": round(frame.time, 6), "T": detections.T,
        "width": width, "height": height, "annotated": annotated and str(annotated),
        "detections": listed,
    }  # fmt: skip


def _share(frame: Frame, number: int, count: int) -> Frame:
    """Give picture `number` of `count` its part of the time of a video frame."""
    if count == 1 or not frame.video:
        return frame
    duration = frame.duration or 1 / 25
    return replace(frame, time=frame.time + duration * number / count, duration=duration / count)
