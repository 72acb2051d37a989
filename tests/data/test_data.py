"""The VOC reader on a small devkit, and everything that can be wrong with one."""

import os

import pytest

from spikedet.data.cache import read_each
from spikedet.data.formats import voc
from spikedet.data.formats.voc_xml import parse_annotation
from spikedet.detection import data
from spikedet.detection.data import parse_splits, read_voc, split_off_tuning
from spikedet.detection.defaults import TUNING
from spikedet.errors import DataError
from support.devkits import add, annotation
from support.places import ROOT


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPIKEDET_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def devkit(tmp_path):
    folder = tmp_path / "VOCdevkit"
    add(folder, "VOC2007", "000001", annotation(("dog", (1, 1, 60, 40), False)))
    add(folder, "VOC2007", "000002", annotation(("cat", (11, 6, 20, 15), True)))
    add(folder, "VOC2007", "000003", annotation())
    add(folder, "VOC2012", "2008_000001", annotation(("bus", (2, 3, 4, 5), False)), "trainval")
    add(folder, "VOC2012", "2007_000001", annotation(("bus", (2, 3, 4, 5), False)), "trainval")
    return folder


@pytest.mark.parametrize(
    ("mark", "difficult"),
    [("1", True), ("true", True), (" 0 ", False), ("False", False), ("", False)],
)
def test_marks_of_difficult_objects(tmp_path, mark, difficult):
    xml = annotation(("dog", (1, 1, 20, 20), False)).replace(">0</diff", f">{mark}</diff")
    (tmp_path / "a.xml").write_text(xml)
    assert parse_annotation(tmp_path / "a.xml").difficult == [difficult]


def test_a_mark_that_says_nothing_is_refused(tmp_path):
    xml = annotation(("dog", (1, 1, 20, 20), False)).replace(">0</diff", ">perhaps</diff")
    (tmp_path / "a.xml").write_text(xml)
    with pytest.raises(DataError, match="difficult is 'perhaps' in an object; expected 0 or 1"):
        parse_annotation(tmp_path / "a.xml")


def test_boxes_are_edges_and_difficult_is_kept(devkit):
    first, second, third = read_voc(devkit, "VOC2007:train")
    assert first.boxes.tolist() == [[0, 0, 60, 40]] and not first.difficult[0]
    assert second.boxes.tolist() == [[10, 5, 20, 15]] and second.difficult[0]
    assert (second.width, second.height) == (60, 40)
    assert data.VOC_CLASSES[second.labels[0]] == "cat"
    assert third.boxes.shape == (0, 4)


def test_years_are_merged_and_copies_of_2007_dropped(devkit):
    samples = read_voc(devkit, "VOC2007:train+VOC2012:trainval")
    assert [s.id for s in samples][-1] == "VOC2012/2008_000001" and len(samples) == 4


def test_a_picture_listed_twice_comes_once(devkit):
    assert len(read_voc(devkit, "VOC2007:train+VOC2007:train")) == 3


def test_limit(devkit):
    samples = read_voc(devkit, "VOC2007:train+VOC2012:trainval", limit=2)
    assert [s.id for s in samples] == ["VOC2007/000001", "VOC2007/000002"]


def test_several_devkits(devkit, tmp_path):
    add(tmp_path / "more", "COCO", "7", annotation(("dog", (1, 1, 9, 9), False)))
    samples = read_voc([devkit, tmp_path / "more"], "VOC2007:train+COCO:train")
    assert len(samples) == 4 and samples[-1].id == "COCO/7"


def listing(folder):
    return {p: p.stat().st_mtime_ns for p in sorted(folder.rglob("*"))}


def test_nothing_is_written_beside_the_pictures(devkit):
    before = listing(devkit)
    read_voc(devkit, "VOC2007:train")
    assert listing(devkit) == before


def test_annotations_come_from_the_cache_until_they_change(devkit, monkeypatch):
    read_voc(devkit, "VOC2007:train")
    calls = []
    original = voc.parse_annotation
    monkeypatch.setattr(voc, "parse_annotation", lambda *a: calls.append(a) or original(*a))
    assert read_voc(devkit, "VOC2007:train")[1].difficult[0] and calls == []
    changed = annotation(("dog", (1, 1, 5, 5), False), ("dog", (2, 2, 6, 6), False))
    (devkit / "VOC2007/Annotations/000002.xml").write_text(changed)
    assert len(read_voc(devkit, "VOC2007:train")[1].labels) == 2 and len(calls) == 1


@pytest.mark.parametrize(
    ("objects", "words"),
    [
        ([("dog", (20, 1, 10, 9), False)], "upside down"),
        ([("dog", (1, 9, 10, 1), False)], "upside down"),
        ([("dog", (1, 1, 90, 9), False)], "outside its picture of 60 x 40"),
        ([("dog", (-5, 1, 9, 9), False)], "outside its picture"),
        ([("dog", (61, 1, 61, 9), False)], "outside its picture"),
        ([("dog", (1, 0, 9, 0), False)], "outside its picture"),
        ([("zebra", (1, 1, 9, 9), False)], "unknown class 'zebra'"),
        ([("dog", (1, 1, "x", 9), False)], "not a number"),
        ([("dog", (1, "nan", 9, 9), False)], "not a number"),
    ],
)
def test_bad_boxes_are_named(devkit, objects, words):
    (devkit / "VOC2007/Annotations/000002.xml").write_text(annotation(*objects))
    with pytest.raises(DataError, match=f"000002.xml.*{words}"):
        read_voc(devkit, "VOC2007:train")


def test_missing_and_broken_files_are_named(devkit):
    folder = devkit / "VOC2007"
    (folder / "Annotations/000001.xml").write_text("<annotation><size>")
    with pytest.raises(DataError, match="000001.xml: not readable as VOC XML"):
        read_voc(devkit, "VOC2007:train")
    (folder / "Annotations/000001.xml").unlink()
    with pytest.raises(DataError, match="000001.xml: annotation is missing"):
        read_voc(devkit, "VOC2007:train")
    (folder / "JPEGImages/000002.jpg").unlink()
    with pytest.raises(DataError, match="000001.xml.*and 1 more"):
        read_voc(devkit, "VOC2007:train")
    with pytest.raises(DataError, match="no such split; VOC2007 has train"):
        read_voc(devkit, "VOC2007:val")
    with pytest.raises(DataError, match="VOC2010: no such folder"):
        read_voc(devkit, "VOC2010:val")


def test_a_box_one_pixel_beyond_its_picture_is_clipped(devkit):
    (devkit / "VOC2007/Annotations/000002.xml").write_text(
        annotation(("dog", (0, 0, 61, 41), False))
    )
    assert read_voc(devkit, "VOC2007:train")[1].boxes.tolist() == [[0, 0, 60, 40]]


def test_missing_pictures_are_named(devkit):
    pictures = devkit / "VOC2007/JPEGImages"
    (pictures / "000002.jpg").unlink()
    with pytest.raises(DataError, match="000002.jpg: picture is missing; train.txt lists it$"):
        read_voc(devkit, "VOC2007:train")
    pictures.rename(devkit / "elsewhere")
    with pytest.raises(DataError, match="000001.jpg: picture is missing.*and 2 more"):
        read_voc(devkit, "VOC2007:train")


def test_an_empty_split_is_refused(devkit):
    (devkit / "VOC2007/ImageSets/Main/none.txt").write_text("\n")
    with pytest.raises(DataError, match="none.txt: the split is empty"):
        read_voc(devkit, "VOC2007:none")


@pytest.mark.parametrize("text", ["VOC2007", "VOC2007:", "VOC2007/train", "", "a:b+"])
def test_bad_split_lists(text):
    with pytest.raises(DataError, match="VOC2007:train"):
        parse_splits(text)


def test_tuning_pictures_are_kept_apart(devkit, tmp_path, caplog):
    (tmp_path / "ids.txt").write_text("# two\nVOC2007/000002.JPG\nVOC2007/999999\n")
    samples = read_voc(devkit, "VOC2007:train")
    train, tune = split_off_tuning(samples, tmp_path / "ids.txt")
    assert [s.id for s in tune] == ["VOC2007/000002"] and len(train) == 2
    assert "1 of 2 lines name no picture of the data, for example VOC2007/999999" in caplog.text
    caplog.clear()
    (tmp_path / "known.txt").write_text("VOC2007/000002\n")
    split_off_tuning(samples, tmp_path / "known.txt")
    assert not caplog.text
    with pytest.raises(DataError, match="0 of the 2"):
        split_off_tuning(train, tmp_path / "ids.txt")
    with pytest.raises(DataError, match="gone.txt: list of tuning pictures"):
        split_off_tuning(train, tmp_path / "gone.txt")


def test_the_committed_tuning_list():
    ids = data.tuning_ids(ROOT / "configs/tuning_ids.txt")
    assert len(set(ids)) == 300 and all(i.startswith("VOC2007/") for i in ids)


def test_our_own_splits_need_no_file_in_the_devkit(tmp_path):
    for number in data.SPLITS.joinpath("VOC2007-spikedet-val.txt").read_text().split()[:2]:
        add(tmp_path, "VOC2007", number, annotation())
    samples = read_voc(tmp_path, "VOC2007:spikedet-val", limit=2, cache=tmp_path)
    assert [sample.id for sample in samples] == ["VOC2007/000005", "VOC2007/000007"]
    assert data.trained_on(samples) == 0
    add(tmp_path, "VOC2007", "000012", annotation())  # of spikedet-train
    assert data.trained_on(read_voc(tmp_path, "VOC2007:train", cache=tmp_path)) == 1
    with pytest.raises(DataError, match="no such split; VOC2007 has train"):
        read_voc(tmp_path, "VOC2007:spikedet-test", cache=tmp_path)


def test_what_was_measured_on_was_never_trained_on():
    lists = {p.stem: set(p.read_text().split()) for p in data.SPLITS.glob("*.txt")}
    assert len(lists["VOC2007-spikedet-val"]) == 1000
    assert not lists["VOC2007-spikedet-val"] & lists["VOC2007-spikedet-train"]
    tuning = {line.split("/")[1] for line in data.read_lines(TUNING) if line.startswith("VOC")}
    assert len(tuning) == 300 and tuning < lists["VOC2007-spikedet-train"]


def test_a_fingerprint_knows_pictures_and_annotations(tmp_path):
    add(tmp_path, "VOC2007", "1", annotation(("dog", (1, 1, 9, 9), False)))

    def found():
        return data.fingerprint(read_voc(tmp_path, "VOC2007:train", cache=tmp_path / "cache"))

    first = found()
    assert first == found() and len(first) == 12
    (tmp_path / "VOC2007/Annotations/1.xml").write_text(annotation(("dog", (1, 1, 9, 8), False)))
    second = found()
    with (tmp_path / "VOC2007/JPEGImages/1.jpg").open("ab") as file:
        file.write(b"0")
    assert len({first, second, found()}) == 3


@pytest.mark.parametrize("damage", ["[]", "{}", "\0", "4 0\n{}", "changed", "cut"])
def test_a_damaged_cache_is_read_again(tmp_path, damage):
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for number, path in enumerate(files):
        path.write_text(str(number))

    def values():
        return read_each(files, lambda path: [path.read_text()], "x", tmp_path, tmp_path / "cache")

    assert values() == values() == [["0"], ["1"]]
    (stored,) = (tmp_path / "cache").iterdir()
    text = stored.read_text()
    damaged = {"changed": text.replace('["1"]', "[]"), "cut": text[:-5]}.get(damage, damage)
    assert damaged != text
    stored.write_text(damaged)
    assert values() == [["0"], ["1"]]


def test_a_file_of_the_same_size_and_time_is_read_again(tmp_path):
    """As archives and copies keep times, some of them one for all files."""
    path = tmp_path / "a.txt"

    def value(text):
        (tmp_path / "new").write_text(text)
        os.utime(tmp_path / "new", (1, 1))
        os.replace(tmp_path / "new", path)
        (content,) = read_each([path], lambda p: p.read_text(), "x", tmp_path, tmp_path / "cache")
        return content

    assert value("one") == "one" and value("two") == "two"
