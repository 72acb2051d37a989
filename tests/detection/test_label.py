"""Boxes of trained detectors for pictures that nobody annotated."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from spikedet.detection import label
from spikedet.detection.boxes import VOC_CLASSES, overlaps
from spikedet.detection.data import read_voc
from spikedet.detection.label import Journal, Object, coco, fuse, mirrored, rename_classes
from spikedet.detection.ultra import foreign_detector
from spikedet.errors import DataError, TrainingError, WeightsError
from spikedet.pictures import read_picture
from spikedet.released import released
from support.commands import command

CAT, FAR = (10.0, 10.0, 50.0, 50.0), (60.0, 60.0, 90.0, 90.0)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (CAT, CAT, 1.0),
        (CAT, FAR, 0.0),
        (CAT, (50, 10, 90, 50), 0.0),  # they touch
        (CAT, (30, 10, 70, 50), 1 / 3),
        (CAT, (20, 20, 20, 40), 0.0),  # no area
        ((0, 0, 0, 0), (0, 0, 0, 0), 0.0),
    ],
)
def test_iou(one, other, expected):
    one, other = np.array(one, float), np.array(other, float)
    assert overlaps(one, other[None]) == overlaps(other, one[None]) == pytest.approx(expected)


def test_what_all_views_show_keeps_its_score_and_what_one_shows_has_its_part():
    moved = (14.0, 10.0, 54.0, 50.0)
    views = [[Object("cat", 0.9, CAT)], [Object("cat", 0.3, moved), Object("dog", 0.8, FAR)]]
    first, second = fuse(views)
    assert (first.name, second.name) == ("cat", "dog")
    assert first.score == pytest.approx(0.6) and second.score == pytest.approx(0.4)
    assert first.box == pytest.approx((11, 10, 51, 50))  # three quarters of the way to the surer
    assert second.box == FAR


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        ([[]], []),
        ([[], []], []),
        ([[Object("cat", 0.5, CAT)]], [("cat", 0.5)]),
        ([[Object("cat", 0.5, CAT)], [Object("dog", 0.5, CAT)]], [("cat", 0.25), ("dog", 0.25)]),
        ([[Object("cat", 0.5, CAT), Object("cat", 0.4, CAT)]], [("cat", 0.5), ("cat", 0.4)]),
        ([[Object("cat", 0.5, CAT)], [Object("cat", 0.5, FAR)]], [("cat", 0.25), ("cat", 0.25)]),
        ([[Object("cat", 0.0, CAT)], [Object("cat", 0.0, CAT)]], [("cat", 0.0)]),
    ],
)
def test_objects_that_are_one_and_objects_that_are_not(views, expected):
    assert [(each.name, pytest.approx(each.score)) for each in fuse(views)] == expected


def test_of_two_groups_the_nearer_takes_a_box():
    near = (12.0, 10.0, 52.0, 50.0)
    left = (0.0, 10.0, 40.0, 50.0)
    views = [[Object("cat", 0.9, left), Object("cat", 0.8, CAT)], [Object("cat", 0.5, near)]]
    assert [each.score for each in fuse(views)] == pytest.approx([0.65, 0.45])


def test_one_object_of_two_classes():
    objects = [Object("cat", 0.4, CAT), Object("dog", 0.5, CAT), Object("cat", 0.3, FAR)]
    assert [each.name for each in label.remove_duplicates(objects, 0.8)] == ["dog", "cat"]
    assert len(label.remove_duplicates(objects, 1.0)) == 3
    assert label.remove_duplicates([], 0.8) == []


def test_new_names_and_the_classes_that_are_kept():
    objects = [Object("couch", 0.4, CAT), Object("giraffe", 0.5, FAR)]
    assert [o.name for o in rename_classes(objects, {"couch": "sofa"}, None)] == ["sofa", "giraffe"]
    assert [o.name for o in rename_classes(objects, {"couch": "sofa"}, ["sofa"])] == ["sofa"]
    assert rename_classes(objects, {}, []) == []


def bright(picture):
    """A teacher that finds the bright square, whose score is how many pixels wide it is."""
    rows, columns = np.nonzero(picture.max(2) > 200)
    if not len(rows):
        return []
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    return [Object("cat", 0.5, tuple(map(float, box)))]


def test_boxes_of_the_mirrored_picture_are_of_the_picture():
    picture = np.zeros((40, 100, 3), np.uint8)
    picture[5:15, 20:50] = 255
    assert mirrored(bright)(picture) == bright(picture) == [Object("cat", 0.5, (20, 5, 50, 15))]
    assert mirrored(bright)(np.zeros((40, 100, 3), np.uint8)) == []


def test_a_journal_goes_on_behind_a_line_that_was_cut(tmp_path):
    path, settings = tmp_path / "deep/journal", {"conf": 0.1, "one": None}
    journal = Journal(path, settings, False)
    journal.add("a.jpg", 4, 3, [Object("cat", 0.123456, (0.0, 1.0, 2.0, 2.99999))], 9)
    journal.add("b/c.jpg", 4, 3, [], 9)
    whole = path.read_text()
    path.write_text(whole[:-7])
    again = Journal(path, settings, True)
    assert list(again.done) == ["a.jpg"]
    assert again.done["a.jpg"]["objects"] == [["cat", 0.1235, [0.0, 1.0, 2.0, 3.0]]]
    again.add("b/c.jpg", 4, 3, [], 9)
    assert path.read_text() == whole
    with pytest.raises(TrainingError, match="holds a run; add --resume"):
        Journal(path, settings, False)
    with pytest.raises(TrainingError, match="a run with other conf; choose another --out"):
        Journal(path, {**settings, "conf": 0.2}, True)
    path.write_text("{}\nnonsense\n")
    with pytest.raises(DataError, match="damaged; delete it"):
        Journal(path, settings, True)


def test_a_journal_cut_in_its_first_line_begins_anew(tmp_path):
    (tmp_path / "journal").write_text('{"conf": 0.')
    journal = Journal(tmp_path / "journal", {"conf": 0.1}, True)
    assert journal.done == {}
    journal.add("a.jpg", 4, 3, [], 9)
    assert list(Journal(tmp_path / "journal", {"conf": 0.1}, True).done) == ["a.jpg"]


def test_a_coco_file():
    entries = [
        {"file_name": "a.jpg", "width": 9, "height": 8, "objects": []},
        {"file_name": "b.jpg", "width": 9, "height": 8, "objects": [["dog", 0.5, [1, 2, 4, 8]]]},
    ]
    content = coco(entries, ["cat", "dog"], {"by": "us"})
    assert content == {
        "info": {"by": "us"},
        "images": [
            {"id": 1, "file_name": "a.jpg", "width": 9, "height": 8},
            {"id": 2, "file_name": "b.jpg", "width": 9, "height": 8},
        ],
        "annotations": [
            {
                "id": 1,
                "image_id": 2,
                "category_id": 2,
                "bbox": [1, 2, 3, 6],
                "area": 18,
                "iscrowd": 0,
                "score": 0.5,
            }
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


class Bright:
    """A stand-in for a detector; `broken` ends the run at that picture, as a kill does."""

    names = ("cat", "couch", "giraffe")
    broken = None

    def __init__(self, path, conf, iou, imgsz, device):
        self.looked = []

    def __call__(self, picture):
        self.looked.append(picture.shape[:2])
        if len(self.looked) == self.broken:
            raise KeyboardInterrupt
        return [*bright(picture), Object("giraffe", 0.4, (0.0, 0.0, 5.0, 5.0))]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three pictures, one in a sub-folder, and something else; the detector is a stand-in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(label, "Foreign", Bright)
    monkeypatch.setattr(Bright, "broken", None)
    for number, name in enumerate(("a.jpg", "sub/b.jpg", "c.jpg")):
        picture = np.zeros((40, 60, 3), np.uint8)
        picture[10:30, 10 * number : 10 * number + 20] = 255
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, 100])
    (tmp_path / "in/notes.txt").write_text("no picture")
    (tmp_path / "w.onnx").write_bytes(b"weights")
    return tmp_path


WORDS = ["in", "--weights", "w.onnx", "--out", "out.json"]


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


def test_a_folder_becomes_a_data_set_to_train_on(folder, monkeypatch, capsys):
    before = files(folder / "in")
    assert command(monkeypatch, "label", *WORDS, "--voc", "--mirror") == 0
    assert "out.json: 3 boxes in 3 pictures" in capsys.readouterr().out
    assert files(folder / "in") == before and not (folder / "out.json.partial").exists()
    content = json.loads((folder / "out.json").read_text())
    assert [row["name"] for row in content["categories"]] == ["cat", "sofa"]  # in VOC's order
    assert [row["file_name"] for row in content["images"]] == ["a.jpg", "c.jpg", "sub/b.jpg"]
    assert str(folder) not in json.dumps(content)
    words = ["--pictures", "in", "--coco", "out.json", "--out", "kit/CATS", "--split", "train"]
    assert command(monkeypatch, "import-boxes", *words) == 0
    samples = read_voc(Path("kit"), "CATS:train")
    assert [sample.id for sample in samples] == ["CATS/a", "CATS/b", "CATS/c"]
    for sample, left in zip(samples, (0, 10, 20), strict=True):
        assert [VOC_CLASSES[n] for n in sample.labels] == ["cat"]
        assert sample.boxes[0] == pytest.approx([left, 10, left + 20, 30], abs=1)


def test_pictures_that_cannot_be_read_are_named_and_hidden_files_left_out(
    folder, monkeypatch, capsys
):
    from spikedet import pictures

    monkeypatch.setattr(pictures, "reads_heic", lambda: False)
    (folder / "in/sub/d.HEIC").touch()
    for name in ("in/._a.jpg", "in/sub/._b.jpg", "in/.hidden/a.jpg"):  # as of macOS
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"no picture")
    assert command(monkeypatch, "label", *WORDS) == 3
    shown = capsys.readouterr()
    assert "out.json: 6 boxes in 3 pictures" in shown.out
    assert "error: in: 1 HEIC picture cannot be read (d.HEIC)" in shown.err
    words = ["--pictures", "in", "--coco", "out.json", "--out", "kit/CATS", "--split", "train"]
    assert command(monkeypatch, "import-boxes", *words) == 0


def test_a_killed_run_goes_on(folder, monkeypatch, capsys):
    monkeypatch.setattr(Bright, "broken", 3)
    assert command(monkeypatch, "label", *WORDS) == 130
    assert not (folder / "out.json").exists()
    assert command(monkeypatch, "label", *WORDS) == 6
    assert "holds a run; add --resume" in capsys.readouterr().err
    monkeypatch.setattr(Bright, "broken", 2)  # one picture is left
    assert command(monkeypatch, "label", *WORDS, "--resume") == 0
    content = json.loads((folder / "out.json").read_text())
    assert len(content["images"]) == 3 and len(content["annotations"]) == 6
    assert command(monkeypatch, "label", *WORDS) == 2  # what is finished is not written over
    assert "out.json exists already" in capsys.readouterr().err


def test_a_picture_that_was_exchanged_meanwhile_is_looked_at_again(folder, monkeypatch):
    monkeypatch.setattr(Bright, "broken", 3)
    assert command(monkeypatch, "label", *WORDS) == 130
    monkeypatch.setattr(Bright, "broken", None)
    assert cv2.imwrite("in/a.jpg", np.zeros((8, 8, 3), np.uint8))
    (folder / "in/c.jpg").unlink()
    assert command(monkeypatch, "label", *WORDS, "--resume") == 0
    content = json.loads((folder / "out.json").read_text())
    sizes = {row["file_name"]: (row["width"], row["height"]) for row in content["images"]}
    assert sizes == {"a.jpg": (8, 8), "sub/b.jpg": (60, 40)}
    names = {row["id"]: row["file_name"] for row in content["images"]}
    cats = [row for row in content["annotations"] if row["category_id"] == 1]
    assert [names[row["image_id"]] for row in cats] == ["sub/b.jpg"]


def test_a_run_of_other_weights_of_the_same_name_does_not_go_on(folder, monkeypatch, capsys):
    for name in ("one", "two", "three"):
        (folder / name).mkdir()
        (folder / name / "best.onnx").write_text(name)
    out = ["in", "--out", "out.json", "--weights"]
    monkeypatch.setattr(Bright, "broken", 2)
    assert command(monkeypatch, "label", *out, "one/best.onnx", "two/best.onnx") == 130
    monkeypatch.setattr(Bright, "broken", None)
    for others in (["three/best.onnx", "two/best.onnx"], ["two/best.onnx"]):
        assert command(monkeypatch, "label", *out, *others, "--resume") == 6
        assert "belongs to a run with other weights" in capsys.readouterr().err
    assert command(monkeypatch, "label", *out, "one/best.onnx", "two/best.onnx", "--resume") == 0


def test_what_a_journal_holds_survives_a_kill_while_it_is_mended(tmp_path, monkeypatch):
    path = tmp_path / "journal"
    journal = Journal(path, {}, False)
    journal.add("a.jpg", 4, 3, [], 9)
    with path.open("a") as file:
        file.write('{"file_name')

    def kill(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("os.replace", kill)
        Journal(path, {}, True)
    assert list(Journal(path, {}, True).done) == ["a.jpg"]


def test_a_damaged_picture_does_not_end_the_run(folder, monkeypatch, capsys):
    (folder / "in/b.png").write_bytes(b"")
    assert command(monkeypatch, "label", *WORDS, "--classes", "cat") == 3
    seen = capsys.readouterr()
    assert "b.png: is empty" in seen.err and "3 boxes in 3 pictures" in seen.out


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--classes", "dog"], 2, "unknown class 'dog'; there are cat, couch, giraffe"),
        (["--classes", "giraf"], 2, "there are cat, couch, giraffe (did you mean giraffe?)"),
        (["--voc", "--classes", "giraffe"], 2, "unknown class 'giraffe'; there are cat, sofa"),
        (["--rename", "couch"], 2, "--rename 'couch': expected OLD=NEW"),
        (["--rename", "dog=cat"], 2, "--rename: no detector knows 'dog'"),
        (["--conf", "2"], 2, "not a number between 0 and 1"),
        (["--out", "out.txt"], 2, "expected a name that ends in .json"),
    ],
)
def test_what_cannot_be_meant(folder, monkeypatch, capsys, words, code, sentence):
    assert command(monkeypatch, "label", *WORDS, *words) == code
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(("name", "sentence"), [("gone", "no such folder"), ("no", "no pictures")])
def test_folders_without_pictures(folder, monkeypatch, capsys, name, sentence):
    (folder / "no").mkdir()
    assert command(monkeypatch, "label", name, *WORDS[1:]) == 3
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("name", ["yolov8n.pt", "empty.onnx", "text.pt"])
def test_what_ultralytics_cannot_read_is_one_sentence(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for file in ("empty.onnx", "text.pt"):
        (tmp_path / file).write_text("" if file.startswith("empty") else "nothing")
    with pytest.raises(WeightsError) as error:
        foreign_detector(Path(name))
    assert str(error.value).startswith(name) and len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "yolov8n.pt").exists()  # and nothing is fetched


@pytest.mark.skipif(not released("float"), reason="no released weights")
def test_our_own_detector_teaches_as_well(tmp_path, monkeypatch):
    from spikedet.detection.ultra import SAMPLE

    (tmp_path / "in").mkdir()
    (tmp_path / "in/bus.jpg").write_bytes(SAMPLE.read_bytes())
    monkeypatch.chdir(tmp_path)
    words = ["in", "--weights", released("float"), "--conf", 0.3, "--out", "found.json"]
    assert command(monkeypatch, "label", *words) == 0
    content = json.loads((tmp_path / "found.json").read_text())
    names = {row["id"]: row["name"] for row in content["categories"]}
    assert "bus" in {names[row["category_id"]] for row in content["annotations"]}
    assert command(monkeypatch, "label", *words[:-1], "other.json", "--imgsz", 64) == 2


def data(**changes):
    """A small COCO file as a dict."""
    content = {
        "images": [{"id": 7, "file_name": "x/a.jpg", "width": 120, "height": 80}],
        "categories": [{"id": 3, "name": "couch"}, {"id": 4, "name": "giraffe"}],
        "annotations": [
            {"image_id": 7, "category_id": 3, "bbox": [20, 20, 40, 40]},
            {"image_id": 7, "category_id": 4, "bbox": [0, 0, 9, 9]},
            {"image_id": 7, "category_id": 3, "bbox": [0, 0, 40, 40], "iscrowd": 1},
            {"image_id": 7, "category_id": 3, "bbox": [0, 60, 40, 20], "score": 0.3},
        ],
    }
    return {**content, **changes}


COCO = ["--pictures", "in", "--coco", "1.json", "--out", "kit/C", "--split", "train"]


def test_coco_files_are_imported_and_a_later_one_adds_what_is_new(folder, monkeypatch):
    (folder / "1.json").write_text(json.dumps(data()))
    more = [
        {"image_id": 7, "category_id": 3, "bbox": [22, 20, 40, 40], "score": 0.9},  # the same
        {"image_id": 7, "category_id": 3, "bbox": [80, 20, 40, 40], "score": 0.9},
        {"image_id": 7, "category_id": 3, "bbox": [82, 20, 40, 40], "score": 0.8},
    ]
    (folder / "2.json").write_text(json.dumps(data(annotations=more)))
    assert command(monkeypatch, "import-boxes", *COCO) == 0
    (only,) = read_voc(Path("kit"), "C:train")
    assert only.boxes.tolist() == [[10, 10, 30, 30]]  # half the size, as the picture is
    words = [*COCO[:4], "2.json", "--out", "kit/D", "--split", "train"]
    assert command(monkeypatch, "import-boxes", *words) == 0
    (both,) = read_voc(Path("kit"), "D:train")
    # two boxes of one file may overlap: it knows what it means
    assert both.boxes.tolist() == [[10, 10, 30, 30], [40, 10, 60, 30], [41, 10, 60, 30]]
    words = [*COCO[:4], "--out", "kit/E", "--split", "train", "--least-score", "0.2"]
    assert command(monkeypatch, "import-boxes", *words) == 0
    (low,) = read_voc(Path("kit"), "E:train")
    assert low.boxes.tolist() == [[10, 10, 30, 30], [0, 30, 20, 40]]


@pytest.mark.parametrize("turn", range(1, 9))
def test_boxes_of_stored_pixels_are_turned_as_the_picture_is(folder, monkeypatch, capsys, turn):
    stored = np.zeros((40, 60, 3), np.uint8)
    stored[5:20, 8:40] = 255
    for name, number in (("a.jpg", turn), ("c.jpg", 6)):  # c.jpg shows that tags are ignored
        exif = Image.Exif()
        exif[0x0112] = number
        Image.fromarray(stored).save(folder / "in" / name, exif=exif, quality=98)
    images = [
        {"id": 7, "file_name": "a.jpg", "width": 60, "height": 40},
        {"id": 8, "file_name": "c.jpg", "width": 60, "height": 40},
    ]
    rows = [{"image_id": n, "category_id": 3, "bbox": [8, 5, 32, 15]} for n in (7, 8)]
    (folder / "1.json").write_text(json.dumps(data(images=images, annotations=rows)))
    assert command(monkeypatch, "import-boxes", *COCO) == 0
    assert "a rotation tag that the annotations ignore" in capsys.readouterr().err
    for sample in read_voc(Path("kit"), "C:train"):
        shown = read_picture(sample.path).max(2) > 128
        rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
        edges = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert sample.boxes.tolist() == [edges]


def test_a_coco_size_of_another_shape_is_refused(folder, monkeypatch, capsys):
    images = [{"id": 7, "file_name": "a.jpg", "width": 120, "height": 40}]
    (folder / "1.json").write_text(json.dumps(data(images=images)))
    assert command(monkeypatch, "import-boxes", *COCO) == 3
    assert "which is another shape" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "not a COCO file"),
        ("[]", "not a COCO file"),
        ("{}", "not a COCO file"),
        (json.dumps(data(annotations=[{"image_id": 7}])), "not a COCO file"),
        (json.dumps(data(annotations=[{"image_id": 8, "category_id": 3}])), "not a COCO file"),
        (json.dumps(data(images=data()["images"] * 2)), "two pictures named a"),
        (
            json.dumps(data(images=[{"id": 7, "file_name": "gone.jpg", "width": 1, "height": 1}])),
            "gone: no such picture in --pictures",
        ),
    ],
)
def test_coco_files_that_cannot_be_imported(folder, monkeypatch, capsys, content, sentence):
    (folder / "1.json").write_text(content)
    assert command(monkeypatch, "import-boxes", *COCO) == 3
    shown = capsys.readouterr().err
    assert sentence in shown and len(shown.splitlines()) == 1
    assert not (folder / "kit").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([*COCO, "--names", "x"], "--names: COCO files contain"),
        (["--pictures", "in", "--xml", "in", "--out", "o", "--least-score", "0.2"], "only boxes"),
    ],
)
def test_options_of_other_inputs(folder, monkeypatch, capsys, words, sentence):
    assert command(monkeypatch, "import-boxes", *words) == 2
    assert sentence in capsys.readouterr().err
