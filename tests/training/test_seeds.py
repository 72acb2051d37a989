"""What is drawn in each epoch, and with each seed."""

import pytest
import torch

from spikedet.checkpoint import load
from spikedet.detection.task import DETECTION
from spikedet.settings import EndToEnd, LayerWise, Plan
from spikedet.stages import stage_two
from spikedet.training.seeds import seed_generators, seed_of
from support import squares as detectors


def test_seeds_of_torch_have_32_bits():
    """Why there is `seed_of`: what torch does with a larger one."""
    drawn = [torch.Generator().manual_seed(7 + (n << 32)) for n in range(2)]
    first, second = (torch.rand(4, generator=generator) for generator in drawn)
    assert torch.equal(first, second)


def test_every_combination_has_a_seed_of_its_own():
    numbers = [(seed, epoch) for seed in (0, 1, 2, (1 << 31) - 1) for epoch in range(100)]
    seeds = {seed_of(*pair) for pair in numbers}
    assert len(seeds) == len(numbers) and all(0 <= seed < 1 << 32 for seed in seeds)
    drawn = set()
    for pair in numbers:
        seed_generators(*pair)
        drawn.add(torch.rand(2).sum().item())
    assert len(drawn) == len(numbers)


def pictures_of(sides, folder, workers, seed):
    """Of each epoch of a run: names of pictures in their order, and each as it was augmented."""
    running = detectors.trainer(sides, folder, workers=workers, seed=seed, close_mosaic=3)
    epochs, whole = [], running.preprocess_batch

    def watched(batch):
        while len(epochs) <= running.epoch:
            epochs.append({})
        epochs[running.epoch] |= dict(zip(batch["im_file"], batch["img"].clone(), strict=True))
        return whole(batch)

    running.preprocess_batch = watched
    running.train()
    return epochs


@pytest.mark.parametrize("workers", [0, 1])
def test_a_detector_sees_other_pictures_in_each_epoch(sides, tmp_path, workers):
    epochs = pictures_of(sides, tmp_path / "one", workers, 0)
    other = pictures_of(sides, tmp_path / "other", workers, 1)[0]
    for first, second in ((epochs[0], epochs[1]), (epochs[1], epochs[2]), (epochs[0], other)):
        assert first.keys() == second.keys() and list(first) != list(second)
        same = [name for name in first if torch.equal(first[name], second[name])]
        assert len(same) < len(first) / 4


@pytest.mark.parametrize("workers", [0, 1])
def test_each_end_to_end_pass_draws_its_own(sides, stages_done, monkeypatch, workers):
    checkpoint = load(stages_done / "qc.safetensors")

    def drawn(seed):
        seen = []

        def watched(checkpoint, network, outputs, batch, end):
            seen.append(batch["img"].clone())
            return outputs[0]["scores"].square().mean()

        monkeypatch.setattr(DETECTION, "loss", watched)
        plan = Plan(LayerWise(), EndToEnd(steps=2, batch=4, workers=workers, truth=1.0), seed)
        network = stage_two.copied(DETECTION, checkpoint)
        stage_two.end_to_end(DETECTION, checkpoint, network, sides[0], plan)
        return seen

    first, again, other = drawn(0), drawn(0), drawn(1)
    assert len(first) == len(other) >= 2
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))
