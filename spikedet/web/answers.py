"""What the server answers: dicts that become lines of JSON."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from spikedet.detection.boxes import Detections
from spikedet.errors import UsageError
from spikedet.web.viewer import Step, Viewer, encode, spike_maps


def _number(query: Any, name: str, kind: Callable[[str], Any], usual: Any) -> Any:
    """Read a number from the query of a request.

    Raises:
        UsageError: The text is not a number.
    """
    text = query.get(name)
    try:
        return usual if text is None else kind(text)
    except ValueError:
        raise UsageError(f"{name} is {text[:40]!r}; expected a number") from None


def _requested(viewer: Viewer, query: Any) -> tuple[int, float]:
    """Read T and the confidence threshold from the query of a request."""
    return _number(query, "T", int, viewer.T), _number(query, "conf", float, 0.25)


def look(viewer: Viewer, path: Path, query: Any) -> Iterator[dict]:
    """Yield the response to `/look`: the picture, then the detections after each step."""
    T, conf = _requested(viewer, query)
    picture = viewer.read(path)
    looks = viewer.look(picture, T, conf, query.get("float") == "1")
    yield _picture(picture, T)
    for seen in looks:
        if isinstance(seen, Step):
            yield {"kind": "step", **_step(seen)}
        else:
            yield {"kind": "float", "objects": _objects(seen.detections), "seconds": seen.seconds}


def film(viewer: Viewer, path: Path, query: Any) -> Iterator[dict]:
    """Yield the response to `/film`: the detections in each frame of a video."""
    T, conf = _requested(viewer, query)
    for time, seen in viewer.film(path, T, conf):
        assert seen.detections.picture is not None
        yield {"kind": "frame", "time": time, **_picture(seen.detections.picture, T), **_step(seen)}


def spikes(viewer: Viewer, path: Path, query: Any) -> Iterator[dict]:
    """Yield the response to `/spikes`: maps of the spikes of one layer."""
    T, _ = _requested(viewer, query)
    layer = query.get("layer", "")
    maps = spike_maps(viewer.spikes(viewer.read(path), T, layer))
    for each in (*maps["steps"], *maps["channels"]):
        each["png"] = "data:image/png;base64," + b64encode(each["png"]).decode()
    yield {"layer": layer, "T": T, **maps}


def _picture(picture: Any, T: int) -> dict:
    """Encode a picture for the page. Boxes are in pixels of `width` x `height`."""
    height, width = picture.shape[:2]
    data = "data:image/jpeg;base64," + b64encode(encode(picture)).decode()
    return {"kind": "picture", "T": T, "width": width, "height": height, "picture": data}


def _objects(detections: Detections) -> list[dict]:
    """Convert detections to the objects of the JSON response."""
    labels = detections.labels.tolist()
    return [
        {**each, "label": label}
        for each, label in zip(detections.to_dict()["objects"], labels, strict=True)
    ]


def _step(seen: Step) -> dict:
    """Convert a step to its entry in the JSON response."""
    return {
        "t": seen.detections.T,
        "objects": _objects(seen.detections),
        "rate": seen.detections.spike_rate,
        "rates": list(seen.rates.values()),
        "seconds": seen.seconds,
        "energy": seen.energy,
    }


def about(viewer: Viewer) -> dict:
    """The properties of the networks and the limits, for the page."""
    detector, reference = viewer.detector, viewer.reference
    return {
        "weights": detector.weights.name,
        "engine": detector.why_engine,
        "made_for": detector.runner.T,
        "can_run_longer": detector.can_run_longer,
        "T": viewer.T,
        "imgsz": detector.imgsz,
        "names": detector.names,
        "layers": viewer.layers,
        "float": reference.weights.name if reference is not None else None,
        "float_energy": viewer.float_energy,
        "limits": vars(viewer.limits),
    }
