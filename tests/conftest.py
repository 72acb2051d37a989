"""Small networks and pictures that several tests use."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread each, also of the commands that they start
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402


class SmallNet(nn.Module):
    """Two branches, a concatenation, up-sampling, one shared activation, a linear readout."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU()
        self.first = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 12, 3, 2, 1)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.mix = nn.Conv2d(20, 10, 3, 1, 1)
        self.last = nn.Conv2d(10, 4, 1)

    def forward(self, x):
        shallow = self.relu(self.norm(self.first(x)))
        deep = self.relu(self.deep(shallow))
        both = torch.cat([shallow, self.up(deep)], 1)
        return self.last(self.relu(self.mix(both)))


@pytest.fixture
def small_net() -> SmallNet:
    torch.manual_seed(0)
    network = SmallNet()
    network.norm.running_mean.normal_(0, 0.2)
    network.norm.running_var.uniform_(0.5, 2)
    network.norm.weight.data.uniform_(0.5, 1.5)
    network.norm.bias.data.normal_(0, 0.2)
    return network.eval()


@pytest.fixture
def pictures() -> torch.Tensor:
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def batches() -> list[torch.Tensor]:
    """Smooth pictures: 20 batches to fit, 4 to judge layers by, 16 that nothing sees before."""
    coarse = torch.rand(40, 4, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    return [nn.functional.interpolate(b, size=(16, 16), mode="bilinear") for b in coarse]


@pytest.fixture
def trained(small_net, batches) -> SmallNet:
    """The small network after a moment of training towards squared and brightest colours."""
    network = small_net.train()
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    pool = nn.AvgPool2d(2)
    for batch in batches[:20] * 10:
        target = torch.cat([pool(batch) ** 2, pool(batch).amax(1, keepdim=True)], 1)
        loss = (network(batch) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network.eval()
