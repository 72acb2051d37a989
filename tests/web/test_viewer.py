"""What the page shows, computed without a browser or a server."""

import cv2
import numpy as np
import pytest

import spikedet
from spikedet.analysis.operations import measure_cost, multiply_accumulates, picojoules
from spikedet.detection.ultra import SAMPLE
from spikedet.errors import PictureError, UsageError
from spikedet.neurons.layers import IFNeuron
from spikedet.pictures import read_picture
from spikedet.released import released
from spikedet.web.viewer import (
    FloatResult,
    Limits,
    Spikes,
    Step,
    Viewer,
    encode,
    heat_map,
    spike_maps,
)
from support.media import write_video

T = 4
pytestmark = [
    pytest.mark.skipif(
        released("snn", T) is None or released("float") is None,
        reason="no weights are released yet",
    ),
    pytest.mark.filterwarnings("ignore:.* was calibrated for T="),
]


@pytest.fixture(scope="module")
def street():
    return read_picture(SAMPLE)


@pytest.fixture(scope="module")
def viewer(street):
    detector, reference = spikedet.load(released("snn", T)), spikedet.load(released("float"))
    return Viewer(detector, reference, street, Limits(T=6, frames=3, megapixels=1))


def test_steps_are_those_of_the_detector(viewer, street):
    *steps, other = viewer.look(street, T, 0.25, beside=True)
    assert [step.detections.T for step in steps] == [1, 2, 3, 4] and isinstance(other, FloatResult)
    alone = list(viewer.detector.steps(street, T, conf=0.25))
    for step, detections in zip(steps, alone, strict=True):
        assert isinstance(step, Step)
        assert np.array_equal(step.detections.boxes, detections.boxes)
        assert np.array_equal(step.detections.scores, detections.scores)
        assert step.detections.spike_rate == detections.spike_rate
    assert len(steps[-1].detections) >= 2
    assert np.array_equal(other.detections.boxes, viewer.reference(street, conf=0.25).boxes)
    spent = [step.seconds for step in steps]
    assert spent == sorted(spent) and spent[0] > 0 and other.seconds > 0


@pytest.mark.parametrize("engine", ["torch", "integers"])
def test_any_engine(street, engine):
    detector = spikedet.load(released("snn", T), engine=engine)
    assert detector.engine == engine
    *_, last = Viewer(detector, None, street).look(street, 2)
    *_, alone = detector.steps(street, 2)
    assert np.array_equal(last.detections.boxes, alone.boxes)
    assert set(last.rates) == {node.name for node in detector.runner.network.graph.of((IFNeuron,))}


def test_a_higher_confidence_leaves_out_what_a_lower_one_finds(viewer, street):
    """The page asks for the lowest one and leaves out boxes itself."""
    (*_, many), (*_, few) = viewer.look(street, T, 0.05), viewer.look(street, T, 0.4)
    kept = many.detections.scores > 0.4
    assert 0 < kept.sum() < len(many.detections)
    assert np.array_equal(many.detections.boxes[kept], few.detections.boxes)


def test_rates_and_energy(viewer, street):
    *_, last = viewer.look(street, T)
    network, picture = viewer.detector.runner.network, viewer._input(street)
    cost = measure_cost(network, [picture], T)
    assert list(last.rates) == viewer.layers == list(cost.rates)
    for name, rate in last.rates.items():  # another engine rounds otherwise
        assert rate == pytest.approx(float(cost.rates[name]), abs=0.01)
    counted = sum(v.sum() for v in cost.accumulates.values())
    multiplied = sum(v.sum() for v in cost.multiplies.values())
    exact = float(picojoules(counted, multiplied)) / 1e9
    assert last.energy == pytest.approx(exact, rel=0.02)
    macs = sum(multiply_accumulates(viewer.reference.runner.network, picture).values())
    assert viewer.float_energy == pytest.approx(float(picojoules(0, macs)) / 1e9, rel=0.01)


def test_spikes_of_a_layer(viewer, street):
    layer = viewer.layers[2]
    spikes = viewer.spikes(street, T, layer)
    network = spikedet.load(released("snn", T), half=False).runner.network  # as spikes are
    cost = measure_cost(network, [viewer._input(street)], T)
    assert len(spikes.steps) == T and spikes.channels.shape[1:] == spikes.steps.shape[1:]
    for mean in (spikes.steps.mean(dtype=float), spikes.channels.mean(dtype=float)):
        assert mean == pytest.approx(float(cost.rates[layer]), rel=1e-4)
    with pytest.raises(UsageError, match="no layer 'x'; expected one of model.0.act"):
        viewer.spikes(street, T, "x")


def test_pictures_of_spikes():
    steps, channels = np.zeros((20, 2, 3), np.float32), np.zeros((9, 2, 3), np.float32)
    steps[19, 0, 1] = 0.5
    channels[4, 1, 2] = 0.6
    maps = spike_maps(Spikes(steps, channels))
    assert [each["t"] for each in maps["steps"]] == [1, 4, 6, 9, 12, 15, 17, 20]
    assert [each["channel"] for each in maps["channels"]] == [4, 0, 1, 2, 3, 5, 6, 7]
    assert maps["channels"][0]["rate"] == pytest.approx(0.1)
    last = cv2.imdecode(np.frombuffer(maps["steps"][-1]["png"], np.uint8), cv2.IMREAD_COLOR)
    assert last.shape == (2 * 53, 3 * 53, 3)
    bright = last.reshape(2, 53, 3, 53, 3).sum(-1).mean((1, 3))
    assert bright.argmax() == 1  # row 0, column 1
    assert len(spike_maps(Spikes(np.zeros((1, 2, 2)), np.zeros((3, 2, 2))))["channels"]) == 3
    assert heat_map(np.full((500, 4), 2.0))  # larger than asked for, and above one


@pytest.mark.parametrize(
    ("shape", "shown"), [((30, 2000), (19, 1280)), ((50, 40), (50, 40)), ((4000, 1), (1280, 1))]
)
def test_large_pictures_are_shrunk(shape, shown):
    data = encode(np.zeros((*shape, 3), np.uint8))
    assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape[:2] == shown


def test_a_film(viewer, tmp_path):
    film = write_video(tmp_path / "film.mp4", [0, 0.1, 0.5, 0.7], 0.8)
    seen = list(viewer.film(film, 2))
    assert [time for time, _ in seen] == pytest.approx([0, 0.1, 0.5])  # three frames at most
    assert all(step.detections.T == 2 for _, step in seen)


def test_what_is_refused(viewer, street, tmp_path):
    for steps in (0, 7):
        with pytest.raises(UsageError, match=f"T is {steps}; expected 1 to 6 time steps here"):
            viewer.look(street, steps)
    with pytest.raises(UsageError, match="conf is 2"):
        list(viewer.look(street, T, 2.0))
    (tmp_path / "words").write_text("words")
    with pytest.raises(PictureError, match="is not a picture"):
        viewer.read(tmp_path / "words")
    with pytest.raises(PictureError, match="is not a video"):
        list(viewer.film(tmp_path / "words", T))
    cv2.imwrite(str(tmp_path / "large.png"), np.zeros((1000, 1001, 3), np.uint8))
    for read in (viewer.read, lambda path: list(viewer.film(path, T))):
        with pytest.raises(PictureError, match="1001 x 1000 pixels are too many here; expected at"):
            read(tmp_path / "large.png")
    reference, viewer.reference = viewer.reference, None
    try:
        with pytest.raises(UsageError, match="there is no float network"):
            viewer.look(street, T, beside=True)
    finally:
        viewer.reference = reference
    with pytest.raises(UsageError, match="these weights have no time steps"):
        Viewer(viewer.reference, None, street)


def test_the_longest_time(viewer, street, tmp_path):
    limited = Viewer(viewer.detector, None, street, Limits(seconds=1e-9))
    film = write_video(tmp_path / "film.mp4", [0, 0.1], 0.2)
    for work in (
        limited.look(street, 2),
        limited.film(film, 1),
        (limited.spikes(street, 1, name) for name in limited.layers),
    ):
        with pytest.raises(UsageError, match="stopped after 1e-09 seconds, the longest time"):
            list(work)
