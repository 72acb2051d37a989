"""What ultralytics says in a training: words without colours where there is no terminal."""

import sys

import pytest

from spikedet.detection import ultra
from support.streams import Stream


@pytest.mark.parametrize(("terminal", "colours"), [(True, True), (True, False), (False, True)])
def test_words_of_a_training(terminal, colours, monkeypatch):
    stream = Stream(terminal)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.delenv("NO_COLOR", raising=False)
    if not colours:
        monkeypatch.setenv("NO_COLOR", "1")
    handler = ultra.utils.LOGGER.handlers[0]  # its own; pytest adds others
    monkeypatch.setattr(handler, "stream", stream)
    ultra.show_progress()
    ultra.show_progress()  # of a second training of the process
    blue = ultra.utils.colorstr("blue", "runs/shapes")
    ultra.utils.LOGGER.info(f"Logging results to {blue}")
    ultra.utils.LOGGER.info(f"{ultra.utils.colorstr('engine/trainer: ')}agnostic_nms=False")
    told = stream.getvalue()
    assert ("\x1b[" in told) == (terminal and colours)
    assert "runs/shapes" in told and "agnostic_nms" not in told
    for _ in ultra.tqdm.TQDM(range(3), desc="pictures", file=stream):
        pass
    bar = stream.getvalue()[len(told) :]
    assert bar.endswith("\n") and ("\r" in bar) == terminal and "100%" in bar
