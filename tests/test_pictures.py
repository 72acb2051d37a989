"""Pictures of every kind come out as a viewer shows them; the rest is refused by name."""

import cv2
import numpy as np
import pytest
from PIL import Image

import spikedet.detection.ultra  # noqa: F401  before ultralytics itself
from spikedet.detection.letterbox import letterbox
from spikedet.errors import PictureError
from spikedet.pictures import find_pictures, read_picture, shown_size


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
    with Image.open(tmp_path / "a.jpg") as opened:
        assert shown_size(opened) == shape[::-1]
    assert near(picture[orange_at], (250, 120, 10), 25)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
@pytest.mark.parametrize("tags", [b"II*\0", b"no tags", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"])
def test_damaged_tags_do_not_hide_a_picture(tmp_path, halves, name, tags):
    Image.fromarray(halves).save(tmp_path / name, exif=tags, dpi=(72, 72), quality=95)
    assert near(read_picture(tmp_path / name)[20, 5], (250, 120, 10), 25)
    with Image.open(tmp_path / name) as picture:
        assert shown_size(picture) == (60, 40)


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


def test_find_pictures(tmp_path, halves):
    for name in ("b.jpg", "a.PNG", "c[1].jpg"):
        Image.fromarray(halves).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "empty").mkdir()
    names = lambda sources: [p.name for p in find_pictures([str(s) for s in sources])[0]]  # noqa: E731
    assert names([tmp_path]) == ["a.PNG", "b.jpg", "c[1].jpg"]
    assert names([tmp_path / "*.jpg"]) == ["b.jpg", "c[1].jpg"]
    assert names([tmp_path / "c[1].jpg"]) == ["c[1].jpg"]
    assert names([tmp_path / "b.jpg", tmp_path]) == ["b.jpg", "a.PNG", "c[1].jpg"]
    assert names([tmp_path / "gone.jpg"]) == ["gone.jpg"]
    nothing = [str(tmp_path / name) for name in ("empty", "*.bmp", "emp*")]
    paths, errors = find_pictures(nothing)
    assert paths == [] and len(errors) == 3
    assert "no pictures in this folder" in str(errors[0]) and "pattern" in str(errors[1])


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
