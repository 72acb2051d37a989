"""Box selection, the Python interface and drawing, on an untrained network."""

import numpy as np
import pytest
import torch
from PIL import Image

import spikedet
from spikedet.checkpoint import Checkpoint, load, save
from spikedet.detection.boxes import VOC_CLASSES, Detections
from spikedet.detection.data import Sample
from spikedet.detection.description import build, read_description
from spikedet.detection.predict import select
from spikedet.detection.samples import BoxSamples
from spikedet.detection.task import DETECTION
from spikedet.detection.ultra import SAMPLE
from spikedet.errors import PictureError, UsageError, WeightsError
from spikedet.networks import spiking_checkpoint
from spikedet.released import default_weights
from spikedet.settings import StageOne
from spikedet.stages import stage_one, stage_two
from support.places import ROOT


def raw(*rows, classes=2):
    """[4 + C, A] of (cx, cy, w, h, scores...)."""
    return torch.tensor(rows, dtype=torch.float32).T


def test_select_converts_sorts_and_suppresses():
    boxes, scores, labels = select(
        raw(
            (50, 50, 20, 10, 0.6, 0.0),
            (51, 50, 20, 10, 0.9, 0.0),  # the same object, better
            (50, 50, 20, 10, 0.0, 0.7),  # another class
            (90, 90, 10, 10, 0.1, 0.0),  # below the confidence
        ),
        0.25,
        0.6,
    )
    assert labels.tolist() == [0, 1] and scores.tolist() == pytest.approx([0.9, 0.7])
    assert boxes.tolist() == [[41, 45, 61, 55], [40, 45, 60, 55]]


def test_one_box_counts_for_every_class_above_the_confidence():
    boxes, scores, labels = select(raw((50, 50, 20, 10, 0.6, 0.5)), 0.25, 0.6)
    assert labels.tolist() == [0, 1] and len(boxes) == 2


def test_select_nothing_and_limit():
    boxes, scores, labels = select(raw((50, 50, 20, 10, 0.1, 0.1)), 0.25, 0.6)
    assert boxes.shape == (0, 4) and scores.shape == labels.shape == (0,)
    rows = [(x * 100, 50, 20, 10, 0.5, 0.0) for x in range(150)]
    assert len(select(raw(*rows), 0.25, 0.6)[1]) == 100


def test_of_many_boxes_of_a_class_the_best_are_kept():
    rows = [(x * 100, 50, 20, 10, 0.3 + x / 1000, 0.0) for x in range(150)]
    boxes, scores, labels = select(raw(*rows), 0.25, 0.6)
    assert scores.tolist() == pytest.approx([0.3 + x / 1000 for x in range(149, 49, -1)])
    assert boxes[0].tolist() == [14890, 45, 14910, 55] and set(labels) == {0}
    assert len(select(raw(*rows[:80]), 0.25, 0.6)[1]) == 80
    assert len(select(raw(*rows), 0.25, 0.6, most=51)[1]) == 51


@pytest.mark.parametrize("threshold", [0.25, 0.001, 0.1, 1 / 3, 0.5, 1.0])
def test_a_score_equal_to_the_threshold_is_below_it(threshold):
    at = np.float32(threshold)
    above, below = np.nextafter(at, np.float32(2)), np.nextafter(at, np.float32(0))
    rows = [(90 * n, 50, 20, 10, score, 0.0) for n, score in enumerate((at, above, below))]
    _, scores, _ = select(raw(*rows), threshold, 0.6)
    assert scores.tolist() == [above]


def test_no_score_is_no_detection_with_a_threshold_of_zero():
    boxes, scores, _ = select(raw((50, 50, 20, 10, 0.0, 0.0), (90, 50, 20, 10, 1e-30, 0)), 0.0, 0.6)
    assert scores.tolist() == pytest.approx([1e-30]) and boxes[0].tolist() == [80, 45, 100, 55]


def test_boxes_that_overlap_by_no_more_than_the_threshold_stay():
    rows = ((50, 50, 20, 10, 0.9, 0.0), (50, 47.5, 20, 5, 0.8, 0.0))  # one is half of the other
    assert len(select(raw(*rows), 0.25, 0.5)[1]) == 2
    assert len(select(raw(*rows), 0.25, 0.49)[1]) == 1


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files of an untrained network in all stages."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    description = read_description(model_file(), "n")
    network = build(description, 20)
    for branch in network.model[-1].cv3:
        branch[-1].bias.data.fill_(-1.0)  # scores high enough to be seen
    checkpoint = Checkpoint(
        "float", "detection", description, VOC_CLASSES, 64, network.state_dict()
    )
    save(checkpoint, folder / "float.safetensors")
    noise = np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(folder / "noise.png")
    nothing = np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, bool)
    samples = BoxSamples([Sample("noise", folder / "noise.png", 64, 64, *nothing)])
    qc = stage_one.untuned(DETECTION, checkpoint, samples, 4)
    save(qc, folder / "qc.safetensors")
    save(spiking_checkpoint(qc, stage_two.copied(DETECTION, qc), {}), folder / "snn.safetensors")
    return folder


def model_file():

    return ROOT / "configs/models/tiny-yolo.yaml"


def test_thresholds_of_each_channel_do_not_start_from_one_a_layer(weights):
    with pytest.raises(WeightsError, match="have one threshold per layer"):
        stage_one.quantized(
            DETECTION,
            load(weights / "qc.safetensors"),
            BoxSamples([]),
            4,
            StageOne(per_channel=True),
        )


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 255, (48, 90, 3), np.uint8)


@pytest.mark.parametrize("stage", ["float", "qc", "snn"])
def test_every_stage_runs(weights, picture, stage):
    detections = spikedet.load(weights / f"{stage}.safetensors")(picture)
    assert (4 if stage == "snn" else None) == detections.T
    assert len(detections) > 0
    assert (detections.boxes[:, ::2] <= 90).all() and (detections.boxes[:, 1::2] <= 48).all()
    assert (np.diff(detections.scores) <= 0).all()
    assert set(detections.classes) <= set(VOC_CLASSES)
    assert detections.plot().shape == picture.shape


def test_path_array_and_list_agree(weights, picture, tmp_path):
    Image.fromarray(picture[..., ::-1]).save(tmp_path / "a.png")
    detector = spikedet.load(weights / "snn.safetensors")
    one = detector(picture)
    several = detector([tmp_path / "a.png", picture, picture[..., 0]], batch=2)
    assert isinstance(one, Detections) and len(several) == 3
    assert several[0].file == str(tmp_path / "a.png") and several[1].file is None

    def rows(detections):
        return np.c_[detections.scores, detections.labels, detections.boxes]

    for other in several[:2]:  # equal scores come in any order
        apart = np.abs(rows(one)[:, None] - rows(other)).max(-1)
        assert len(one) == len(other) and apart.min(0).max() < 1e-2 > apart.min(1).max()
    assert detector([]) == []


def test_pillow_images_are_pictures_and_other_things_are_not(weights, picture, tmp_path):
    detector = spikedet.load(weights / "snn.safetensors")
    upright = Image.fromarray(picture[..., ::-1])
    exif = Image.Exif()
    exif[0x0112] = 6  # as it is shown after a quarter turn to the right
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.png", exif=exif)
    wanted = detector(picture, conf=0.0)
    for image in (upright, upright.convert("RGBA"), Image.open(tmp_path / "a.png")):
        found = detector(image, conf=0.0)
        assert np.array_equal(found.boxes, wanted.boxes) and found.file is None
        assert np.array_equal(found.picture, wanted.picture)
    for other in (None, 3, b"a.png", {"a.png"}, torch.zeros(3, 8, 8), [None], [3]):
        with pytest.raises(PictureError, match="is not a picture; expected a path, an array"):
            detector(other)
    with pytest.raises(UsageError, match="conf is 'a'; expected a number between 0 and 1"):
        detector(picture, conf="a")


def test_a_T_that_the_weights_were_not_made_for_warns_once_and_runs(weights, picture):
    detector = spikedet.load(weights / "snn.safetensors")
    with pytest.warns(UserWarning, match="calibrated for T=4, not T=6"):
        assert detector(picture, T=6).T == 6
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert detector(picture, T=6).T == 6
        assert detector(picture).T == 4


@pytest.mark.parametrize("device", ["mps", "cuda:99", "gpu"])
def test_devices_that_are_not_here_are_refused_by_name(weights, device):
    with pytest.raises(UsageError, match=f"'{device}'"):
        spikedet.load(weights / "snn.safetensors", device=device)


def same(one, other):
    assert one.labels.tolist() == other.labels.tolist() and one.T == other.T
    assert np.allclose(one.scores, other.scores, atol=1e-5)
    assert np.allclose(one.boxes, other.boxes, atol=1e-2)


@pytest.mark.parametrize("chunk", [None, 2])
def test_decoded_steps_equal_separate_runs(weights, chunk):
    runner = spikedet.load(weights / "snn.safetensors", half=False).runner
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        steps = list(runner.steps(pictures, 6, chunk))
        assert [t for t, _, _ in steps] == [1, 2, 3, 4, 5, 6]
        for t, decoded, rate in steps:
            assert torch.allclose(decoded, runner(pictures, t), atol=1e-3) and 0 < rate < 1


@pytest.mark.filterwarnings("ignore:tiny-yolo-s-snn-T8.safetensors was calibrated")
def test_steps_of_the_released_weights_equal_separate_calls():
    try:
        detector = spikedet.load(T=8, half=False)
    except WeightsError:
        pytest.skip("no spiking weights are released yet")
    steps = list(detector.steps(SAMPLE, 6))
    assert [len(detections) > 0 for detections in steps] == [True] * 6
    assert {"person", "bus"} <= set(steps[-1].classes)
    for detections in steps:
        assert detections.file == str(SAMPLE)
        same(detections, detector(SAMPLE, T=detections.T))


def test_steps_that_are_left_early_leave_nothing(weights, picture):
    detector = spikedet.load(weights / "snn.safetensors")
    before = detector(picture)
    for detections in detector.steps(255 - picture, chunk=1):
        if detections.T == 2:
            break
    after = detector(picture)
    assert np.array_equal(before.scores, after.scores)
    assert np.array_equal(before.boxes, after.boxes)


def test_steps_say_what_is_wrong_when_called(weights, picture):
    detector = spikedet.load(weights / "snn.safetensors")
    with pytest.raises(UsageError, match="T is 0"):
        detector.steps(picture, 0)
    with pytest.raises(UsageError, match="iou is -1"):
        detector.steps(picture, iou=-1)
    with pytest.raises(PictureError, match="no such picture"):
        detector.steps("gone.jpg")
    with pytest.raises(UsageError, match="qc weights have no time steps"):
        spikedet.load(weights / "qc.safetensors").steps(picture)


@pytest.mark.parametrize("T", [0, -3])
def test_T_below_one(weights, picture, T):
    with pytest.raises(UsageError, match=f"T is {T}"):
        spikedet.load(weights / "snn.safetensors", T=T)
    with pytest.raises(UsageError, match=f"T is {T}"):
        spikedet.load(weights / "snn.safetensors")(picture, T=T)


def test_bad_arguments(weights, picture):
    detector = spikedet.load(weights / "float.safetensors")
    with pytest.raises(UsageError, match="conf is 2"):
        detector(picture, conf=2)
    for bad in (picture.astype(float), picture[..., :2], np.zeros((0, 5, 3), np.uint8)):
        with pytest.raises(PictureError, match="expected"):
            detector(bad)
    with pytest.raises(WeightsError, match="no such weights file"):
        spikedet.load("nowhere.safetensors")


def test_tensors_that_do_not_fit_are_refused(weights, tmp_path):
    checkpoint = load(weights / "snn.safetensors")
    del checkpoint.tensors["model.0.act.initial"]
    save(checkpoint, tmp_path / "w")
    with pytest.raises(WeightsError, match="model.0.act.initial of the graph is not in the file"):
        spikedet.load(tmp_path / "w")
    checkpoint = load(weights / "float.safetensors")
    del checkpoint.tensors["model.0.conv.weight"]
    save(checkpoint, tmp_path / "w")
    with pytest.raises(WeightsError, match="do not fit"):
        spikedet.load(tmp_path / "w")
    checkpoint.task = "pose"
    save(checkpoint, tmp_path / "w")
    with pytest.raises(WeightsError, match="for pose"):
        spikedet.load(tmp_path / "w")


def test_default_weights(tmp_path, monkeypatch):
    from spikedet import released

    monkeypatch.setattr(released, "weights_folder", lambda: tmp_path)
    with pytest.raises(WeightsError, match="no spiking weights"):
        default_weights(8)
    for T in (8, 20):
        (tmp_path / f"tiny-yolo-s-snn-T{T}.safetensors").touch()
    names = [default_weights(T).stem.split("-")[-1] for T in (None, 1, 8, 9, 20, 50)]
    assert names == ["T20", "T8", "T8", "T20", "T20", "T20"]


@pytest.mark.parametrize("shape", [(32, 32), (40, 3000), (3000, 40), (480, 640)])
def test_drawing_changes_a_copy_only(shape):
    picture = np.full((*shape, 3), 127, np.uint8)
    height, width = shape
    detections = Detections(
        np.array([[2, 2, width - 2, height - 2], [-5, -5, width + 9, 9]], np.float32),
        np.array([0.9, 0.5], np.float32),
        np.array([3, 14]),
        VOC_CLASSES,
        picture=picture,
    )
    drawn = detections.plot()
    assert drawn.shape == picture.shape and (picture == 127).all()
    assert (drawn != 127).any(2).mean() > 0.005
    detections.picture = None
    with pytest.raises(ValueError, match="no picture"):
        detections.plot()


def test_only_some_classes():
    detections = Detections(
        np.zeros((2, 4)), np.array([0.9, 0.8]), np.array([0, 1]), ("cat", "dog")
    )
    assert detections.only(["dog"]).classes == ["dog"] and detections.only(["cow"]).classes == []


@pytest.mark.parametrize("value", [0, -1, 2.5, "4"])
def test_counts_of_the_python_interface_are_checked(weights, picture, value):
    detector = spikedet.load(weights / "snn.safetensors")
    wanted = f"is {value!r}; expected an integer (of 1 or more|from 1 to 10000)"
    for call in (
        lambda: spikedet.load(T=value),
        lambda: detector(picture, T=value),
        lambda: detector(picture, batch=value),
        lambda: detector.steps(picture, chunk=value),
    ):
        with pytest.raises(UsageError, match=wanted):
            call()


def test_the_released_classifier_is_loaded_by_its_task():
    assert spikedet.load(T=8, task="classification").names[0] == "airplane"
    with pytest.raises(WeightsError, match="no released weights for speech; expected detection or"):
        spikedet.load(task="speech")
