"""Read pictures as a viewer shows them."""

from __future__ import annotations

import functools
import os
import struct
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from spikedet.errors import PictureError, message_of

HEIC = {".heic", ".heif", ".hif"}
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
SUFFIXES |= {".avif", ".jp2", ".j2k", ".jpx"}
# Largest picture: those of telephones have 108 million. Reading it takes 2 GB of memory, 3 with
# transparency.
MOST_PIXELS = 120_000_000
# What undoes each rotation tag.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow lets through of files that are cut or damaged.
_DAMAGED: tuple[type[Exception], ...] = (OSError, SyntaxError, ValueError, EOFError, LookupError)
_DAMAGED += (TypeError, RuntimeError, ArithmeticError, AssertionError, struct.error)
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
CONVERT = "install pillow-heif, or convert them to JPEG"

# Formats of Pillow that are read. Others are refused whatever a file is named: Pillow would give
# EPS to another program, for example.
FORMATS = {"AVIF", "BMP", "DDS", "DIB", "FLI", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "PCX"}
FORMATS |= {"PNG", "PPM", "PSD", "QOI", "SGI", "SUN", "TGA", "TIFF", "WEBP", "XBM", "XPM"}
# Formats whose files are animations, and not several pictures in one file.
ANIMATIONS = {"GIF", "WEBP", "PNG", "AVIF", "FLI"}
FRAME_SECONDS = 0.1  # of a frame that does not say how long it is shown, as browsers have it


Source: TypeAlias = str | Path | np.ndarray | Image.Image
SOURCES = (str, Path, np.ndarray, Image.Image)


class UnknownFormat(PictureError):
    """The file is not a picture in a readable format."""


class Part(NamedTuple):
    """One of the pictures in a file.

    Attributes:
        picture: [H, W, 3] uint8 BGR.
        seconds: Seconds for which an animation shows it. None if the file is not an animation.
        total: Number of pictures in the file.
    """

    picture: np.ndarray
    seconds: float | None
    total: int


class Header(NamedTuple):
    """The properties of a picture that are known before it is decoded.

    Attributes:
        width, height: Size in pixels, as a viewer shows the picture.
        turn: Rotation tag (EXIF orientation), 1 to 8. From 5 on, the stored width and height are
            swapped.
    """

    width: int
    height: int
    turn: int

    @property
    def stored(self) -> tuple[int, int]:
        """Width and height of the stored pixels."""
        size = self.width, self.height
        return size[::-1] if self.turn >= 5 else size


@functools.cache
def reads_heic() -> bool:
    """Whether HEIC pictures can be read. This needs pillow-heif."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


@functools.cache
def formats() -> tuple[str, ...]:
    """The formats that are read and that the installed libraries decode, as Pillow names them."""
    reads_heic()  # whatever a telephone's picture was named later
    Image.init()
    return tuple(kind for kind in Image.ID if kind in FORMATS)


def is_picture(path: Path) -> bool:
    """Whether the name of a file is that of a readable picture."""
    suffix = path.suffix.lower()
    return suffix in SUFFIXES or (suffix in HEIC and reads_heic())


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture file and check its size. Its pixels are not decoded yet.

    Raises:
        PictureError: See `read_picture`. Also raised for errors of Pillow inside the `with` block.
    """
    if not os.path.exists(path):  # which raises of no name, however long or odd
        problem = "a link that leads nowhere" if os.path.islink(path) else "no such picture"
        raise PictureError(f"{path}: {problem}")
    if path.is_dir():
        raise PictureError(f"{path}: is a folder; expected a picture file")
    if not path.is_file():  # a pipe would wait for somebody to write into it
        raise PictureError(f"{path}: is a pipe or a device; expected a picture file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large pictures; the limit is ours
            with Image.open(path, formats=formats()) as picture:
                if picture.width * picture.height > MOST_PIXELS:
                    raise PictureError(
                        f"{path}: {picture.width} x {picture.height} pixels are too many; "
                        f"expected at most {MOST_PIXELS // 1_000_000} million"
                    )
                yield picture
    except UnidentifiedImageError:
        raise UnknownFormat(f"{path}: {_what_else(path)}") from None
    except Image.DecompressionBombError:
        raise PictureError(f"{path}: more pixels than {MOST_PIXELS // 1_000_000} million") from None
    except MemoryError:
        raise PictureError(f"{path}: does not fit into memory") from None
    except _DAMAGED as error:
        raise PictureError(f"{path}: truncated or damaged picture ({message_of(error)})") from None


def _what_else(path: Path) -> str:
    """Describe a file that Pillow does not recognise."""
    with path.open("rb") as file:
        start = file.read(12)
    if start[4:8] == b"ftyp" and start[8:] in _HEIC_BRANDS:
        return f"HEIC pictures cannot be read; {CONVERT}"
    problem = "is not a picture that can be read" if start else "is empty"
    return f"{problem}; expected JPEG, PNG, TIFF, WebP, AVIF, JPEG 2000 or BMP"


def is_jpeg(path: str | Path) -> bool:
    """Whether a file begins like a JPEG file. False if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(3) == b"\xff\xd8\xff"
    except OSError:
        return False


def read_header(path: str | Path) -> Header:
    """Read the size and the rotation of a picture, without decoding it.

    Raises:
        PictureError: The file is missing, not a picture, or larger than 120 megapixels. A file that
            is cut short after its header is not noticed.
    """
    path = Path(path)
    with _opened(path) as picture:
        turn = _turn_of(picture, path)
        width, height = picture.size
        swapped = turn >= 5 and picture.format != "TIFF"  # whose size Pillow has turned already
    return Header(height, width, turn) if swapped else Header(width, height, turn)


def _turn_of(picture: Image.Image, path: Path) -> int:
    """The rotation tag of a picture. 1 if there is none, or if it is not readable."""
    try:
        if picture.format == "PNG" and "exif" not in picture.info and not _has_late_tags(path):
            tags = Image.Image.getexif(picture)  # that of PNG decodes it to look behind the pixels
        else:
            tags = picture.getexif()
        turn = tags.get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow lets errors of several kinds through
        return 1
    return turn if turn in range(1, 9) else 1


def _has_late_tags(path: Path) -> bool:
    """Whether a PNG has tags after its pixels. Some programs write them there."""
    behind = False
    with path.open("rb") as file:
        file.seek(8)
        while len(start := file.read(8)) == 8:
            size, kind = struct.unpack(">I4s", start)
            behind |= kind == b"IDAT"
            if behind and kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
                return True
            file.seek(size + 4, os.SEEK_CUR)
    return False


def read_picture(path: str | Path) -> np.ndarray:
    """Read a picture as a viewer shows it.

    The rotation tag is applied. Transparent pixels become white. Grey, palette and CMYK pictures
    are converted to colour. 16-bit values, and values from 0 to 1, are scaled to 8 bits. If all
    values of a 16-bit picture fit into 12 bits, they are scaled from 12 bits. For an animation, it
    is the first frame (see `read_parts`). Pillow reads the file.

    Args:
        path: The file.

    Returns:
        [H, W, 3] uint8, BGR.

    Raises:
        PictureError: The file is missing, empty, truncated, not a picture, or larger than 120
            megapixels.
    """
    path = Path(path)
    with _opened(path) as picture:
        return _bgr(picture, path)


def _bgr(picture: Image.Image, path: Path) -> np.ndarray:
    """Convert an opened picture to [H, W, 3] uint8 BGR."""
    deep = picture.mode == "RGB" and ";16" in str(getattr(picture, "tile", ""))
    picture.load()
    turn = _turn_of(picture, path)
    rgb = _eight_bit_rgb(picture.transpose(TURNS[turn]) if turn > 1 else picture)
    if deep and rgb.max(initial=0) <= 15 and (bright := _of_twelve_bits(path, turn)) is not None:
        return bright
    return np.ascontiguousarray(rgb[..., ::-1])


def _of_pillow(picture: Image.Image) -> np.ndarray:
    """Convert a Pillow image to [H, W, 3] uint8 BGR. Its rotation tag is applied."""
    if not picture.width or not picture.height:
        raise PictureError("the Pillow image is empty")
    try:
        picture.load()
        turned = ImageOps.exif_transpose(picture)
    except _DAMAGED as error:
        raise PictureError(f"the Pillow image cannot be read ({message_of(error)})") from None
    return np.ascontiguousarray(_eight_bit_rgb(turned)[..., ::-1])


def _of_twelve_bits(path: Path, turn: int) -> np.ndarray | None:
    """Read a 16-bit colour picture with 12-bit values. Pillow would keep only 4 bits of them."""
    import cv2

    data = np.frombuffer(path.read_bytes(), np.uint8)
    as_stored = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    values = cv2.imdecode(data, as_stored)
    if values is None or values.dtype != np.uint16 or values.max(initial=0) > 4095:
        return None
    eight = Image.fromarray((values * (255 / 4095) + 0.5).astype(np.uint8))
    return np.ascontiguousarray(eight.transpose(TURNS[turn]) if turn > 1 else eight)


def read_parts(path: str | Path) -> Iterator[Part]:
    """Read every picture of a file.

    These are the frames of an animation, the pages of a TIFF, or the only picture.

    Each is read like in `read_picture`. Smaller copies of a page in a TIFF are left out.

    Args:
        path: The file.

    Returns:
        An iterator that reads each picture when it is needed.

    Raises:
        PictureError: See `read_picture`. If a file is cut short, it is raised after the last
            readable picture.
    """
    path = Path(path)
    with _opened(path) as picture:
        animated = picture.format in ANIMATIONS and getattr(picture, "is_animated", False)
        paged = picture.format == "TIFF" and getattr(picture, "n_frames", 1) > 1
        count = getattr(picture, "n_frames", 1) if animated or paged else 1
        first = int(animated and getattr(picture, "default_image", False))  # stands for the rest
        read = 0
        for number in range(first, count):
            if animated or paged:
                picture.seek(number)
            if picture.width * picture.height > MOST_PIXELS:
                raise PictureError(f"{path}: more pixels than {MOST_PIXELS // 1_000_000} million")
            if paged and number and getattr(picture, "tag_v2", {}).get(254, 0) & 1:
                continue
            bgr = _bgr(picture, path)
            seconds = (picture.info.get("duration") or 0) / 1000 or FRAME_SECONDS
            yield Part(bgr, seconds if animated else None, count - first)
            read += 1
        if picture.format == "GIF" and not _has_trailer(path):
            raise PictureError(f"{path}: is cut short; {read} of its frames can be read")


def _has_trailer(path: Path) -> bool:
    """Whether a GIF ends with its trailer byte, so that it is complete."""
    with path.open("rb") as file:
        file.seek(max(0, os.path.getsize(path) - 4096))
        return file.read().rstrip(b"\0\r\n ").endswith(b";")


@contextmanager
def from_loader() -> Iterator[None]:
    """Shorten the picture errors of loader processes to one sentence, without the traceback.

    Raises:
        PictureError: A picture cannot be decoded.
    """
    try:
        yield
    except PictureError as error:
        sentence = str(error.args[0]).rsplit(f"{PictureError.__name__}: ", 1)[-1]
        raise PictureError(sentence.strip()) from None


def _eight_bit_rgb(picture: Image.Image) -> np.ndarray:
    """Convert a Pillow image of any mode to [H, W, 3] uint8 RGB."""
    if picture.mode in {"I;16", "I;16B", "I;16L", "I", "F"}:
        values = np.asarray(picture)
        tops = (1, 255) if picture.mode == "F" else (4095,)
        top = next((top for top in tops if np.nanmax(values, initial=0) <= top), 65535)
        grey = np.empty(values.shape, np.uint8)
        for row in range(0, len(values), 256):  # all at once is eight times its memory
            part = np.nan_to_num(values[row : row + 256].astype(np.float64))
            grey[row : row + 256] = np.clip(part * (255 / top) + 0.5, 0, 255)
        return np.repeat(grey[..., None], 3, axis=2)
    if picture.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in picture.info:
        coloured = picture.convert("RGBA")
        white = Image.new("RGBA", coloured.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, coloured)
    return np.asarray(picture.convert("RGB"))


def as_pictures(sources: Any) -> tuple[list[Source], bool]:
    """The pictures that a predictor is called with, and whether it is a single one.

    Raises:
        PictureError: It is neither a picture nor a list of pictures.
    """
    if isinstance(sources, SOURCES):
        return [sources], True
    if isinstance(sources, Iterable) and not isinstance(sources, bytes | dict | set):
        listed = list(sources)
        others = [source for source in listed if not isinstance(source, SOURCES)]
        if not others:
            return listed, False
        sources = others[0]
    raise PictureError(
        f"{type(sources).__module__}.{type(sources).__qualname__} is not a picture; expected a "
        "path, an array [H, W, 3] uint8 in BGR order, a Pillow image, or a list of these"
    )


def as_picture(source: Source) -> np.ndarray:
    """Convert a path, an array or a Pillow image to a picture, [H, W, 3] uint8 BGR.

    Raises:
        PictureError: The picture cannot be read, or the source is not a picture.
    """
    if isinstance(source, Image.Image):
        return _of_pillow(source)
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
