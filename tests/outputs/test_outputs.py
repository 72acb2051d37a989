"""Every output from generated frames: complete, timed as their source, over no input."""

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from spikedet.detection.boxes import Detections, overlaps
from spikedet.detection.draw import draw
from spikedet.detection.track import Tracker
from spikedet.errors import DataError, PictureError, UsageError
from spikedet.outputs import Outputs, Save, VideoFile, entry_of
from spikedet.outputs.names import Names, safe_name
from spikedet.sources import Frame, open_sources

NAMES = ("cat", "dog", "a/b: *")


def found(*rows, **options):
    """Detections of rows (x1, y1, x2, y2, score, label)."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    labels = table[:, 5].astype(np.int64)
    return Detections(table[:, :4], table[:, 4], labels, NAMES, T=8, **options)


def picture(value=100, size=(60, 80)):
    return np.full((*size, 3), value, np.uint8)


def still(name, **options):
    return Frame(picture(), str(name), file=Path(name), **options)


def film(name, times, **options):
    for index, time in enumerate(times):
        shade = picture(20 + 30 * index)
        yield Frame(shade, str(name), index, time, True, None, file=Path(name), **options)


TWO = found((10, 10, 40, 50, 0.9, 0), (30, 5, 79.5, 59, 0.5, 1))


def save(**options):
    return Save(Path("out"), **{"annotated": False, **options})


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def files():
    return sorted(path.as_posix() for path in Path("out").rglob("*") if path.is_file())


# ---------------------------------------------------------------------- pictures and videos


def test_annotated_pictures_and_the_entries_that_name_them():
    with Outputs(save(annotated=True, json=Path("o.json"))) as outputs:
        assert outputs.write(still("a/x.png"), TWO) == [Path("out/x.png")]
        assert outputs.write(still("b/x.png"), found()) == [Path("out/x-2.png")]
        outputs.write(still("c/x.webp"), TWO)
    assert files() == ["out/x-2.png", "out/x-3.png", "out/x.png"]
    entries = json.loads(Path("o.json").read_text())
    assert [entry["annotated"] for entry in entries] == ["out/x.png", "out/x-2.png", "out/x-3.png"]
    assert entries[0] == {
        "file": "a/x.png", "frame": 0, "time": 0.0, "T": 8, "width": 80, "height": 60,
        "annotated": "out/x.png",
        "detections": [
            {"class": "cat", "score": pytest.approx(0.9), "xyxy": [10, 10, 40, 50]},
            {"class": "dog", "score": 0.5, "xyxy": [30, 5, 79.5, 59]},
        ],
    }  # fmt: skip
    assert entries[1]["detections"] == []
    assert outputs.counts.pictures == 3 and outputs.counts.objects == {"cat": 2, "dog": 2}
    assert not np.array_equal(cv2.imread("out/x.png"), cv2.imread("out/x-2.png"))


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv"])
@pytest.mark.parametrize("size", [(60, 80), (61, 79)])
def test_a_video_keeps_the_times_of_its_frames(name, size):
    times, ends = [0.25, 0.35, 0.75, 2.25, 4.75], 4.85
    with VideoFile(Path(name)) as video:
        for index, time in enumerate(times):
            video.write(picture(20 + 40 * index, size), time, 0.1)
    read = list(open_sources([name]))
    assert [f.time + 0.25 for f in read] == pytest.approx(times, abs=2e-3)
    assert read[0].length == pytest.approx(ends - 0.25, abs=2e-3)
    assert read[0].picture.shape == (60 + size[0] % 2 * 2, 80, 3)
    assert np.allclose([f.picture.mean() for f in read], 20 + 40 * np.arange(5), atol=5)


@pytest.mark.parametrize(("duration", "length"), [(2.0, 2.0), (None, 1 / 25)])
def test_a_video_of_one_frame(duration, length):
    with VideoFile(Path("v.mp4")) as video:
        video.write(picture(), 0, duration)
    with av.open("v.mp4") as file:
        assert file.duration / av.time_base == pytest.approx(length, abs=1e-3)


def test_frames_of_another_size_are_fitted_into_the_first():
    with VideoFile(Path("v.mp4")) as video:
        for index, size in enumerate([(60, 80), (120, 160), (60, 20), (10, 400)]):
            video.write(picture(200, size), index)
    read = [frame.picture.mean(axis=(0, 2)) for frame in open_sources(["v.mp4"])]
    assert {len(row) for row in read} == {80} and read[1].min() > 190
    assert read[2][0] < 20 and read[2][40] > 190 and read[2][-1] < 20


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (9, 5000), (8000, 300)])
def test_videos_of_odd_and_huge_pictures(size):
    with VideoFile(Path("v.mp4")) as video:
        for time in range(2):
            video.write(picture(200, size), time)
    read = list(open_sources("v.mp4"))
    assert len(read) == 2 and max(read[0].picture.shape) <= 4096 and read[0].picture.mean() > 160


def test_an_annotated_video_for_each_film_and_its_frames_as_pictures():
    with Outputs(save(annotated=True, frames=True, jsonl=Path("o.jsonl"))) as outputs:
        for frame in [*film("a/v.avi", [0, 0.5, 2]), *film("b/v.avi", [0, 1])]:
            outputs.write(frame, TWO)
    assert files()[:2] == ["out/v-000000.jpg", "out/v-000001.jpg"]
    assert len(files()) == 5 + 2
    assert [frame.time for frame in open_sources(["out/v.mp4"])] == pytest.approx([0, 0.5, 2])
    assert len(list(open_sources(["out/v-2.mp4"]))) == 2
    entries = [json.loads(line) for line in Path("o.jsonl").read_text().splitlines()]
    assert [e["annotated"] for e in entries] == ["out/v.mp4"] * 3 + ["out/v-2.mp4"] * 2
    assert [e["time"] for e in entries] == [0, 0.5, 2, 0, 1]
    assert outputs.counts.frames == 5 and outputs.counts.pictures == 0


def test_time_steps_of_pictures_and_films():
    steps = [replace(TWO, T=1), replace(TWO, T=2)]
    with Outputs(save(annotated=True, json=Path("o.json"))) as outputs:
        assert outputs.write(still("x.jpg"), steps) == [
            Path("out/x-t01.jpg"),
            Path("out/x-t02.jpg"),
        ]
        for frame in film("v.mp4", [0, 2], duration=2.0):
            outputs.write(frame, steps)
    assert [frame.time for frame in open_sources(["out/v.mp4"])] == pytest.approx([0, 1, 2, 3])
    assert [e["T"] for e in json.loads(Path("o.json").read_text())] == [1, 2] * 3
    assert outputs.counts.objects == {"cat": 3, "dog": 3}


def test_a_video_is_whole_when_its_maker_is_interrupted():
    with pytest.raises(KeyboardInterrupt), Outputs(
        save(annotated=True, json=Path("o.json"), jsonl=Path("o.jsonl"), csv=Path("o.csv"))
    ) as outputs:  # fmt: skip
        for frame in film("v.avi", [0, 0.5, 2]):
            outputs.write(frame, TWO)
        raise KeyboardInterrupt
    assert len(list(open_sources(["out/v.mp4"]))) == 3
    assert len(json.loads(Path("o.json").read_text())) == 3
    assert len(Path("o.jsonl").read_text().splitlines()) == 3
    assert len(rows_of("o.csv")) == 6


def test_what_grows_is_complete_all_the_time():
    outputs = Outputs(save(json=Path("o.json"), csv=Path("o.csv"), coco=Path("c.json")))
    for count in (1, 2, 3):
        outputs.write(still("x.png"), TWO)
        assert len(json.loads(Path("o.json").read_text())) == count
        assert len(json.loads(Path("c.json").read_text())) == 2 * count
        assert len(rows_of("o.csv")) == 2 * count
    outputs.close()
    assert len(json.loads(Path("o.json").read_text())) == 3


FULL = """
import resource, sys
sys.path.insert(0, {tests!r})
from test_outputs import *
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
outputs = Outputs(save(annotated=True, json=Path("o.json"), csv=Path("o.csv"), jsonl=Path("l")))
noise = np.random.default_rng(0)
count = 0
try:
    with outputs:
        for index in range(400):
            shade = noise.integers(0, 255, (60, 80, 3), np.uint8)
            outputs.write(Frame(shade, "v.avi", index, index / 10, True, file=Path("v.avi")), TWO)
            count += 1
except OSError as error:
    print(count, error.filename)
"""


@pytest.mark.parametrize(("limit", "first"), [(400_000, "out/v.mp4"), (10_000, None)])
def test_a_full_disk_leaves_whole_files(limit, first):
    """No file may be longer than `limit`, as on a disk that is full then."""
    code = FULL.format(tests=str(Path(__file__).parent), limit=limit)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, name = done.stdout.split()
    assert int(count) > 3 and name in ("out/v.mp4", "o.json", "o.csv", "l")
    assert first is None or name == first
    entries = json.loads(Path("o.json").read_text())
    assert len(entries) in (int(count), int(count) + 1) and len(entries[-1]["detections"]) == 2
    assert all(json.loads(line) for line in Path("l").read_text().splitlines())
    rows = rows_of("o.csv")
    assert len(rows) >= 2 * int(count) and all(row["annotated"] for row in rows)
    if limit == 400_000:
        sources = open_sources("out/v.mp4")
        assert len(list(sources)) > 0 and sources.errors == []
    else:  # not one piece of the video
        assert not Path("out/v.mp4").exists()


def test_a_video_that_is_killed_plays_as_far_as_it_goes():
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); from test_outputs import *\n"
        "video = VideoFile(Path('v.mp4'))\n"
        "noise = np.random.default_rng(0)\n"
        "for index in range(300):\n"
        "    video.write(noise.integers(0, 255, (60, 80, 3), np.uint8), index / 10)\n"
        "os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent)], check=False)
    assert 150 < len(list(open_sources(["v.mp4"]))) <= 300


# ---------------------------------------------------------------------- tables, labels, crops


def test_a_table():
    tracked = replace(TWO, ids=np.array([3, 0]))
    with Outputs(save(csv=Path("new/o.csv"))) as outputs:
        outputs.write(still("a, b.png"), TWO)
        outputs.write(still("none.png"), found())
        outputs.write(list(film("v.mp4", [0, 1.5]))[1], tracked)
    rows = rows_of("new/o.csv")
    assert [row["file"] for row in rows] == ["a, b.png"] * 2 + ["v.mp4"] * 2
    assert [(r["class"], r["x2"], r["id"]) for r in rows[1:]] == [
        ("dog", "79.5", ""), ("cat", "40.0", "3"), ("dog", "79.5", ""),
    ]  # fmt: skip
    assert rows[2]["time"] == "1.5" and rows[2]["frame"] == "1" and files() == []


def test_without_any_frame_files_are_complete():
    with Outputs(save(csv=Path("o.csv"), json=Path("o.json"), coco=Path("c.json"))):
        pass
    assert json.loads(Path("o.json").read_text()) == json.loads(Path("c.json").read_text()) == []
    assert Path("o.csv").read_text().startswith("file,frame,time,T,class,score,x1")


def test_coco_results_count_up_or_take_the_numbers_of_the_annotations():
    from pycocotools.coco import COCO

    annotations = {
        "images": [{"id": 77, "file_name": "x.png", "width": 80, "height": 60}],
        "categories": [{"id": n * 5, "name": name} for n, name in enumerate(NAMES, 1)],
        "annotations": [],
    }
    Path("a.json").write_text(json.dumps(annotations))
    with Outputs(save(coco=Path("1.json"))) as outputs:
        outputs.write(still("y.png"), found())
        outputs.write(still("x.png"), TWO)
    with Outputs(save(coco=Path("2.json"), coco_annotations=Path("a.json"))) as outputs:
        outputs.write(still("x.png"), TWO)
        with pytest.raises(DataError, match="y.png: is not among the images"):
            outputs.write(still("y.png"), TWO)
    first, second = (json.loads(Path(n).read_text()) for n in ("1.json", "2.json"))
    assert [(e["image_id"], e["category_id"]) for e in first] == [(2, 1), (2, 2)]
    assert first[1]["bbox"] == [30, 5, 49.5, 54] and first[1]["file_name"] == "x.png"
    assert len(COCO("a.json").loadRes("2.json").getAnnIds(imgIds=[77], catIds=[10])) == 1
    assert len(second) == 2
    with pytest.raises(DataError, match="expected COCO's annotations"):
        Outputs(save(coco=Path("3.json"), coco_annotations=Path("1.json")))


def test_coco_results_of_several_steps_are_those_of_the_last():
    with Outputs(save(coco=Path("r.json"), jsonl=Path("r.jsonl"))) as outputs:
        outputs.write(still("x.png"), [replace(TWO, T=1), replace(TWO, T=2), TWO])
        outputs.write(still("y.png"), [TWO, found((1, 1, 9, 9, 0.9, 0))])
    entries = json.loads(Path("r.json").read_text())
    assert [entry["image_id"] for entry in entries] == [1, 1, 2]
    assert len(Path("r.jsonl").read_text().splitlines()) == 5


def test_coco_results_of_pictures_that_have_one_name_in_several_folders():
    names = ["a/1.png", "b/1.png", "1.png", "c/2.png"]
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    categories = [{"id": n, "name": name} for n, name in enumerate(NAMES)]
    Path("a.json").write_text(json.dumps({"images": images, "categories": categories}))
    one = found((10, 10, 40, 50, 0.9, 0))
    with Outputs(save(coco=Path("r.json"), coco_annotations=Path("a.json"))) as outputs:
        for name in ("in/b/1.png", "in/1.png", "in/a/1.png", "elsewhere/2.png"):
            outputs.write(still(name), one)
        for name in ("other/1.png", "other/2.png"):
            with pytest.raises(DataError, match=f"{name}: .* has this name too"):
                outputs.write(still(name), one)
    entries = json.loads(Path("r.json").read_text())
    assert [(e["file_name"], e["image_id"]) for e in entries] == [
        ("in/b/1.png", 1), ("in/1.png", 2), ("in/a/1.png", 0), ("elsewhere/2.png", 3)
    ]  # fmt: skip


def test_yolo_labels_are_those_that_training_reads():
    with Outputs(save(yolo=True)) as outputs:
        outputs.write(still("x.png"), TWO)
        for frame in film("v.mp4", [0, 1]):
            outputs.write(frame, found((0, 0, 80, 60, 0.9, 1)))
    assert files() == [
        "out/classes.txt", "out/labels/v-000000.txt", "out/labels/v-000001.txt", "out/labels/x.txt",
    ]  # fmt: skip
    assert Path("out/classes.txt").read_text().splitlines() == list(NAMES)
    assert Path("out/labels/v-000001.txt").read_text() == "1 0.500000 0.500000 1.000000 1.000000\n"


def test_crops():
    frame = still("x.png")
    frame.picture[10:50, 10:40] = (1, 2, 3)
    rows = [(10, 10, 40, 50, 0.9, 0), (9.5, 9.5, 40.5, 50, 0.8, 0), (-5, -5, 90, 90, 0.7, 2)]
    with Outputs(save(crops=True)) as outputs:
        outputs.write(frame, found(*rows, (5, 5, 5, 9, 0.6, 1)))
    assert files() == ["out/crops/a-b/x.png", "out/crops/cat/x-2.png", "out/crops/cat/x.png"]
    assert np.array_equal(cv2.imread("out/crops/cat/x.png"), frame.picture[10:50, 10:40])
    assert cv2.imread("out/crops/cat/x-2.png").shape == (41, 32, 3)
    assert cv2.imread("out/crops/a-b/x.png").shape == (60, 80, 3)


def test_a_folder_of_crops_has_a_name_that_it_can_have():
    long = replace(found((10, 10, 40, 50, 0.9, 0)), names=("\N{HIRAGANA LETTER A}" * 255, "b"))
    with Outputs(save(crops=True)) as outputs:
        outputs.write(still("x.png"), long)
    assert files() == ["out/crops/" + "\N{HIRAGANA LETTER A}" * 85 + "/x.png"]


def test_nothing_at_all():
    with Outputs(save()) as outputs:
        assert outputs.write(still("x.png"), TWO) == []
    assert files() == [] and outputs.counts.objects == {"cat": 1, "dog": 1}


# ---------------------------------------------------------------------- names


def test_no_output_lies_over_an_input():
    Image.fromarray(picture()).save("x.png")
    Path("out").mkdir()
    Path("out/y.png").hardlink_to("x.png")
    Path("link.json").symlink_to("x.png")
    before = Path("x.png").read_bytes()
    inputs = [Path("x.png")]
    for bad in (Path("x.png"), Path("out/../x.png"), Path("link.json")):
        with pytest.raises(UsageError, match="is one of the inputs"):
            Outputs(save(json=bad), inputs)
    outputs = Outputs(Save(Path(".")), inputs), Outputs(save(annotated=True), inputs)
    for one, name in zip(outputs, ["x.png", "y.png"], strict=True):
        with pytest.raises(UsageError, match="is one of the inputs"):
            one.write(still(name), TWO)
    assert Path("x.png").read_bytes() == before
    with pytest.raises(UsageError, match="two outputs have this name"):
        Outputs(save(json=Path("a"), csv=Path("./a")))


def test_names_that_some_file_systems_do_not_tell_apart():
    names = Names()
    assert [names.new(Path(), stem, ".png").name for stem in ("a", "A", "a-2")] == [
        "a.png", "A-2.png", "a-2-2.png",
    ]  # fmt: skip


def test_a_long_name_keeps_its_end():
    names = Names()
    taken = [names.new(Path(), "ä" * 200, "-000001.jpg").name for _ in range(2)]
    assert taken[0].endswith("ä-000001.jpg") and taken[1].endswith("ä-2-000001.jpg")
    assert all(240 < len(name.encode(errors="surrogateescape")) <= 255 for name in taken)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain name", "plain name"),
        ("../x", "x"),
        ("..", ""),
        ("a/b: *", "a-b"),
        ("http-10.0.0.1:80/live?a=b", "http-10.0.0.1-80-live-a=b"),
    ],
)
def test_safe_names(name, expected):
    assert safe_name(name) == expected


def test_names_of_cameras_addresses_and_sequences():
    frames = [
        replace(still("x"), source="camera 0", file=None, video=True),
        replace(still("x"), source="rtsp://me:***@10.0.0.1/live", file=None, video=True),
        replace(still("d/f0001.png"), source="d/f%04d.png", video=True),
        replace(still("d/0001.png"), source="d/%d.png", video=True),
    ]
    with Outputs(save(annotated=True)) as outputs:
        for frame in frames:
            outputs.write(frame, TWO)
    assert files() == [
        "out/camera 0.mp4",
        "out/f.mp4",
        "out/frames.mp4",
        "out/rtsp-10.0.0.1-live.mp4",
    ]


def test_folders_and_pictures_that_cannot_be_written():
    Path("out").touch()
    with pytest.raises(UsageError, match="is not a folder that can be written to"):
        Outputs(save(annotated=True))
    with pytest.raises(UsageError, match=r"v\.xyz: expected a name that ends in \.mp4 or \.mkv"):
        VideoFile(Path("v.xyz"))
    long = Frame(picture(size=(2, 66_000)), "x.jpg", file=Path("x.jpg"))
    with Outputs(Save(Path("new"))) as outputs, pytest.raises(PictureError, match="66000 x 2"):
        outputs.write(long, found())


# ---------------------------------------------------------------------- boxes


def test_one_class_each_keeps_the_best_of_boxes_that_overlap():
    both = found(
        (10, 10, 50, 50, 0.37, 1), (11, 10, 50, 50, 0.54, 0), (60, 10, 70, 20, 0.3, 1),
        ids=np.array([1, 2, 3]),
    )  # fmt: skip
    kept = both.one_class_each()
    assert kept.classes == ["cat", "dog"] and kept.ids.tolist() == [2, 3]
    assert len(both.one_class_each(0.98)) == 3 and len(found().one_class_each()) == 0
    with pytest.raises(UsageError, match="iou is 2"):
        both.one_class_each(2)
    one, others = np.array([0, 0, 2, 2.0]), np.array([[1, 0, 3, 2.0], [5, 5, 5, 5]])
    assert overlaps(one, others) == pytest.approx([1 / 3, 0])


def test_ids_go_everywhere():
    tracked = replace(TWO, ids=np.array([7, 0]))
    assert [one["id"] for one in tracked.to_dict()["objects"]] == [7, None]
    assert [one["id"] for one in entry_of(still("x.png"), tracked)["detections"]] == [7, None]
    assert tracked.only(["cat"]).ids.tolist() == [7]
    assert "id" not in TWO.to_dict()["objects"][0]


def test_an_object_keeps_its_number_through_weak_frames():
    pytest.importorskip("trackers")
    tracker, seen = Tracker(), []
    for number in range(8):
        left, right = 10 + 5 * number, 200 - 5 * number
        rows = [
            (left, 10, left + 30, 50, 0.9, 0),
            (right, 10, right + 40, 50, 0.15 if number == 4 else 0.3, 1),
            (400, 400, 430, 440, 0.15, 0),  # never strong
        ]
        if number == 5:
            del rows[1]
        seen.append(tracker.update(found(*rows), number / 10))
    assert [one.ids.tolist() for one in seen] == [
        [0, 0], [1, 2], [1, 2], [1, 2], [1, 2], [1], [1, 2], [1, 2],
    ]  # fmt: skip
    assert seen[4].classes == ["cat", "dog"]


def test_tracking_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackers", None)
    with pytest.raises(UsageError, match="pip install trackers"):
        Tracker()


# ---------------------------------------------------------------------- drawing


def labels_of(size, rows, **options):
    drawn = draw(found(*rows, picture=picture(128, size)), **options)
    assert drawn.dtype == np.uint8 and drawn.flags.c_contiguous
    return drawn


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (40, 60), (375, 500), (20, 3000)])
@pytest.mark.parametrize("enlarge", [False, True])
def test_any_picture_can_be_drawn_on(size, enlarge):
    height, width = size
    drawn = labels_of(size, [(0, 0, width, height, 0.9, 0), (0, 0, 1, 1, 0.5, 2)], enlarge=enlarge)
    scale = drawn.shape[0] // height
    assert drawn.shape == (height * scale, width * scale, 3) and (scale > 1) == (
        enlarge and min(size) < 128 and max(size) < 2048
    )
    assert draw(found(picture=picture(7, size))).tolist() == picture(7, size).tolist()


def test_labels_of_boxes_on_one_object_cover_each_other_nowhere(monkeypatch):
    places = []
    from spikedet.detection import draw as module

    original = module._place
    monkeypatch.setattr(module, "_place", lambda *a: places.append(original(*a)) or places[-1])
    rows = [(50 + n, 40 + n, 200, 250, 0.9 - n / 10, n % 3) for n in range(6)]
    labels_of((300, 400), rows)
    assert len(places) == 6
    for number, one in enumerate(places):
        assert 0 <= one[0] < one[2] <= 400 and 0 <= one[1] < one[3] <= 300
        assert all(module._shared(one, other) == 0 for other in places[:number])


def test_names_that_are_not_ascii_have_their_letters():
    one = found((5, 40, 90, 90, 0.9, 0), picture=picture(128, (100, 200)))
    drawn = [draw(replace(one, names=(name, "b", "c"))) for name in ("Größe", "Gr??e", "x\n" * 99)]
    assert not np.array_equal(drawn[0], drawn[1])
