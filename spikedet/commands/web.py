"""Show in the browser what a spiking network sees: boxes, firing rates, spikes, energy.

    spikedet web

Open the address that the command prints. The page takes a picture, a video or the camera of the
browser. It shows a spiking detector beside its float network. Only this machine can reach the page,
unless you set --host. The page asks no other server for anything and keeps nothing. First run
`pip install spikedet[web]`.
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spikedet.commands import kinds, parse, shared
from spikedet.errors import UsageError
from spikedet.options import option

if TYPE_CHECKING:
    from spikedet.detection.predict import Predictor


@dataclass(kw_only=True)
class Options(parse.Options):
    """Options of the command."""

    weights: Path | None = option(
        None, "spiking weights (default: the released weights)", kind=kinds.weights
    )
    T: int | None = shared.steps("time steps at the start (default: the T of the weights)")
    reference: Path | None = option(
        None,
        "float weights to show beside the spiking ones (default: the released ones, if they are of "
        "the same network)",
        name="float",
        kind=kinds.weights,
    )
    engine: str = shared.engine()
    device: str = shared.device()
    half: bool | None = shared.half(None)
    host: str = option(
        "127.0.0.1", "address to listen at; 0.0.0.0 lets other machines reach the page"
    )
    names: list[str] = option(
        [], "more names of this machine, under which browsers may open the page", group="server"
    )
    port: int = option(7860, "port; 0 chooses a free one", least=0, most=65535)
    certificate: Path | None = option(
        None, "PEM file for HTTPS; browsers on other machines need HTTPS to use the camera",
        group="server",
    )  # fmt: skip
    key: Path | None = option(None, "PEM file with the key of --certificate", group="server")
    at_once: int = option(2, "requests computed at the same time", least=1, group="limits")
    waiting: int = option(16, "requests that may wait", least=0, group="limits")
    megabytes: float = option(20.0, "largest file, in megabytes", above=0, group="limits")
    megapixels: float = option(50.0, "largest picture, in megapixels", above=0, group="limits")
    most_steps: int = option(64, "largest T that a visitor may choose", least=1, group="limits")
    frames: int = option(100, "most frames of a video", least=1, group="limits")
    seconds: float = option(
        60.0, "longest time for one answer, in seconds", above=0, group="limits"
    )


def reference_of(detector: Predictor, options: Options) -> Predictor | None:
    """Load the float network to show beside the spiking one. Default: the released one, if any.

    Raises:
        WeightsError: The weights of `--float` are of another network.
    """
    from spikedet.checkpoint import load
    from spikedet.detection.predict import Predictor
    from spikedet.errors import WeightsError
    from spikedet.networks import expect_same_network, expect_stage
    from spikedet.released import released

    path = options.reference or released("float")
    if path is None:
        return None
    try:
        checkpoint = load(path)
        expect_stage(checkpoint, "float")
        expect_same_network(path, checkpoint, detector.weights, load(detector.weights))
    except WeightsError:
        if options.reference:
            raise
        return None
    return Predictor(path, None, options.device)


def expect_spiking_detector(path: Path) -> None:
    """Check that the page can show the weights, which must be those of a spiking detector.

    Raises:
        UsageError: The weights are of a classifier, or have no time steps.
    """
    from spikedet.checkpoint import load

    checkpoint, wanted = load(path), "expected spiking weights of a detector"
    if checkpoint.task != "detection":
        raise UsageError(
            f"{path.name}: the page cannot show weights for {checkpoint.task}; {wanted}, or use "
            "spikedet classify"
        )
    if checkpoint.stage != "snn":
        raise UsageError(
            f"{path.name}: {checkpoint.stage} weights have no time steps to show; {wanted} (name "
            "float weights with --float)"
        )


def run(options: Options) -> None:
    try:
        from spikedet.web import connections, guard, server
    except ImportError as error:
        raise UsageError(
            f"{error.name or error} is not installed; pip install spikedet[web]"
        ) from None
    from spikedet.detection.predict import Predictor
    from spikedet.detection.ultra import SAMPLE
    from spikedet.pictures import read_picture
    from spikedet.released import default_weights
    from spikedet.web.viewer import Limits, Viewer

    for file in (options.certificate, options.key):
        if file is not None and not file.is_file():
            raise UsageError(f"{file}: no such file")
    if options.key and not options.certificate:
        raise UsageError("--key: needs --certificate as well")
    warnings.filterwarnings("ignore", ".* was calibrated for T=")  # the page says so
    limits = Limits(
        options.megabytes, options.megapixels, options.most_steps, options.frames,
        options.seconds, options.waiting,
    )  # fmt: skip
    if options.T is not None and options.T > limits.T:
        raise UsageError(f"T is {options.T}; expected at most --most-steps, {limits.T}")
    path = options.weights or default_weights(options.T)
    expect_spiking_detector(path)
    detector = Predictor(path, options.T, options.device, options.half, options.engine)
    listening = connections.open_port(options.host, options.port)
    viewer = Viewer(detector, reference_of(detector, options), read_picture(SAMPLE), limits)
    local = options.host in connections.LOOPBACK
    hosts = {*connections.LOOPBACK, *options.names}
    hosts |= set() if local else {options.host, *guard.own_names()}
    app = server.application(viewer, SAMPLE, hosts, options.at_once)
    serving = connections.http_server(app, options.certificate, options.key)
    scheme = "https" if options.certificate else "http"
    host = f"[{options.host}]" if ":" in options.host else options.host
    if not local:
        print(
            "warning: everybody who can reach this machine can use the page; it has no password",
            file=sys.stderr,
        )
    address = f"{scheme}://{host}:{listening.getsockname()[1]}/"
    print(f"{path.name}, {detector.why_engine}\n{address}  (Ctrl-C ends it)", flush=True)
    connections.serve(serving, listening)
