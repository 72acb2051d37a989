"""Pictures of every kind come out as a viewer shows them; the rest is refused by name."""

import os

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps, features

import spikedet.detection.ultra  # noqa: F401  before ultralytics itself
from spikedet.detection.letterbox import letterbox
from spikedet.errors import PictureError
from spikedet.picture_files import find_pictures
from spikedet.pictures import read_header, read_picture
from support.pictures import write_png


@pytest.fixture
def halves():
    """[40, 60, 3] RGB: left half orange, right half blue."""
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[:, :30], picture[:, 30:] = (250, 120, 10), (10, 60, 240)
    return picture


def near(bgr, rgb, tolerance=12):
    return np.abs(np.asarray(bgr, int)[::-1] - np.asarray(rgb, int)).max() <= tolerance


def test_colour(tmp_path, halves):
    Image.fromarray(halves).save(tmp_path / "a.png")
    assert np.array_equal(read_picture(tmp_path / "a.png"), halves[..., ::-1])


def test_grey_has_three_equal_channels(tmp_path, halves):
    Image.fromarray(halves).convert("L").save(tmp_path / "a.jpg")
    picture = read_picture(tmp_path / "a.jpg")
    assert picture.shape == (40, 60, 3)
    assert np.array_equal(picture[..., 0], picture[..., 2])


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_grey_is_scaled(tmp_path, suffix):
    values = np.linspace(0, 65535, 40 * 60).reshape(40, 60).astype(np.uint16)
    cv2.imwrite(str(tmp_path / f"a{suffix}"), values)
    picture = read_picture(tmp_path / f"a{suffix}")
    assert np.abs(picture[..., 1].astype(float) - values / 257).max() <= 1


def test_sixteen_bit_colour_is_scaled(tmp_path, halves):
    cv2.imwrite(str(tmp_path / "a.png"), halves[..., ::-1].astype(np.uint16) * 257)
    assert np.abs(read_picture(tmp_path / "a.png").astype(int) - halves[..., ::-1]).max() <= 1


def test_transparency_is_laid_on_white(tmp_path, halves):
    alpha = np.full((40, 60, 1), 255, np.uint8)
    alpha[:, :30] = 0
    Image.fromarray(np.concatenate([halves, alpha], 2)).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    assert near(picture[5, 5], (255, 255, 255)) and near(picture[5, 55], (10, 60, 240))


def test_palette(tmp_path, halves):
    Image.fromarray(halves).convert("P").save(tmp_path / "a.gif")
    assert near(read_picture(tmp_path / "a.gif")[5, 55], (10, 60, 240), 40)


def test_cmyk(tmp_path, halves):
    Image.fromarray(halves).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    picture = read_picture(tmp_path / "a.jpg")
    assert near(picture[20, 10], (250, 120, 10), 25) and near(picture[20, 50], (10, 60, 240), 25)


def test_one_bit(tmp_path):
    Image.fromarray(np.eye(32, dtype=bool)).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png")[3, 3].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("tag", "shape", "orange_at"),
    [
        (1, (40, 60), (20, 5)),
        (3, (40, 60), (20, 55)),
        (6, (60, 40), (5, 20)),
        (8, (60, 40), (55, 20)),
    ],
)
def test_rotation_tag(tmp_path, halves, tag, shape, orange_at):
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(halves).save(tmp_path / "a.jpg", exif=exif, quality=95)
    picture = read_picture(tmp_path / "a.jpg")
    assert picture.shape[:2] == shape
    assert read_header(tmp_path / "a.jpg") == (*shape[::-1], tag)
    assert near(picture[orange_at], (250, 120, 10), 25)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
@pytest.mark.parametrize("tags", [b"II*\0", b"no tags", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"])
def test_damaged_tags_do_not_hide_a_picture(tmp_path, halves, name, tags):
    Image.fromarray(halves).save(tmp_path / name, exif=tags, dpi=(72, 72), quality=95)
    assert near(read_picture(tmp_path / name)[20, 5], (250, 120, 10), 25)
    assert read_header(tmp_path / name) == (60, 40, 1)


def test_numbers_of_0_to_1(tmp_path):
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    values[0, 0] = np.nan
    for factor in (1, 255):
        Image.fromarray(values * factor).save(tmp_path / "a.tif")
        picture = read_picture(tmp_path / "a.tif")
        assert picture[0, 0].tolist() == [0, 0, 0] and picture[7, 7].tolist() == [255] * 3
        assert abs(int(picture[4, 0, 0]) - 255 * 32 / 63) <= 1


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_truncated(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 255, (80, 80, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / f"a{suffix}")
    data = (tmp_path / f"a{suffix}").read_bytes()
    (tmp_path / f"b{suffix}").write_bytes(data[: len(data) // 2])
    with pytest.raises(PictureError, match=f"b{suffix}: truncated"):
        read_picture(tmp_path / f"b{suffix}")


def test_no_picture(tmp_path):
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    for name, words in (
        ("text.jpg", "not a picture"),
        ("empty.jpg", "is empty"),
        ("gone.jpg", "no such picture"),
        ("", "is a folder"),
    ):
        with pytest.raises(PictureError, match=words):
            read_picture(tmp_path / name)


def test_too_many_pixels(tmp_path, monkeypatch, halves):
    monkeypatch.setattr("spikedet.pictures.MOST_PIXELS", 1000)
    Image.fromarray(halves).save(tmp_path / "a.png")
    with pytest.raises(PictureError, match="60 x 40 pixels are too many"):
        read_picture(tmp_path / "a.png")


@pytest.mark.parametrize("shape", [(40, 60), (500, 333), (64, 64), (31, 977), (720, 1280)])
def test_letterbox_is_that_of_training(shape):
    from ultralytics.data.augment import LetterBox

    picture = np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8)
    ours, _ = letterbox(picture, 320)
    theirs = LetterBox((320, 320))(image=picture)
    assert np.array_equal((ours.permute(1, 2, 0).numpy() * 255).round(), theirs[..., ::-1])


@pytest.mark.parametrize("shape", [(40, 60), (8000, 32), (32, 8000), (1, 1), (375, 500)])
def test_boxes_come_back(shape):
    tensor, frame = letterbox(np.zeros((*shape, 3), np.uint8), 320)
    assert tensor.shape == (3, 320, 320)
    height, width = shape
    whole = [
        frame.pad_x,
        frame.pad_y,
        frame.pad_x + width * frame.scale_x,
        frame.pad_y + height * frame.scale_y,
    ]
    assert np.allclose(frame.to_original(np.array([whole])), [[0, 0, width, height]], atol=1e-3)
    outside = frame.to_original(np.array([[-50, -50, 999, 999]]))
    assert outside.tolist() == [[0, 0, width, height]]


@pytest.mark.parametrize(
    ("shape", "inside", "expected"),
    [
        # 333 rows become 213, 500 columns 320: a row has 1.563 of them, a column 1.5625
        ((333, 500), (32, 53 + 71, 160, 53 + 142), (50, 111, 250, 222)),
        ((333, 500), (0, 53, 320, 266), (0, 0, 500, 333)),
        ((500, 333), (53 + 71, 32, 53 + 142, 160), (111, 50, 222, 250)),
        # 32 columns become one, 8000 rows 320
        ((8000, 32), (159, 80, 160, 240), (0, 2000, 32, 6000)),
        ((32, 8000), (80, 159, 240, 160), (2000, 0, 6000, 32)),
        # a single pixel fills the square
        ((1, 1), (80, 160, 160, 240), (0.25, 0.5, 0.5, 0.75)),
    ],
)
def test_rows_and_columns_are_scaled_each_by_its_own(shape, inside, expected):
    _, frame = letterbox(np.zeros((*shape, 3), np.uint8), 320)
    assert np.allclose(frame.to_original(np.array([inside])), [expected], atol=1e-3)


def test_a_spot_is_found_where_it_was():
    """Whatever the two scales: the edges of a light block, in the square and taken back."""
    picture = np.zeros((777, 1111, 3), np.uint8)
    picture[300:500, 600:900] = 255
    tensor, frame = letterbox(picture, 160)
    light = (tensor[0] > 0.75).numpy()
    rows, columns = np.flatnonzero(light.any(1)), np.flatnonzero(light.any(0))
    box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    assert frame.scale_x != frame.scale_y
    boxes = frame.to_original(np.array([box]))[0]
    assert np.abs(boxes - [600, 300, 900, 500]).max() < 1 / min(frame.scale_x, frame.scale_y)


# ---------------------------------------------------------------------- headers


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", "a.avif"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_a_header_says_what_is_shown(tmp_path, halves, name, turn):
    """Size and rotation of a file are those of the picture that is read from it."""
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(halves).save(tmp_path / name, exif=exif)
    height, width = read_picture(tmp_path / name).shape[:2]
    header = read_header(tmp_path / name)
    assert header == (width, height, turn) and header.stored == (60, 40)
    assert (width, height) == ((40, 60) if turn >= 5 else (60, 40))


@pytest.mark.parametrize("turn", range(1, 9))
def test_every_rotation_tag_is_undone(tmp_path, turn):
    """As Pillow itself undoes it."""
    noise = np.random.default_rng(0).integers(0, 255, (6, 9, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(noise).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as opened:
        wanted = np.asarray(ImageOps.exif_transpose(opened))
    assert np.array_equal(read_picture(tmp_path / "a.png")[..., ::-1], wanted)


def test_tags_behind_the_pixels_of_a_png(tmp_path, halves):
    """Where some programs put them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(halves).save(tmp_path / "a.png", exif=exif)
    data = (tmp_path / "a.png").read_bytes()
    at = data.index(b"eXIf") - 4
    size = int.from_bytes(data[at : at + 4], "big") + 12
    end = data.index(b"IEND") - 4
    moved = data[:at] + data[at + size : end] + data[at : at + size] + data[end:]
    (tmp_path / "a.png").write_bytes(moved)
    assert read_picture(tmp_path / "a.png").shape == (60, 40, 3)
    assert read_header(tmp_path / "a.png") == (40, 60, 6)


def test_the_header_of_a_png_is_read_without_its_pixels(tmp_path, halves, monkeypatch):
    Image.fromarray(halves).save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "load", None)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    assert read_header(tmp_path / "a.png") == (60, 40, 1)


@pytest.mark.parametrize("read", [read_picture, read_header])
@pytest.mark.parametrize(
    ("mode", "size"),
    [("1", (134_300_000, 1)), ("1", (15_000, 10_000)), ("L", (12_001, 10_000))],
)
def test_a_picture_that_memory_is_not_made_for_is_refused_by_its_header(tmp_path, read, mode, size):
    """134.3 million pixels in a row were a MemoryError, 150 million took 5 GB."""
    write_png(tmp_path / "a.png", mode, size)
    with pytest.raises(PictureError, match=f"{size[0]} x {size[1]} pixels are too many; expected"):
        read(tmp_path / "a.png")


def test_memory_that_is_not_there_is_one_sentence(tmp_path, halves, monkeypatch):
    Image.fromarray(halves).save(tmp_path / "a.png")

    def none(*_):
        raise MemoryError

    monkeypatch.setattr("spikedet.pictures._eight_bit_rgb", none)
    with pytest.raises(PictureError, match="a.png: does not fit into memory"):
        read_picture(tmp_path / "a.png")


# ---------------------------------------------------------------------- what is in a folder


@pytest.mark.parametrize("suffix", [".avif", ".jp2", ".j2k"])
def test_avif_and_jpeg_2000_are_found_and_read(tmp_path, halves, suffix):
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    Image.fromarray(halves).save(tmp_path / f"a{suffix}")
    paths, errors = find_pictures([str(tmp_path)])
    assert [p.name for p in paths] == [f"a{suffix}"] and errors == []
    picture = read_picture(paths[0])
    assert near(picture[20, 10], (250, 120, 10), 25) and near(picture[20, 50], (10, 60, 240), 25)


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"  # how a file of a telephone begins


def test_heic_pictures_are_counted_and_named(tmp_path, halves, monkeypatch):
    monkeypatch.setattr("spikedet.pictures.reads_heic", lambda: False)
    Image.fromarray(halves).save(tmp_path / "z.jpg")
    for name in ("a.heic", "b.HEIC", "c.heif", "d.hif"):
        (tmp_path / name).write_bytes(HEIC)
    paths, (error,) = find_pictures([str(tmp_path)])
    assert [p.name for p in paths] == ["z.jpg"]
    assert str(error) == (
        f"{tmp_path}: 4 HEIC pictures cannot be read (a.heic, b.HEIC, c.heif, ...); install "
        "pillow-heif, or convert them to JPEG"
    )
    (tmp_path / "really.jpg").write_bytes(HEIC)
    for name in ("a.heic", "really.jpg"):
        with pytest.raises(PictureError, match=f"{name}: HEIC pictures cannot be read; install"):
            read_picture(tmp_path / name)


def test_heic_pictures_are_read_where_pillow_heif_is(tmp_path, monkeypatch):
    monkeypatch.setattr("spikedet.pictures.reads_heic", lambda: True)
    (tmp_path / "a.heic").write_bytes(HEIC)
    paths, errors = find_pictures([str(tmp_path)])
    assert [p.name for p in paths] == ["a.heic"] and errors == []


def test_links_that_lead_nowhere_and_pipes_are_named(tmp_path, halves):
    Image.fromarray(halves).save(tmp_path / "good.png")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "broken.jpg").symlink_to("gone.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")  # which would wait for somebody to write into it
    paths, errors = find_pictures([str(tmp_path)])
    assert [p.name for p in paths] == ["broken.jpg", "good.png", "loop.jpg", "pipe.jpg"]
    assert errors == []
    for name, words in {
        "loop.jpg": "a link that leads nowhere",
        "broken.jpg": "a link that leads nowhere",
        "pipe.jpg": "is a pipe or a device; expected a picture file",
    }.items():
        for read in (read_picture, read_header):
            with pytest.raises(PictureError, match=f"{name}: {words}"):
                read(tmp_path / name)


def test_no_other_program_runs_for_a_picture(tmp_path, halves, monkeypatch):
    """Pillow would give EPS to Ghostscript, also if the file is named as a JPEG file."""
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("it ran"))
    Image.fromarray(halves).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    for read in (read_header, read_picture):
        with pytest.raises(PictureError, match="is not a picture that can be read"):
            read(tmp_path / "a.jpg")
