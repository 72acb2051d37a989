"""`spikedet detect` from every source to every output, with a detector that finds what is light."""

import csv
import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import spikedet
from spikedet.commands.detect import SAVED
from spikedet.commands.main import main
from spikedet.detection import predict
from spikedet.detection.boxes import Detections
from spikedet.sources import Frame, Sources, live
from support.media import animation, shade, write_video
from support.places import ROOT


class Detector:
    """Finds the light block of a picture as a cat, and as a dog with less confidence."""

    names = ("cat", "dog")

    why_engine = "torch: no network at all"

    def __init__(self, weights, T, device, half, engine):
        self.weights, self.T = Path(weights), T or 8
        Detector.asked = engine

    def __call__(self, picture, T=None, conf=0.25, iou=0.6, patience=None, every=4):
        if patience:
            T = every * (1 + patience)
        rows, columns = np.nonzero(picture[..., 0] > 200)
        if not len(rows):
            boxes, scores = np.zeros((0, 4)), np.zeros(0)
        else:
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            boxes, scores = np.array([box, box]), np.array([0.54, 0.37])
        detections = Detections(
            boxes.astype(np.float32), scores.astype(np.float32), np.arange(len(boxes)),
            self.names, T or self.T, picture,
        )  # fmt: skip
        return detections.some(detections.scores > conf)

    def steps(self, picture, T=None, conf=0.25, iou=0.6):
        for t in range(1, self.T + 1):
            yield self(picture, t, conf, iou)


def block(left, value=255, size=(60, 80)):
    picture = shade(50, size)
    picture[10:40, left : left + 30] = value
    return picture


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(predict, "Predictor", Detector)
    Image.fromarray(block(10)).save("a.png")
    (tmp_path / "deep/er").mkdir(parents=True)
    Image.fromarray(block(20)).save("deep/b.jpg", quality=100)
    Image.fromarray(block(30)).save("deep/er/c.png")
    Path("deep/notes.md").write_text("words")


@pytest.fixture
def run(capsys):
    def run(*words):
        with pytest.raises(SystemExit) as done:
            main("detect", [*map(str, words), "--weights", "w.safetensors"])
        out, err = capsys.readouterr()
        return done.value.code, out, err.replace(f"engine {Detector.why_engine}\n", "", 1)

    return run


def written(folder="detections"):
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*.*"))


def film(name="v.mp4", times=(0, 0.1, 0.5, 2.0), end=2.5):
    write_video(name, times, end, size=(60, 80))
    return name


def test_pictures_of_folders_in_folders(run):
    code, out, err = run("a.png", "deep", "--recursive")
    assert code == 0
    assert err == "warning: 1 file is neither a picture nor a video that can be read (notes.md)\n"
    lines = out.splitlines()
    assert lines[:2] == [
        "a.png: cat 0.540 10.0 10.0 40.0 40.0", "a.png: dog 0.370 10.0 10.0 40.0 40.0",
    ]  # fmt: skip
    assert lines[-1] == (
        "6 objects in 3 pictures, T=8, w.safetensors; annotated pictures in detections "
        "(3 cat, 3 dog)"
    )
    assert written() == ["a.png", "b.jpg", "c.png"]
    assert run("deep")[1].splitlines()[-1].startswith("2 objects in 1 picture, ")


def test_every_output_of_a_picture_a_film_and_an_animation(run):
    animation("g.gif")
    code, out, err = run(
        "a.png", film(), "g.gif", "--save", "pictures", "frames", "crops", "labels", "--json",
        "o.json", "--jsonl", "o.jsonl", "--csv", "o.csv", "--coco", "c.json",
    )  # fmt: skip
    assert code == 0 and err == ""
    entries = json.loads(Path("o.json").read_text())
    assert entries == [json.loads(line) for line in Path("o.jsonl").read_text().splitlines()]
    assert [e["file"] for e in entries] == ["a.png"] + ["v.mp4"] * 4 + ["g.gif"] * 3
    assert [e["time"] for e in entries][1:5] == pytest.approx([0, 0.1, 0.5, 2.0])
    assert {e["annotated"] for e in entries} == {
        "detections/a.png", "detections/v.mp4", "detections/g.mp4",
    }  # fmt: skip
    with open("o.csv") as file:
        assert len(list(csv.DictReader(file))) == len(json.loads(Path("c.json").read_text())) == 2
    assert {"a.png", "v.mp4", "g.mp4", "v-000003.jpg", "g-000002.jpg", "crops/cat/a.png",
            "crops/dog/a.png", "labels/a.txt", "labels/v-000000.txt"} <= set(written())  # fmt: skip
    assert "in 1 picture and 7 frames" in out
    assert [f.time for f in detect_sources("detections/v.mp4")] == pytest.approx([0, 0.1, 0.5, 2.0])


def detect_sources(*words):
    from spikedet.sources import open_sources

    return list(open_sources(words))


def test_nothing_is_written_where_nothing_is_wanted(run):
    assert run("a.png", "--save", "none")[0] == 0 and not Path("detections").exists()
    assert run("a.png", "--save", "none", "crops")[0] == 2


def test_one_class_an_object(run):
    assert "1 object in 1 picture" in run("a.png", "--one-class")[1]
    assert "1 object in 1 picture" in run("a.png", "--classes", "dog")[1]
    assert "0 objects in 1 picture" in run("a.png", "--classes", "dog", "--one-class")[1]


def test_time_steps(run):
    code, out, _ = run("a.png", film(), "--T", 3, "--each-step", "--json", "o.json")
    assert code == 0 and "2 objects in 1 picture and 4 frames, T=3" in out
    assert written() == ["a-t01.png", "a-t02.png", "a-t03.png", "v.mp4"]
    assert len(json.loads(Path("o.json").read_text())) == 15
    assert len(detect_sources("detections/v.mp4")) == 12


def test_objects_of_a_film_keep_their_numbers(run):
    pytest.importorskip("trackers")
    for number in range(5):
        Image.fromarray(block(10 + 4 * number)).save(f"f{number}.png")
    code, out, _ = run("f%d.png", "--frame-rate", 10, "--track", "--one-class", "--json", "o.json")
    assert code == 0 and "f%d.png 0.10 s: cat #1 0.540 14.0" in out
    ids = [[d["id"] for d in e["detections"]] for e in json.loads(Path("o.json").read_text())]
    assert ids == [[None], [1], [1], [1], [1]]
    assert written() == ["f.mp4"]
    code, _, err = run("f0.png", "--frame-rate", 10)
    assert code == 2 and "no source is numbered pictures" in err and written() == ["f.mp4"]
    code, _, err = run("f%d.png", "--track", "--each-step")
    assert code == 2 and "leave out --each-step" in err


def test_what_is_damaged_is_said_and_the_rest_is_done(run):
    Path("v.mkv").write_bytes(b"")
    write_video("w.avi", np.arange(60) / 25, 2.4, "mpeg4", {})
    data = Path("w.avi").read_bytes()
    Path("w.avi").write_bytes(data[: len(data) * 8 // 10])
    code, out, err = run("v.mkv", "w.avi", "gone.png", "a.png", "--frames", 50)
    assert code == 3
    named = [line.split(": ")[1] for line in err.splitlines()]
    assert sorted(set(named)) == ["gone.png", "v.mkv", "w.avi"]
    assert "w.avi: is cut short" in err and "in 1 picture and " in out
    assert len(detect_sources("detections/w.mp4")) > 9


def test_ctrl_c_leaves_whole_files_and_says_what_was_done(run, monkeypatch):
    original = Sources.__iter__

    def interrupted(self):
        for number, frame in enumerate(original(self)):
            if number == 3:
                raise KeyboardInterrupt
            yield frame

    monkeypatch.setattr(Sources, "__iter__", interrupted)
    code, out, err = run(film(), "--json", "o.json")
    assert code == 130 and "interrupted" in err and "0 objects in 3 frames" in out
    assert len(json.loads(Path("o.json").read_text())) == 3
    assert len(detect_sources("detections/v.mp4")) == 3


def test_a_full_disk_ends_the_run_in_one_sentence(run, monkeypatch):
    def full(file, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("spikedet.outputs.text.write_all", full)
    code, _, err = run("a.png", "--jsonl", "o.jsonl")
    assert code == 1 and err == "error: o.jsonl: No space left on device\n"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["a.png", "--out", "."], 3, "a.png: is one of the inputs"),
        (["a.png", "--json", "deep.json/x.json"], 2, "is not a folder"),
        (["a.png", "--csv", "a.png"], 2, "a.png: is one of the inputs"),
        (["a.png", "--csv", "x", "--jsonl", "x"], 2, "two outputs have this name"),
        (["a.png", "--coco-annotations", "x"], 2, "has no effect without --coco"),
        (["a.png", "--save", "everything"], 2, "expected pictures, frames, crops, labels or none"),
        (["a.png", "--out", "a.png"], 2, "is not a folder that can be written to"),
        (["a.png", "--classes", "cow"], 2, "unknown class 'cow'"),
        (["a.png", "--classes", "cats"], 2, "know cat, dog (did you mean cat?)"),
        (["nowhere"], 3, "nowhere: no such file or folder"),
    ],
)
def test_what_is_refused(run, words, code, said):
    Path("deep.json").touch()
    before = Path("a.png").read_bytes()
    done, _, err = run(*words)
    assert done == code and said in err and err.count("error: ") == 1, err
    assert Path("a.png").read_bytes() == before


def test_a_bar_on_a_terminal(run, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    code, _, err = run("a.png", film())
    assert code == 0 and "of 2.5 s" in err and "picture" in err


def test_a_strip_has_a_panel_a_step_and_its_boxes_as_csv(run):
    code, out, err = run("a.png", "deep", film(), "--strip", "--save", "none", "--T", 3)
    assert code == 0 and err.count("--strip is not for videos") == 1, err
    assert written() == ["a-strip-T3.csv", "a-strip-T3.png", "b-strip-T3.csv", "b-strip-T3.png"]
    with open("detections/a-strip-T3.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["T"], row["class"]) for row in rows] == [
        (t, name) for t in "123" for name in ("cat", "dog")
    ]
    assert {(row["x1"], row["y2"]) for row in rows} == {("10.0", "40.0")}
    with Image.open("detections/a-strip-T3.png") as picture:
        assert picture.width > 2 * picture.height


def test_a_strip_beside_annotated_pictures_and_without_objects(run):
    Image.fromarray(shade(50, (60, 80))).save("dark.png")
    code, _, _ = run("dark.png", "--strip", "--T", 2)
    assert code == 0 and written() == ["dark-strip-T2.csv", "dark-strip-T2.png", "dark.png"]
    text = Path("detections/dark-strip-T2.csv").read_text()
    assert text == "T,class,score,x1,y1,x2,y2\n"
    assert "leave out --strip" in run("a.png", "--strip", "--track")[2]
    assert "--strip shows every step" in run("a.png", "--strip", "--patience", 2)[2]


# ---------------------------------------------------------------------- docs/detect.md


def blocks(kind):
    text = (ROOT / "docs/detect.md").read_text()
    return re.findall(rf"```{kind}\n(.*?)```", text, re.S)


COMMANDS = [
    shlex.split(line, comments=True)[2:]
    for block in blocks("sh")
    for line in block.splitlines()
    if line.startswith("spikedet detect")
]


@pytest.fixture
def page(monkeypatch):
    """What the page looks at; in place of a camera and of an address a picture."""
    Image.fromarray(block(10)).save("image.jpg")
    for name in ("holiday/a.png", "holiday/in/b.png", "frames/a.png", "f0001.png", "f0002.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(block(10)).save(name)
    Path("list.txt").write_text("# mine\nimage.jpg\nholiday\n")
    film("film.mp4")
    animation("cat.gif")
    files = {
        "images": [{"id": 7, "file_name": "a.png"}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    Path("instances_val.json").write_text(json.dumps(files))
    for kind in (live.Camera, live.Address):
        monkeypatch.setattr(kind, "frames", one_frame)


def one_frame(self, problems):
    yield Frame(block(10), self.name, video=True)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_commands_of_the_page(run, page, words):
    if "--track" in words:
        pytest.importorskip("trackers")
    code, out, err = run(*words)
    assert code == 0 and err == "" and "object" in out, err
    outputs = [words[n + 1] for n, word in enumerate(words) if word in ("--json", "--csv")]
    assert all(Path(name).stat().st_size > 9 for name in outputs)


def test_the_page_names_what_there_is(run, page):
    assert len(COMMANDS) > 12
    text = (ROOT / "docs/detect.md").read_text()
    code, out, _ = run("--help-all")
    assert code == 0
    for option in set(re.findall(r"--[a-z-]+", text)):
        assert f"{option} " in out, option
    assert set(re.findall(r"^\| `(\w+)`", text, re.M)) == set(SAVED)
    (entry,) = map(json.loads, blocks("json"))
    run("film.mp4", "--json", "o.json", "--csv", "o.csv")
    assert set(entry) == set(json.loads(Path("o.json").read_text())[0])


def test_the_code_of_the_page(page, monkeypatch):
    monkeypatch.setattr(spikedet, "load", lambda T: Detector("w", T, "cpu", None, "auto"))
    (code,) = blocks("python")
    names = {}
    exec(compile(code, "detect.md", "exec"), names)
    assert names["sources"].errors == [] and names["outputs"].counts.pictures == 2
    assert len(Path("found.jsonl").read_text().splitlines()) == 6
    assert written("out") == ["a.png", "b.png", "film.mp4"]


def test_the_engine_is_asked_for_and_said_on_standard_error(capsys):
    for words, engine in ([], "auto"), (["--engine", "integers"], "integers"):
        with pytest.raises(SystemExit) as done:
            main("detect", ["a.png", "--weights", "w.safetensors", "--save", "none", *words])
        out, err = capsys.readouterr()
        assert (done.value.code, Detector.asked) == (0, engine)
        assert err == "engine torch: no network at all\n" and "engine" not in out


def test_an_engine_that_is_not_there_is_one_sentence(run):
    code, out, err = run("a.png", "--engine", "fast", "--json", "found.json")
    assert code == 2 and not out and "no engine 'fast'; expected auto, torch, events" in err
    assert err.count("\n") == 1 and not Path("detections").exists()
    assert not Path("found.json").exists()


def test_early_exit(run):
    code, out, _ = run("a.png", "--patience", 2, "--every", 3, "--T", 20, "--json", "found.json")
    assert code == 0 and "T=20 or fewer" in out
    (entry,) = json.loads(Path("found.json").read_text())
    assert entry["T"] == 9
    for words, why in (
        (["--every", 2], "--every: has no effect without --patience"),
        (["--patience", 2, "--each-step"], "--patience: --each-step shows every step up to T"),
        (["--patience", 0], "patience"),
    ):
        code, _, err = run("a.png", *words)
        assert code == 2 and why in err
