"""Import ultralytics without its side effects. Other modules import it only from here.

torch is imported first, because the other order leaves only one CPU thread. Ultralytics then does
not read or write the user's settings folder. It does not install, download or report anything.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image

from spikedet.errors import UsageError, WeightsError, message_of

os.environ["YOLO_AUTOINSTALL"] = "false"
os.environ["YOLO_OFFLINE"] = "true"
os.environ["ULTRALYTICS_SAFE_LOAD"] = "true"  # a description is data: its text is never evaluated
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ.setdefault("YOLO_VERBOSE", "false")
_settings = tempfile.TemporaryDirectory(prefix="spikedet-")  # only this user may enter it
os.environ["YOLO_CONFIG_DIR"] = _settings.name
_threads = torch.get_num_threads()
_open = Image.open

try:
    from ultralytics import utils
except ModuleNotFoundError as error:  # of ultralytics, or of what it needs itself
    raise UsageError(
        f"detectors need {error.name}, which is not installed here: pip install ultralytics"
    ) from None
from ultralytics.utils import SETTINGS, tqdm  # noqa: E402

torch.set_num_threads(_threads)
Image.open = _open  # that of ultralytics installs a plug-in for every file that is not a picture
SETTINGS.update(sync=False)

from ultralytics.cfg import get_cfg as training_options  # noqa: E402
from ultralytics.data.dataset import YOLODataset  # noqa: E402
from ultralytics.models.yolo import YOLO  # noqa: E402
from ultralytics.models.yolo.detect import DetectionTrainer  # noqa: E402
from ultralytics.nn.modules import Conv, Detect  # noqa: E402
from ultralytics.nn.tasks import DetectionModel  # noqa: E402
from ultralytics.utils.loss import v8DetectionLoss as DetectionLoss  # noqa: E402
from ultralytics.utils.tal import TaskAlignedAssigner, make_anchors  # noqa: E402

SAMPLE = utils.ASSETS / "bus.jpg"  # a street picture that comes with ultralytics


def stock_description(name: str) -> tuple[Path, str | None] | None:
    """Find a network description of ultralytics.

    Args:
        name: File name, with or without the letter of a scale: yolov8.yaml, yolov8n.yaml.

    Returns:
        The file, and the scale in the name. None if there is no such description.
    """
    folder = utils.ROOT / "cfg/models"
    scaled = re.fullmatch(r"(yolov?\d+)([nslmx])(.*)", name)
    tries = [(name, None)] + ([(scaled[1] + scaled[3], scaled[2])] if scaled else [])
    for file, scale in tries:
        for path in folder.rglob("*.yaml"):
            if path.name == file:
                return path, scale
    return None


def foreign_detector(path: Path) -> YOLO:
    """Load a detector that ultralytics can read: a .pt file (read safely), or an exported one.

    Raises:
        WeightsError: The file is missing, cannot be read, or is not a detector.
    """
    path = Path(path)
    if not path.exists():  # by its name alone ultralytics would look for it elsewhere
        raise WeightsError(f"{path}: no such weights")
    try:
        detector = YOLO(str(path.resolve()), task="detect")
        names = detector.names  # which loads an exported form
    except Exception as error:  # whatever its bytes make of the reader
        raise WeightsError(
            f"{path}: not a detector that ultralytics can read ({message_of(error)})"
        ) from None
    if detector.task != "detect" or not names:
        raise WeightsError(f"{path}: a network for {detector.task!r}; expected a detector")
    return detector


class _Words(logging.Filter):
    """Removes lists of all options from the log (see `args.yaml`), and colours if not wanted."""

    LISTS = ("engine/trainer: ", "albumentations: ")

    def filter(self, record: logging.LogRecord) -> bool:
        plain = re.sub(r"\x1b\[[0-9;]*[mK]", "", record.getMessage())
        if os.environ.get("NO_COLOR") or not sys.stdout.isatty():
            record.msg, record.args = plain, ()
        return not plain.startswith(self.LISTS)


def show_progress() -> None:
    """Let ultralytics print its progress bars and the numbers of each epoch.

    Without a terminal, a bar is one plain line at its end.
    """
    utils.VERBOSE = True
    for part in (utils.LOGGER, *utils.LOGGER.handlers):
        part.setLevel(logging.INFO)
    if not any(isinstance(each, _Words) for each in utils.LOGGER.filters):
        utils.LOGGER.addFilter(_Words())
    tqdm.is_noninteractive_console = lambda: not sys.stdout.isatty()


__all__ = [
    "SAMPLE",
    "Conv",
    "Detect",
    "DetectionLoss",
    "DetectionModel",
    "DetectionTrainer",
    "TaskAlignedAssigner",
    "YOLODataset",
    "foreign_detector",
    "make_anchors",
    "show_progress",
    "stock_description",
    "training_options",
]
