"""Annotated pictures in every format: what comes out, and what is refused in one sentence."""

import json
import os
import shutil
import warnings

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image

from spikedet import task_registry
from spikedet.commands import shared
from spikedet.commands.main import parsed
from spikedet.data import formats
from spikedet.data.formats import read_boxes, recognise
from spikedet.data.formats.voc import VOC_CLASSES
from spikedet.data.formats.voc_xml import parse_annotation
from spikedet.data.samples import Sample
from spikedet.data.sizes import rotate_sample
from spikedet.detection.boxes import Detections
from spikedet.detection.data import split_off_tuning
from spikedet.detection.defaults import TUNING
from spikedet.detection.evaluate import average_precision
from spikedet.errors import DataError, UsageError
from spikedet.pictures import TURNS, read_picture
from support.devkits import add, annotation
from support.shapes import (
    NAMES,
    SIZE,
    WRITERS,
    drawn,
    listing,
    save,
    write_coco,
    write_voc,
    write_yolo,
    yolo_rows,
)

SPLIT = {"voc": "Shapes:val", "yolo": "val", "coco": "val"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPIKEDET_CACHE", str(tmp_path / "cache"))


def perfect(samples, names=NAMES):
    """AP of detections that are the objects, in the pixels of the pictures that are read."""
    detections = []
    for sample in samples:
        height, width = read_picture(sample.path).shape[:2]
        assert (sample.width, sample.height) == (width, height)
        scores = np.ones(len(sample.labels), np.float32)
        detections.append(Detections(coloured(sample.path), scores, sample.labels, names))
    return average_precision(detections, samples, names).AP


def coloured(path):
    """Boxes of the two shapes of a drawn picture, left to right as they were drawn."""
    picture = read_picture(path).astype(int)
    bright = (picture.max(2) - picture.min(2) > 90).astype(np.uint8)
    count, _, stats, _ = cv2.connectedComponentsWithStats(bright)
    boxes = [(x, y, x + w, y + h) for x, y, w, h, area in stats[1:count] if area > 20]
    return np.array(sorted(boxes), np.float32)


# ---------------------------------------------------------------------- what comes out


@pytest.mark.parametrize("format", WRITERS)
@pytest.mark.parametrize("split", ["train", "val"])
def test_samples_are_what_was_drawn(format, split, tmp_path):
    folder = WRITERS[format](tmp_path / "shapes")
    before = listing(folder)
    wanted = [each for each in drawn() if each[0] == split]
    for _ in range(2):  # from the files, and from the cache
        samples = read_boxes([folder], SPLIT[format].replace("val", split))
        assert len(samples) == len(wanted)
        for sample, (_, number, _, objects) in zip(samples, wanted, strict=True):
            assert sample.path.stem == number and sample.id.endswith(f"/{number}")
            assert (sample.width, sample.height) == SIZE and sample.names == NAMES
            assert [NAMES[label] for label in sample.labels] == [name for name, _ in objects]
            assert np.allclose(sample.boxes, [box for _, box in objects], atol=1e-4)
            assert not sample.difficult.any() and not sample.crowd.any()
            sides = np.array([(x2 - x1) * (y2 - y1) for _, (x1, y1, x2, y2) in objects])
            assert np.allclose(sample.areas, sides, rtol=1e-5)
    assert listing(folder) == before  # nothing is written beside the pictures


def test_what_is_there_says_the_format(tmp_path):
    places = {
        "VOCdevkit": [write_voc(tmp_path / "devkit"), tmp_path / "devkit/Shapes"],
        "YOLO labels": [write_yolo(tmp_path / "yolo"), tmp_path / "yolo/data.yaml"],
        "COCO annotations": [
            write_coco(tmp_path / "coco"), tmp_path / "coco/annotations/instances_val.json",
        ],
        "class folders": [tmp_path / "classes"],
        "CIFAR": [tmp_path / "cifar"],
    }  # fmt: skip
    (tmp_path / "classes/train/cat").mkdir(parents=True)
    (tmp_path / "cifar/cifar-10-batches-py").mkdir(parents=True)
    for name, paths in places.items():
        for path in paths:
            assert recognise(path).name == name, path
            wanted = "classification" if name in ("class folders", "CIFAR") else "detection"
            assert task_registry.of_data([path]) == wanted
    (tmp_path / "nothing").mkdir()
    assert recognise(tmp_path / "nothing") is None and recognise(tmp_path / "gone") is None


@pytest.mark.parametrize(
    ("format", "train", "test"),
    [("voc", "Shapes:train", "Shapes:val"), ("yolo", "train", "val"), ("coco", "train", "val")],
)
def test_usual_splits(format, train, test, tmp_path):
    folder = WRITERS[format](tmp_path / "shapes")
    assert shared.usual_split([folder], "detection") == train
    assert shared.usual_split([folder], "detection", test=True) == test


def test_splits_that_are_not_usual_are_to_be_named(tmp_path):
    write_voc(tmp_path / "voc", {"mine": 2, "cat_mine": 1})
    write_yolo(tmp_path / "yolo", val=None)
    path = write_coco(tmp_path / "coco") / "annotations/instances_val.json"
    path.rename(path.with_name("instances_default.json"))
    for name, there in {"voc": "Shapes:mine", "yolo": "train", "coco": "train, default"}.items():
        words = f"{name}: no default split to measure on among {there}; name one with --split"
        with pytest.raises(DataError, match=words):
            shared.usual_split([tmp_path / name], "detection", test=True)


def test_usual_splits_of_voc(tmp_path):
    for year in ("VOC2007", "VOC2012"):
        add(tmp_path / "both", year, "1", annotation())
    assert shared.usual_split([tmp_path / "both"], "detection") == "VOC2007:train+VOC2012:trainval"
    assert shared.usual_split([tmp_path / "both"], "detection", test=True) == "VOC2007:val"
    shutil.rmtree(tmp_path / "both/VOC2012")
    assert shared.usual_split([tmp_path / "both"], "detection") == "VOC2007:train"


def test_a_limit_that_the_first_split_fills(tmp_path):
    write_coco(tmp_path)
    assert len(read_boxes([tmp_path], "train+val", limit=12)) == 12


def test_a_file_is_its_own_split(tmp_path):
    write_coco(tmp_path)
    path = tmp_path / "annotations/instances_train.json"
    assert shared.usual_split([path], "detection", test=True) == "train"
    assert len(read_boxes([path], "train")) == 12
    with pytest.raises(DataError, match="no split 'val'; there are train"):
        read_boxes([path], "val")


def test_formats_go_together(tmp_path):
    paths = [WRITERS[format](tmp_path / format) for format in WRITERS]
    assert shared.usual_split(paths, "detection", test=True) == "Shapes:val+val"
    assert len(read_boxes(paths, "Shapes:val+val")) == 12
    assert len(read_boxes(paths, "Shapes:val+val", limit=6)) == 6
    with pytest.raises(DataError, match="--split Shapes:val names none of its splits"):
        read_boxes(paths, "Shapes:val")
    with pytest.raises(DataError, match="--split Shapes:val.val.tset: no data set here has tset"):
        read_boxes(paths, "Shapes:val+val+tset")
    write_yolo(tmp_path / "other", names=["a", "b", "c"])
    words = (
        "other: has the classes a, b, c, but .*voc has circle, square, triangle; name all classes "
        "with --names"
    )
    with pytest.raises(DataError, match=words):
        read_boxes([paths[0], tmp_path / "other"], "Shapes:val+val")


# ---------------------------------------------------------------------- class names


@pytest.mark.parametrize("format", WRITERS)
def test_names_that_are_given_are_the_labels(format, tmp_path):
    folder = WRITERS[format](tmp_path / "shapes")
    own = read_boxes([folder], SPLIT[format])
    names = ("triangle", "star", "circle", "square")
    other = read_boxes([folder], SPLIT[format], names=names)
    for one, two in zip(own, other, strict=True):
        assert [NAMES[i] for i in one.labels] == [names[i] for i in two.labels]
        assert two.names == names
    with pytest.raises(DataError, match="unknown class 'square'; known classes are circle, tri"):
        read_boxes([folder], SPLIT[format], names=("circle", "triangle"))


def test_vocs_classes_are_those_of_a_devkit_that_has_no_other(tmp_path):
    add(tmp_path, "VOC2007", "1", annotation(("dog", (1, 1, 9, 9), False)))
    assert read_boxes([tmp_path], "VOC2007:train")[0].names == VOC_CLASSES
    add(tmp_path, "VOC2007", "2", annotation(("helmet", (1, 1, 9, 9), False)))
    for limit in (None, 1):  # which has no say in what the labels mean
        (first, *_) = read_boxes([tmp_path], "VOC2007:train", limit=limit)
        assert first.names == ("dog", "helmet") and first.labels.tolist() == [0]


def test_names_of_a_description(tmp_path):
    folder = write_yolo(tmp_path / "yolo", names={0: "circle", 1: "square", 2: "triangle"})
    assert read_boxes([folder], "val")[0].names == NAMES
    text = "names: [no, 007, ~]\nnc: 3\ntrain: images/train\nval: images/val\n"
    (folder / "data.yaml").write_text(text)
    assert read_boxes([folder], "val")[0].names == ("no", "007", "~")  # as they are written
    (folder / "data.yaml").write_text("nc: 3\nval: images/val\n")
    with pytest.raises(DataError, match="no class names; give them with --names"):
        read_boxes([folder], "val")
    assert read_boxes([folder], "val", names=NAMES)[0].names == NAMES


def test_class_names_of_the_command_line(tmp_path):
    (tmp_path / "names.txt").write_text("a b\n\nc\n")
    assert shared.class_names([str(tmp_path / "names.txt")]) == ("a b", "c")
    assert shared.class_names(["a", "b"]) == ("a", "b")
    with pytest.raises(DataError, match="--names: two classes have the name 'a'"):
        shared.class_names(["a", "b", "a"])


def test_names_that_are_not_those_of_the_weights_are_refused(tmp_path):
    write_yolo(tmp_path / "yolo")
    words = ["--data", str(tmp_path / "yolo"), "--names", *NAMES]
    args = parsed("evaluate", words)
    task = task_registry.named("detection")
    assert len(shared.read(args, task, "val", names=NAMES)) == 4
    with pytest.raises(UsageError, match="--names circle, square, triangle: the weights have"):
        shared.read(args, task, "val", names=("a", "b"))


def test_options_of_detectors_are_refused_for_classifiers(tmp_path):
    (tmp_path / "test/a").mkdir(parents=True)
    for words in (["--names", "a"], ["--images", "b"]):
        args = parsed("evaluate", ["--data", str(tmp_path), *words])
        with pytest.raises(UsageError, match=f"{words[0]} is no option of classification"):
            shared.read(args, task_registry.named("classification"), "test")


# ---------------------------------------------------------------------- VOC


@pytest.mark.parametrize("suffix", [".JPG", ".png", ".jpeg", ".PNG", ".bmp"])
def test_pictures_of_a_devkit_that_are_no_jpg(tmp_path, suffix):
    write_voc(tmp_path, suffix=suffix)
    samples = read_boxes([tmp_path], "Shapes:val")
    assert [s.path.name for s in samples] == [f"val-{n:02}{suffix}" for n in range(4)]
    assert perfect(samples) == pytest.approx(1)
    from spikedet.detection.prepare import check_split

    assert check_split(tmp_path / "Shapes", "val").pictures == 4


def test_the_jpg_is_the_picture_where_there_are_two(tmp_path):
    write_voc(tmp_path)
    (tmp_path / "Shapes/JPEGImages/val-00.PNG").touch()
    (tmp_path / "Shapes/JPEGImages/val-00.bmp").touch()
    assert read_boxes([tmp_path], "Shapes:val")[0].path.name == "val-00.jpg"


def test_a_data_set_of_a_devkit_is_data_itself(tmp_path, monkeypatch):
    write_voc(tmp_path)
    write_voc(tmp_path, name="Other")
    assert shared.usual_split([tmp_path / "Shapes"], "detection") == "Shapes:train"
    assert len(read_boxes([tmp_path / "Shapes"], "val")) == 4
    monkeypatch.chdir(tmp_path / "Other")
    assert read_boxes(["."], "val")[0].id == "Other/val-00"


SIZES = "<annotation><size><width>{}</width><height>40</height></size>{}</annotation>"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (SIZES.format("1e999", ""), "a size or a box is missing or not a number; expected size/wi"),
        (SIZES.format("nan", ""), "a size or a box is missing or not a number"),
        (SIZES.format("-60", ""), "a size or a box is missing or not a number"),
        *(
            (f'<?xml version="1.0" encoding="{name}"?>' + SIZES.format(60, ""), "expected VOC XML")
            for name in ("big5", "hex", "idna", "punycode", "rot13", "utf-7", "zlib", "undefined")
        ),
        (f'<?xml version="1.0" encoding="{"x" * 9000}"?><a/>', "not readable"),
    ],
)  # fmt: skip
def test_xml_that_makes_no_sense_is_one_sentence(tmp_path, content, words):
    path = tmp_path / "a.xml"
    path.write_text(content)
    with pytest.raises(DataError, match=f"a.xml: .*{words}") as error:
        parse_annotation(path)
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)


def test_every_encoding_that_python_has_is_read_or_refused(tmp_path):
    import encodings
    import pkgutil

    path, read = tmp_path / "a.xml", []
    for name in sorted(module.name for module in pkgutil.iter_modules(encodings.__path__)):
        path.write_text(f'<?xml version="1.0" encoding="{name}"?>' + SIZES.format(60, ""))
        try:
            assert parse_annotation(path)[:2] == (60, 40)
            read.append(name)
        except DataError:
            pass
    assert {"utf_8", "latin_1", "cp1252"} <= set(read)


def test_a_class_name_of_megabytes_is_not_echoed(tmp_path):
    add(tmp_path, "VOC2007", "1", annotation(("x" * 10_000_000, (1, 1, 9, 9), False)))
    with pytest.raises(DataError, match=r"1.xml: unknown class 'xxx.*\(10,000,000 char") as error:
        read_boxes([tmp_path], "VOC2007:train", names=VOC_CLASSES)
    assert len(str(error.value)) < 600
    add(tmp_path, "VOC2007", "2", annotation(("x" * 10_000_000, (9, 1, 1, 9), False)), "upside")
    with pytest.raises(DataError, match="upside down") as error:
        read_boxes([tmp_path], "VOC2007:upside")
    assert len(str(error.value)) < 600


def test_a_pipe_for_an_annotation_is_not_waited_for(tmp_path):
    add(tmp_path, "VOC2007", "1", annotation())
    (tmp_path / "VOC2007/Annotations/1.xml").unlink()
    os.mkfifo(tmp_path / "VOC2007/Annotations/1.xml")
    with pytest.raises(DataError, match="1.xml: is not a file"):
        read_boxes([tmp_path], "VOC2007:train")


# ---------------------------------------------------------------------- sizes


def resized(folder, scale):
    """Write every picture again at another size."""
    for path in folder.rglob("*.jpg"):
        picture = cv2.imread(str(path))
        height, width = picture.shape[:2]
        size = round(width * scale[0]), round(height * scale[1])
        save(path, cv2.resize(picture, size, interpolation=cv2.INTER_NEAREST))


@pytest.mark.parametrize("format", WRITERS)
@pytest.mark.parametrize("scale", [2, 3.01])
def test_a_set_that_was_resized_without_its_annotations(format, scale, tmp_path):
    """Its AP was 0; the boxes of the larger pictures are those of the annotations, scaled."""
    folder = WRITERS[format](tmp_path / "shapes")
    before = read_boxes([folder], SPLIT[format])
    resized(folder, (scale, scale))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        samples = read_boxes([folder], SPLIT[format])
    size = tuple(round(side * scale) for side in SIZE)
    for one, two in zip(before, samples, strict=True):
        assert (two.width, two.height) == size
        exact = one.boxes * np.array([size[0] / SIZE[0], size[1] / SIZE[1]] * 2)
        assert np.allclose(two.boxes, exact, atol=1e-3)
        assert np.allclose(two.areas, one.areas * size[0] * size[1] / SIZE[0] / SIZE[1], rtol=1e-5)
    assert perfect(samples) > 0.9
    if format == "yolo":  # whose labels are parts of whatever the size is
        assert told == []
    else:
        (message,) = [str(each.message) for each in told]
        assert "4 pictures with another size than in the annotations; the boxes are scaled" in (
            message
        )
        assert f": {size[0]} x {size[1]}, not 72 x 56)" in message


@pytest.mark.parametrize("format", ["voc", "coco"])
@pytest.mark.parametrize("scale", [(1, 2), (0.5, 1)])
def test_annotations_of_another_picture_are_refused(format, scale, tmp_path):
    folder = WRITERS[format](tmp_path / "shapes")
    resized(folder, scale)
    words = r"val-00.jpg: has .* pixels, but its annotation is for 72 x 56, .*\(and 3 more"
    with pytest.raises(DataError, match=words):
        read_boxes([folder], SPLIT[format])


def test_a_size_of_nothing_is_that_of_the_file(tmp_path):
    add(tmp_path, "VOC2007", "1", annotation(("dog", (1, 1, 60, 41), False), size=(0, 0)))
    with pytest.warns(UserWarning, match="1 picture with annotations without a size; the size of"):
        (sample,) = read_boxes([tmp_path], "VOC2007:train")
    assert (sample.width, sample.height) == (60, 40)
    assert sample.boxes.tolist() == [[0, 0, 60, 40]] and sample.areas.tolist() == [2400]
    add(tmp_path, "VOC2007", "2", annotation(("dog", (1, 1, 62, 9), False), size=(0, 0)), "out")
    with pytest.raises(DataError, match="lies outside its picture of 60 x 40"), pytest.warns():
        read_boxes([tmp_path], "VOC2007:out")


def test_boxes_of_nothing_are_left_out(tmp_path):
    """They would count as objects that were missed."""
    folder = write_yolo(tmp_path / "yolo")
    label = sorted((folder / "labels/train").iterdir())[0]
    before = read_boxes([folder], "train")
    label.write_text(label.read_text().rstrip() + "\n0 .5 .5 0 .2\n1 .5 .5 .2 0\n")
    with pytest.warns(UserWarning, match="train: 2 boxes without width or height left out"):
        assert [len(s.labels) for s in read_boxes([folder], "train")] == [
            len(s.labels) for s in before
        ]
    path = write_coco(tmp_path / "coco") / "annotations/instances_val.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"][2] = 0
    path.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="val: 1 box without width or height left out"):
        samples = read_boxes([path], "val")
    assert sum(len(s.labels) for s in samples) == len(content["annotations"]) - 1
    assert all(len(s.areas) == len(s.crowd) == len(s.boxes) for s in samples)


def test_a_file_without_sizes(tmp_path):
    path = write_coco(tmp_path) / "annotations/instances_val.json"
    content = json.loads(path.read_text())
    for image in content["images"]:
        del image["width"], image["height"]
    path.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="4 pictures with annotations without a size"):
        assert perfect(read_boxes([path], "val")) == pytest.approx(1)


# ---------------------------------------------------------------------- rotation


def rotate(folder, turn):
    """Give every picture a rotation tag and store it so that it is shown as before."""
    undo = {5: 5, 6: 8, 7: 7, 8: 6, 2: 2, 3: 3, 4: 4}[turn]
    for path in folder.rglob("*.jpg"):
        exif = Image.Exif()
        exif[0x0112] = turn
        with Image.open(path) as picture:
            stored = picture.convert("RGB").transpose(TURNS[undo])
        stored.save(path, quality=98, subsampling=0, exif=exif)


@pytest.mark.parametrize("turn", range(1, 9))
def test_boxes_are_turned_as_pixels_are(turn):
    picture = np.zeros((40, 60), np.uint8)
    picture[5:20, 8:40] = 255
    shown = Image.fromarray(picture)
    shown = np.asarray(shown if turn == 1 else shown.transpose(TURNS[turn]))
    rows, columns = np.flatnonzero(shown.max(1)), np.flatnonzero(shown.max(0))
    box = np.array([[8, 5, 40, 20]], np.float32)
    labels, difficult = np.zeros(1, np.int64), np.zeros(1, bool)
    sample = rotate_sample(Sample("a/b", None, 60, 40, box, labels, difficult), turn)
    assert (sample.width, sample.height) == shown.shape[::-1]
    assert sample.boxes.tolist() == [[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]]


@pytest.mark.parametrize("format", ["voc", "coco"])
@pytest.mark.parametrize("turn", [5, 6, 7, 8])
def test_boxes_of_the_stored_pixels_of_a_rotated_picture(format, turn, tmp_path):
    """Annotations say the size of the stored pixels; the picture that is shown is another."""
    folder = WRITERS[format](tmp_path / "shapes")
    for path in folder.rglob("*.jpg"):
        exif = Image.Exif()
        exif[0x0112] = turn
        with Image.open(path) as picture:
            picture.convert("RGB").save(path, quality=98, subsampling=0, exif=exif)
    words = "4 pictures with a rotation tag that the annotations ignore; the boxes are rotated"
    with pytest.warns(UserWarning, match=words):
        samples = read_boxes([folder], SPLIT[format])
    assert {(s.width, s.height) for s in samples} == {SIZE[::-1]}
    for sample in samples:
        boxes = coloured(sample.path)
        assert np.abs(np.array(sorted(sample.boxes.tolist())) - boxes).max() <= 2


@pytest.mark.parametrize("format", WRITERS)
@pytest.mark.parametrize("turn", [3, 6])
def test_boxes_of_the_picture_as_it_is_shown(format, turn, tmp_path):
    """The size says so; where it does not, a warning says how they were taken."""
    folder = WRITERS[format](tmp_path / "shapes")
    rotate(folder, turn)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        samples = read_boxes([folder], SPLIT[format])
    assert perfect(samples) > 0.9
    doubtful = [str(each.message) for each in told]
    if turn == 3 or format == "yolo":
        (message,) = doubtful
        assert "4 pictures with a rotation tag; the boxes are read as boxes of" in (message)
    else:
        assert doubtful == []


@pytest.mark.parametrize("sizes", ["stored", "unknown"])
def test_all_boxes_of_a_data_set_are_read_by_one_convention(sizes, tmp_path):
    """Tags that keep the size of a picture are ignored if tags that exchange its sides are."""
    folder = write_coco(tmp_path / "shapes")
    path = folder / "annotations/instances_val.json"
    turns = dict(zip(sorted(folder.rglob("val*.jpg")), (6, 2, 3, 4), strict=True))
    for picture, turn in turns.items():
        exif = Image.Exif()
        exif[0x0112] = turn
        with Image.open(picture) as image:
            image.convert("RGB").save(picture, quality=98, subsampling=0, exif=exif)
    if sizes == "unknown":
        first = next(iter(turns)).name
        edit(path, lambda c: [i.update(width=0, height=0) for i in c["images"]
                              if i["file_name"] != first])  # fmt: skip
    with pytest.warns(UserWarning) as told:
        samples = read_boxes([folder], "val")
    assert [
        str(each.message)
        for each in told
        if "4 pictures with a rotation tag that" in str(each.message)
    ]
    assert not [each for each in told if "as a viewer shows it" in str(each.message)]
    for sample in samples:
        boxes = coloured(sample.path)
        assert np.abs(np.array(sorted(sample.boxes.tolist())) - boxes).max() <= 2


# ---------------------------------------------------------------------- YOLO


def test_entries_of_a_description(tmp_path, monkeypatch):
    """Folders, lists of them, text files; `path` and what Roboflow writes."""
    folder = write_yolo(tmp_path / "yolo")
    wanted = [s.path.name for s in read_boxes([folder], "train")]
    lines = "".join(f"./images/train/{name}\n" for name in wanted)
    (folder / "list.txt").write_text(lines)
    (tmp_path / "elsewhere").mkdir()
    for description in (
        {"train": "list.txt"},
        {"train": ["images/train"]},
        {"train": str(folder / "images/train")},
        {"train": "../images/train"},
        {"path": "../yolo", "train": "images/train"},
        {"path": str(folder), "train": "images/train"},
        {"path": "yolo", "train": "images/train"},
    ):
        file = folder / "data.yaml"
        file.write_text(yaml.safe_dump({"names": list(NAMES), **description}))
        assert [s.path.name for s in read_boxes([folder], "train")] == wanted, description
    both = {"names": list(NAMES), "train": ["images/train", "images/val"], "valid": "images/val"}
    (folder / "data.yaml").write_text(yaml.safe_dump(both))
    assert len(read_boxes([folder / "data.yaml"], "train")) == 16
    assert len(read_boxes([folder], "train+val")) == 16  # each once
    assert len(read_boxes([folder], "valid")) == 4


def test_folders_without_a_description(tmp_path):
    folder = write_yolo(tmp_path / "yolo")
    (folder / "data.yaml").unlink()
    with pytest.raises(DataError, match="no class names; give them with --names"):
        read_boxes([folder], "val")
    assert len(read_boxes([folder], "val", names=NAMES)) == 4
    (folder / "classes.txt").write_text("\n".join(NAMES))
    assert perfect(read_boxes([folder], "val")) == pytest.approx(1)
    other = tmp_path / "other"
    for part in ("images", "labels"):
        shutil.copytree(folder / part / "val", other / "valid" / part)
    assert len(read_boxes([other], "val", names=NAMES)) == 4


def test_rows_of_labels(tmp_path):
    folder = write_yolo(tmp_path / "yolo")
    path = folder / "labels/val/val-00.txt"

    def boxes():
        sample = read_boxes([folder], "val")[0]
        return sample.labels.tolist(), sample.boxes.tolist()

    path.write_text("\ufeff1 0.5 0.5 0.5 0.25\n\n1 0.5 0.5 0.5 0.25\n2 0.25 0 0.75 0.5 0.5 1\n")
    assert boxes() == ([1, 2], [[18, 21, 54, 35], [18, 0, 54, 56]])  # the second is a polygon
    path.write_text("0 0.001 0.5 0.01 0.5\n")  # beyond the picture by a little: clipped
    assert boxes()[1] == [[0, 14, pytest.approx(0.432), 42]]
    path.write_text("")
    assert boxes() == ([], [])
    path.unlink()
    words = r"yolo-val: 1 picture without a label file, read as without objects \(val-00.jpg\)"
    with pytest.warns(UserWarning, match=words):
        assert boxes() == ([], [])
    description = {"names": list(NAMES), "val": "images/val", "kpt_shape": [1, 3]}
    (folder / "data.yaml").write_text(yaml.safe_dump(description))
    path.write_text("1 0.5 0.5 0.5 0.25 0.9 0.9 2\n")
    assert boxes() == ([1], [[18, 21, 54, 35]])


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("0 36 28 20 20", "line 1: '0 36 28 20 20'; expected a class number and four parts"),
        ("0 0.5 0.5 0.5", "expected a class number"),
        ("0 0.5 0.5 -0.5 0.5", "expected a class number"),
        ("0 nan 0.5 0.5 0.5", "expected a class number"),
        ("0.5 0.5 0.5 0.5 0.5", "expected a class number"),
        ("-1 0.5 0.5 0.5 0.5", "expected a class number"),
        ("cat 0.5 0.5 0.5 0.5", "expected a class number"),
        ("inf 0.5 0.5 0.5 0.5", "expected a class number"),
        ("3 0.5 0.5 0.5 0.5", "class 3; there are 3 classes, numbered from 0"),
        ("x" * 10_000_000, "expected a class number"),
    ],
)
def test_rows_that_make_no_sense(tmp_path, row, words):
    folder = write_yolo(tmp_path / "yolo")
    (folder / "labels/val/val-01.txt").write_text(row)
    with pytest.raises(DataError, match=f"val-01.txt: .*{words}") as error:
        read_boxes([folder], "val")
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("description", "words"),
    [
        ({"names": ["a", "b"]}, "class 2; there are 2 classes"),
        ({"names": ["a", "a", "b"]}, "two classes have the name 'a'"),
        (
            {"names": ["a", "b" * 10_000, "c"]},
            "data.yaml: the class name 'b{20}...b{20} .10,000 characters.' is too long; expected "
            "at most 255 characters",
        ),
        ({"names": {0: "a", 2: "b"}}, "class numbers 0, 2; expected each number from 0 to 1"),
        ({"names": "a"}, "names is not a list"),
        ({"names": ["a", "b", "c"], "nc": 2}, "nc is 2, but there are 3 names"),
        ({"val": "images/gone"}, "val: images/gone: no such file or folder"),
        ({"val": "labels/val"}, "labels/val: no pictures here"),
        ({"val": "list.txt"}, "list.txt: gone.jpg: no such picture"),
        ({"val": None}, "no split 'val'; there are train"),
    ],
)
def test_descriptions_that_make_no_sense(tmp_path, description, words):
    folder = write_yolo(tmp_path / "yolo", **description)
    (folder / "list.txt").write_text("gone.jpg\n")
    with pytest.raises(DataError, match=words):
        read_boxes([folder], "val")


def test_a_damaged_description_in_a_folder_is_not_passed_over(tmp_path):
    """Without it, --names could give the classes in another order."""
    folder = write_yolo(tmp_path / "yolo")
    (folder / "data.yaml").write_text("names: [circle, square")
    with pytest.raises(DataError, match="data.yaml: not readable as YAML"):
        read_boxes([folder], "train", names=["square", "circle"])


def test_a_description_that_is_none(tmp_path):
    for text in ("a: [", "- 3", "\0"):
        (tmp_path / "data.yaml").write_text(text)
        with pytest.raises(DataError, match="data.yaml: not readable as YAML; expected names"):
            read_boxes([tmp_path / "data.yaml"], "train")


def test_labels_that_are_elsewhere_are_missed(tmp_path):
    """A folder of pictures alone is not a data set without objects."""
    folder = write_yolo(tmp_path / "yolo")
    shutil.rmtree(folder / "labels/val")
    with pytest.raises(DataError, match="no such label file; all 4 label files of val are missing"):
        read_boxes([folder], "val")


# ---------------------------------------------------------------------- COCO


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_where_pictures_are(tmp_path):
    folder = write_coco(tmp_path / "coco")
    path = folder / "annotations/instances_val.json"
    for place in ("images/val", "images", "."):
        if place == ".":
            for picture in (folder / "val").iterdir():
                picture.rename(folder / picture.name)
            break
        (folder / "val").rename(tmp_path / "aside")
        (folder / place).parent.mkdir(exist_ok=True)
        shutil.rmtree(folder / place, ignore_errors=True)
        (tmp_path / "aside").rename(folder / place)
        assert len(read_boxes([path], "val")) == 4, place
        shutil.copytree(folder / place, folder / "val")
    assert len(read_boxes([path], "val")) == 4
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.rmtree(folder / "images")
    for picture in folder.glob("*.jpg"):
        picture.rename(elsewhere / picture.name)
    with pytest.raises(DataError, match="picture val-00.jpg is not in .*; name its folder"):
        read_boxes([path], "val")
    assert len(read_boxes([path], "val", places=[elsewhere])) == 4


def test_pictures_elsewhere_are_named_on_the_command_line(tmp_path, capsys):
    path = write_coco(tmp_path / "coco") / "annotations/instances_val.json"
    (tmp_path / "coco/val").rename(tmp_path / "elsewhere")
    words = ["--data", str(path), "--images", str(tmp_path / "elsewhere")]
    args, task = parsed("evaluate", words), task_registry.named("detection")
    assert len(shared.read(args, task, shared.split(args, task.name, test=True))) == 4
    told = "COCO annotations, 4 pictures of val, 3 classes: circle, square, triangle\n"
    assert capsys.readouterr().err == f"{path}: {told}"


def test_folders_of_pictures_that_would_be_ignored_are_refused(tmp_path):
    write_yolo(tmp_path / "yolo")
    words = ["--data", str(tmp_path / "yolo"), "--images", str(tmp_path)]
    args = parsed("evaluate", words)
    with pytest.raises(UsageError, match="--images: is for COCO files; YOLO labels data"):
        shared.read(args, task_registry.named("detection"), "val")


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "\ud800", "../" * 3000, ""])
def test_names_of_pictures_that_no_system_takes(tmp_path, name):
    path = write_coco(tmp_path) / "annotations/instances_val.json"
    for number in (0, 1):
        edit(path, lambda c, number=number: c["images"][number].update(file_name=name))
        with pytest.raises(DataError) as error:
            read_boxes([path], "val")
        assert len(str(error.value)) < 2100
        edit(path, lambda c, number=number: c["images"][number].update(file_name="val-00.jpg"))
    folder = write_yolo(tmp_path / "yolo", val="list.txt")
    (folder / "list.txt").write_text(name.replace("\ud800", "") or "gone", newline="")
    with pytest.raises(DataError, match="no such picture"):
        read_boxes([folder], "val")


def test_the_first_letters_of_a_split_are_enough(tmp_path):
    folder = write_coco(tmp_path / "coco")
    old, new = (folder / f"annotations/instances_val{end}.json" for end in ("", "2017"))
    old.rename(new)
    assert shared.usual_split([folder], "detection", test=True) == "val2017"
    assert len(read_boxes([folder], "val")) == len(read_boxes([folder], "val2017")) == 4


def test_files_beside_their_pictures(tmp_path):
    """As Roboflow exports them."""
    folder = write_coco(tmp_path / "coco")
    for split in ("train", "val"):
        path = folder / f"annotations/instances_{split}.json"
        path.rename(folder / split / "_annotations.coco.json")
    (folder / "annotations").rmdir()
    assert recognise(folder).name == "COCO annotations"
    assert shared.usual_split([folder], "detection", test=True) == "val"
    assert perfect(read_boxes([folder], "val")) == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("annotations"), "not COCO's annotations; expected images"),
        (lambda c: c.update(images=[3]), "not COCO's annotations"),
        (lambda c: c.update(images=[]), "this file lists no pictures"),
        (lambda c: c["images"][0].pop("file_name"), "a picture has no file_name"),
        (lambda c: c["categories"][0].pop("name"), "a category has no id or no name"),
        (lambda c: c["categories"][0].update(name="circle"), "two classes have the name 'circle'"),
        (
            lambda c: c["annotations"][0].pop("bbox"),
            "val-00.jpg: annotation 1: a box, an area or a category is missing",
        ),
        (
            lambda c: c["annotations"][1].update(bbox=[1, 2, 3]),
            "val-00.jpg: annotation 2: a box, an area or a category is",
        ),
        (
            lambda c: c["annotations"][1].update(bbox=[1, 2, -3, 4], id="a7"),
            "val-00.jpg: annotation 'a7': a box, an area or a category",
        ),
        (
            lambda c: c["annotations"][0].update(bbox=[1, 2, 1e999, 4]),
            "annotation 1: a box, an area or a cat",
        ),
        (
            lambda c: c["annotations"][0].update(category_id=99),
            "annotation 1: a box, an area or a category is",
        ),
        (
            lambda c: [
                c["annotations"][0].update(bbox=[5, 2, 0, 9]),  # left out
                c["annotations"][1].update(bbox=[80, 2, 9, 9]),
            ],
            "val-00.jpg: annotation 2: a box lies outside its picture of 72",
        ),
        (lambda c: c["annotations"][1].pop("image_id"), "json: annotation 2 has no image_id"),
        (lambda c: c["annotations"][1].pop("category_id"), "json: annotation 2 has no category_id"),
        (lambda c: c["annotations"][1].pop("id"), r"json: annotations\[1\] has no id"),
        (lambda c: c["images"][1].update(file_name="gone.jpg"), "gone.jpg: no such picture"),
        (
            lambda c: c["images"][0].update(width="x"),
            "the name or the size of this picture is missing",
        ),
    ],
)
def test_annotations_that_make_no_sense(tmp_path, change, words):
    path = write_coco(tmp_path) / "annotations/instances_val.json"
    edit(path, change)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a box that is left out
        with pytest.raises(DataError, match=words):
            read_boxes([path], "val")


def _orphans(content):
    for each in content["annotations"]:
        each["image_id"] = str(each["image_id"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            _orphans,
            "no annotation belongs to one of its .* .annotation 1, image_id '10' is not among",
        ),
        (lambda c: c["images"][1].update(id=c["images"][0]["id"]), "two images have the same id"),
        (lambda c: c["categories"][1].update(id=7), "two categories have the same id"),
        (lambda c: c["annotations"][0].update(area=float("nan")), "an area or a category is"),
        (lambda c: c["annotations"][0].update(area=-5), "an area or a category is"),
        (
            lambda c: [
                c["images"][0].update(width=0, height=0),
                c["annotations"][0].update(bbox=[5000, 5000, 5, 5]),
            ],
            "a box lies outside its picture",
        ),
    ],
)
def test_annotations_that_would_be_lost_without_a_word(tmp_path, change, words):
    path = write_coco(tmp_path) / "annotations/instances_val.json"
    edit(path, change)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a picture without a size
        with pytest.raises(DataError, match=words):
            read_boxes([path], "val")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"image_id": 999},
            "val: left out 1 annotation for pictures .* .annotation 1, image_id 999",
        ),
        (
            {"bbox": [1, 1, 5000, 5000]},
            "val: 1 picture with boxes outside the picture .val-00.jpg, annotation 1",
        ),
    ],
)
def test_odd_annotations_are_counted_in_a_warning(tmp_path, change, words):
    path = write_coco(tmp_path) / "annotations/instances_val.json"
    edit(path, lambda c: c["annotations"][0].update(change))
    with pytest.warns(UserWarning, match=words):
        read_boxes([path], "val")


def test_pictures_of_one_stem_are_two_pictures(tmp_path):
    path = write_coco(tmp_path) / "annotations/instances_val.json"
    images = json.loads(path.read_text())["images"]
    first, second = (tmp_path / "val" / each["file_name"] for each in images[:2])
    Image.open(second).save(first.with_suffix(".png"))
    edit(path, lambda c: c["images"][1].update(file_name=first.with_suffix(".png").name))
    assert len(read_boxes([path], "val")) == len(images)


def test_a_pipe_in_place_of_a_description_is_not_waited_for(tmp_path):
    path = write_coco(tmp_path / "coco") / "annotations/instances_val.json"
    description = write_yolo(tmp_path / "yolo") / "data.yaml"
    for file in (path, description):
        file.unlink()
        os.mkfifo(file)
    with pytest.raises(DataError, match="instances_val.json: is not a file"):
        read_boxes([tmp_path / "coco"], "val")
    read_boxes([tmp_path / "yolo"], "val", names=NAMES)  # as without a description


def test_a_size_of_three_hundred_digits_is_cut(tmp_path):
    path = write_coco(tmp_path) / "annotations/instances_val.json"
    edit(path, lambda c: c["images"][0].update(width=10**300))
    with pytest.raises(DataError, match=r"301 characters\) x ") as error:
        read_boxes([path], "val")
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", '{"images": {}}', "[" * 100_000])
def test_json_that_is_none_of_coco(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match="a.json: not "):
        read_boxes([tmp_path / "a.json"], "a")


# ---------------------------------------------------------------------- what is refused


def test_paths_that_hold_no_data(tmp_path):
    (tmp_path / "empty").mkdir()
    for name, words in {
        "gone": "no such folder or file",
        "empty": "no annotated pictures here; expected a VOCdevkit, a data.yaml",
    }.items():
        with pytest.raises(DataError, match=f"{name}: {words}"):
            read_boxes([tmp_path / name], "train")
    (tmp_path / "classes/train/a").mkdir(parents=True)
    with pytest.raises(DataError, match="class folders, which is for classification; the network"):
        read_boxes([tmp_path / "classes"], "train")


@pytest.mark.parametrize("format", WRITERS)
def test_a_picture_that_is_too_large_is_refused_before_the_work(format, tmp_path):
    from support.pictures import write_png

    folder = WRITERS[format](tmp_path / "shapes")
    (picture,) = folder.rglob("val-02.jpg")
    write_png(picture, "1", (134_300_000, 1))
    with pytest.raises(DataError, match="val-02.jpg: 134300000 x 1 pixels are too many"):
        read_boxes([folder], SPLIT[format])


def test_heic_pictures_of_data_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("spikedet.pictures.reads_heic", lambda: False)
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / split / "a/1.png")
        (tmp_path / split / "a/2.heic").touch()
    (source,) = formats.sources([tmp_path], "classification")
    with pytest.warns(UserWarning, match=r"a: 1 HEIC picture cannot be read \(2.heic\); install"):
        assert len(source.read("train").labels) == 1
    folder = write_yolo(tmp_path / "yolo")
    (folder / "images/val/x.heic").touch()
    with pytest.raises(DataError, match=r"val: 1 HEIC picture cannot be read \(x.heic\)"):
        read_boxes([folder], "val")
    devkit = write_voc(tmp_path / "voc")
    (devkit / "Shapes/JPEGImages/val-00.jpg").unlink()
    (devkit / "Shapes/JPEGImages/val-00.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    with pytest.raises(DataError, match="val-00.HEIC: HEIC pictures cannot be read; install"):
        read_boxes([devkit], "Shapes:val")


# ---------------------------------------------------------------------- choices


def test_every_twentieth_picture_is_kept_aside_where_no_list_says_which(tmp_path):
    samples = read_boxes([write_yolo(tmp_path, {"train": 41})], "train")
    train, tune = split_off_tuning(samples, TUNING)
    assert [s.path.stem for s in tune] == ["train-19", "train-39"] and len(train) == 39
    train, tune = split_off_tuning(samples[:5], TUNING)
    assert [s.path.stem for s in tune] == ["train-04"] and len(train) == 4
    with pytest.raises(DataError, match="1 picture is too few to train with"):
        split_off_tuning(samples[:1], TUNING)


def test_labels_of_training_leave_crowds_out(tmp_path):
    from types import SimpleNamespace

    from spikedet.detection.dataset import SampleDataset

    path = write_coco(tmp_path) / "annotations/instances_val.json"
    edit(path, lambda c: c["annotations"][1].update(iscrowd=1))
    edit(path, lambda c: c["annotations"][2].update(bbox=[5, 5, 0, 9]))
    samples = read_boxes([path], "val")
    labels = SampleDataset.get_labels(SimpleNamespace(samples=samples))
    assert [len(each["cls"]) for each in labels] == [1, 1, 2, 2]
    x1, y1, x2, y2 = samples[0].boxes[0]
    wanted = [(x1 + x2) / 2 / 72, (y1 + y2) / 2 / 56, (x2 - x1) / 72, (y2 - y1) / 56]
    assert np.allclose(labels[0]["bboxes"], [wanted])


@pytest.mark.parametrize("cache", [True, False])
def test_training_sees_the_picture_that_boxes_are_of(tmp_path, cache):
    """Of kinds that OpenCV does not read, or does not turn; a .npy beside it is left alone."""
    from spikedet.detection.dataset import SampleDataset
    from spikedet.detection.ultra import training_options

    folder = write_yolo(tmp_path / "yolo")
    noise = np.random.default_rng(0).integers(0, 255, (56, 72, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    names = ["val-00.jpg", "val-01.avif", "val-02.tif", "val-03.jp2"]
    for picture in (folder / "images/val").iterdir():
        picture.unlink()
    for name in names:
        image = Image.fromarray(cv2.GaussianBlur(noise, (9, 9), 3))
        image.save(folder / "images/val" / name, **({} if name.endswith("jp2") else {"exif": exif}))
        np.save(folder / "images/val" / name.split(".")[0], np.zeros((9, 9, 3), np.uint8))
        (folder / "labels/val" / f"{name.split('.')[0]}.txt").write_text(
            yolo_rows([]) or "0 .5 .5 .5 .5"
        )
    half = np.dstack([noise, np.where(np.arange(72) < 36, 255, 90)[None].repeat(56, 0)])
    palette = Image.fromarray(noise).quantize(16)
    others = {
        "alpha": (Image.fromarray(half.astype(np.uint8)), {}),
        "deep": (Image.fromarray(noise[..., 0].astype(np.uint16) * 16), {}),
        "palette": (palette, {"transparency": 0}),
    }
    for name, (image, options) in others.items():
        names.append(f"{name}.png")
        image.save(folder / "images/val" / names[-1], **options)
        (folder / "labels/val" / f"{name}.txt").write_text("0 .5 .5 .5 .5")
    before = listing(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples = read_boxes([folder], "val")
    assert len(samples) == len(names)
    dataset = SampleDataset(
        samples, imgsz=36, augment=True, hyp=training_options(overrides={}), batch_size=2,
        data={"names": {}, "channels": 3}, cache=cache,
    )  # fmt: skip
    for number, sample in enumerate(samples):
        loaded, size, small = dataset.load_image(number)
        shown = read_picture(sample.path)
        assert size == shown.shape[:2] == (sample.height, sample.width)
        assert tuple(small) == loaded.shape[:2] == ((36, 28) if size == (72, 56) else (28, 36))
        wanted = cv2.resize(shown, loaded.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        assert np.abs(loaded.astype(int) - wanted).mean() < 4
    assert dataset[0]["img"].shape == (3, 36, 36)
    assert listing(folder) == before
