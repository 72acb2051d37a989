"""Folders of the clone, and a picture that comes with ultralytics."""

from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUS = Path(find_spec("ultralytics").origin).parent / "assets" / "bus.jpg"
