"""A VOCdevkit that several tests measure on."""

import shutil

import pytest

from support.devkits import add, annotation
from support.places import BUS


@pytest.fixture
def devkit(tmp_path):
    """Two pictures, one of them of a bus, without objects."""
    add(tmp_path / "devkit", "VOC2007", "1", annotation(size=(810, 1080)), "val")
    add(tmp_path / "devkit", "VOC2007", "2", annotation(), "val")
    shutil.copy(BUS, tmp_path / "devkit/VOC2007/JPEGImages/1.jpg")
    return tmp_path / "devkit"
