"""Reading pictures as a viewer shows them, finding them, and fitting them to a network's input."""

from __future__ import annotations

import glob
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from spikedet.errors import PictureError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
MOST_PIXELS = 150_000_000
GREY = 114  # ultralytics' padding


def read_picture(path: str | Path) -> np.ndarray:
    """Read a picture as a viewer shows it.

    The rotation tag is applied, transparency is laid on white, 16-bit values are scaled to 8, grey,
    palette and CMYK pictures become colour; of an animation the first frame is taken. Pillow does
    the reading because OpenCV returns a truncated JPEG with grey rows and no error.

    Args:
        path: The file.

    Returns:
        [H, W, 3] uint8, BGR.

    Raises:
        PictureError: Missing, empty, truncated, not a picture, or larger than 150 megapixels.
    """
    path = Path(path)
    if not path.exists():
        raise PictureError(f"{path}: no such picture")
    if path.is_dir():
        raise PictureError(f"{path}: is a folder; expected a picture file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large pictures; the limit is ours
            with Image.open(path) as picture:
                if picture.width * picture.height > MOST_PIXELS:
                    raise PictureError(
                        f"{path}: {picture.width} x {picture.height} pixels are too many; "
                        f"expected at most {MOST_PIXELS // 1_000_000} million"
                    )
                picture.load()
                rgb = _eight_bit_rgb(ImageOps.exif_transpose(picture), path)
    except UnidentifiedImageError:
        what = "is empty" if path.stat().st_size == 0 else "is not a picture that can be read"
        raise PictureError(f"{path}: {what}; expected JPEG, PNG, TIFF, WebP or BMP") from None
    except Image.DecompressionBombError:
        raise PictureError(f"{path}: more pixels than {MOST_PIXELS // 1_000_000} million") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise PictureError(f"{path}: truncated or damaged picture ({error})") from None
    return np.ascontiguousarray(rgb[..., ::-1])


def _eight_bit_rgb(picture: Image.Image, path: Path) -> np.ndarray:
    """[H, W, 3] uint8 RGB of any Pillow mode."""
    if picture.mode in {"I;16", "I;16B", "I;16L", "I", "F"}:
        values = np.asarray(picture).astype(np.float64)
        top = 255 if picture.mode == "F" and values.max(initial=0) <= 255 else 65535
        grey = np.clip(values * (255 / top) + 0.5, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if picture.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in picture.info:
        coloured = picture.convert("RGBA")
        white = Image.new("RGBA", coloured.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, coloured)
    return np.asarray(picture.convert("RGB"))


def find_pictures(sources: Sequence[str]) -> tuple[list[Path], list[PictureError]]:
    """Files behind the arguments of a command.

    Args:
        sources: Each a file, a folder (its pictures by name, not those of sub-folders) or a glob
            pattern. A file that exists is a file, whatever characters its name has.

    Returns:
        Paths, each once, in order; and one error for each source that gave nothing.
    """
    found: dict[Path, None] = {}
    errors = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            if not inside:
                errors.append(PictureError(f"{source}: no pictures in this folder"))
            found.update(dict.fromkeys(inside))
        elif path.exists() or not glob.has_magic(source):
            found[path] = None
        else:
            matches = sorted(Path(p) for p in glob.glob(source, recursive=True))
            if not matches:
                errors.append(PictureError(f"{source}: no file matches this pattern"))
            found.update(dict.fromkeys(p for p in matches if p.is_file()))
    return list(found), errors


@dataclass(frozen=True)
class Letterbox:
    """How a picture was fitted into a square: scaled, then padded.

    Attributes:
        scale_x, scale_y: Network pixels per picture pixel.
        pad_x, pad_y: Padding at the left and at the top, in network pixels.
        width, height: The picture, in its own pixels.
    """

    scale_x: float
    scale_y: float
    pad_x: int
    pad_y: int
    width: int
    height: int

    def to_original(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes [N, 4] x1 y1 x2 y2 in network pixels -> picture pixels, clipped to the picture."""
        scale = np.array([self.scale_x, self.scale_y] * 2)
        pad = np.array([self.pad_x, self.pad_y] * 2)
        limit = np.array([self.width, self.height] * 2)
        moved = (np.asarray(boxes, np.float64).reshape(-1, 4) - pad) / scale
        return np.clip(moved, 0, limit).astype(np.float32)


def letterbox(picture: np.ndarray, side: int) -> tuple[Tensor, Letterbox]:
    """Fit a picture into a square, keeping its aspect ratio, centred on grey.

    Args:
        picture: [H, W, 3] uint8 BGR.
        side: Side of the square in pixels.

    Returns:
        [3, side, side] float32 RGB in 0..1, and how it was fitted.
    """
    height, width = picture.shape[:2]
    scale = min(side / height, side / width)
    new_width, new_height = max(1, round(width * scale)), max(1, round(height * scale))
    if (new_height, new_width) != (height, width):
        picture = cv2.resize(picture, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
    left = round((side - new_width) / 2 - 0.1)
    top = round((side - new_height) / 2 - 0.1)
    square = np.full((side, side, 3), GREY, np.uint8)
    square[top : top + new_height, left : left + new_width] = picture
    tensor = torch.from_numpy(square[..., ::-1].copy()).permute(2, 0, 1).float() / 255
    fitted = Letterbox(new_width / width, new_height / height, left, top, width, height)
    return tensor, fitted
