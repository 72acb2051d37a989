"""Reading pictures as a viewer shows them, and finding them."""

from __future__ import annotations

import glob
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from spikedet.errors import PictureError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
MOST_PIXELS = 150_000_000


def read_picture(path: str | Path) -> np.ndarray:
    """Read a picture as a viewer shows it.

    The rotation tag is applied, transparency is laid on white, 16-bit values and numbers of 0 to 1
    are scaled to 8 bits, grey, palette and CMYK pictures become colour; of an animation the first
    frame is taken. Pillow does the reading, which says what is wrong with a file.

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
                rgb = _eight_bit_rgb(_turned(picture))
    except UnidentifiedImageError:
        what = "is empty" if path.stat().st_size == 0 else "is not a picture that can be read"
        raise PictureError(f"{path}: {what}; expected JPEG, PNG, TIFF, WebP or BMP") from None
    except Image.DecompressionBombError:
        raise PictureError(f"{path}: more pixels than {MOST_PIXELS // 1_000_000} million") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise PictureError(f"{path}: truncated or damaged picture ({error})") from None
    return np.ascontiguousarray(rgb[..., ::-1])


@contextmanager
def from_loader() -> Iterator[None]:
    """Let an error of a picture be one sentence, where a loader process sends its whole traceback.

    Raises:
        PictureError: A picture cannot be decoded.
    """
    try:
        yield
    except PictureError as error:
        sentence = str(error).rsplit(f"{PictureError.__name__}: ", 1)[-1]
        raise PictureError(sentence.strip()) from None


def shown_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height of a picture as a viewer shows it."""
    try:
        on_its_side = picture.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    except Exception:  # as of `_turned`
        on_its_side = False
    return picture.size[::-1] if on_its_side else picture.size


def _turned(picture: Image.Image) -> Image.Image:
    """A picture with its rotation tag applied, as it is where the tags are damaged."""
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # Pillow lets errors of several kinds through
        return picture


def _eight_bit_rgb(picture: Image.Image) -> np.ndarray:
    """[H, W, 3] uint8 RGB of any Pillow mode."""
    if picture.mode in {"I;16", "I;16B", "I;16L", "I", "F"}:
        values = np.nan_to_num(np.asarray(picture).astype(np.float64))
        tops = (1, 255) if picture.mode == "F" else ()
        top = next((top for top in tops if values.max(initial=0) <= top), 65535)
        grey = np.clip(values * (255 / top) + 0.5, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if picture.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in picture.info:
        coloured = picture.convert("RGBA")
        white = Image.new("RGBA", coloured.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, coloured)
    return np.asarray(picture.convert("RGB"))


def as_picture(source: str | Path | np.ndarray) -> np.ndarray:
    """[H, W, 3] uint8 BGR of a path or an array.

    Raises:
        PictureError: A picture that cannot be read, or an array that is no picture.
    """
    if not isinstance(source, np.ndarray):
        return read_picture(source)
    if source.ndim == 2:
        source = np.repeat(source[..., None], 3, axis=2)
    if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or source.size == 0:
        raise PictureError(
            f"array of shape {source.shape} and type {source.dtype}; "
            "expected [H, W, 3] uint8 in BGR order, or [H, W] grey"
        )
    return source


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
            matches = map(Path, sorted(glob.glob(source, recursive=True)))
            files = [path for path in matches if path.is_file()]
            if not files:
                errors.append(PictureError(f"{source}: no file matches this pattern"))
            found.update(dict.fromkeys(files))
    return list(found), errors
