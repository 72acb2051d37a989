"""The devkit of coloured squares, what is made on it, and an augmentation that does more."""

import albumentations
import pytest

from support.squares import devkit, sides, stages_done  # noqa: F401


@pytest.fixture
def drawing(monkeypatch):
    """Let the augmentation library, which seldom does something, do it to every other picture."""
    for kind in (albumentations.Blur, albumentations.ToGray):
        build = kind.__init__

        def often(self, *args, build=build, **options):
            build(self, *args, **{**options, "p": 0.5})

        monkeypatch.setattr(kind, "__init__", often)
