"""What is done to the pictures of a classifier: cut to size, augmented, normalised."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from spikedet.classification.models import FOREIGN, FORMS
from spikedet.errors import UsageError

AUGMENTATIONS = ("none", "crop", "cutout", "autoaugment")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # where a description names none


def form(description: dict[str, Any]) -> str:
    """`cifar` or `imagenet`: how the pictures of a network are cut.

    Raises:
        UsageError: Another form.
    """
    foreign = str(description.get("arch")).startswith(FOREIGN)
    kind = description.get("form", "imagenet" if foreign else "cifar")
    if kind not in FORMS:
        raise UsageError(f"form: {kind}; expected one of {', '.join(FORMS)}")
    return kind


def _ends(description: dict[str, Any]) -> list[Any]:
    """uint8 -> float32, normalised."""
    mean, std = description.get("mean", MEAN), description.get("std", STD)
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]


def view(description: dict[str, Any], imgsz: int) -> v2.Transform:
    """The transform of evaluation: [3, H, W] or [B, 3, H, W] uint8 -> [.., 3, imgsz, imgsz].

    CIFAR pictures are resized if they have another size; of others the shorter side is resized to
    256/224 of imgsz and the centre is cut out. Then they are normalised.
    """
    return v2.Compose([*_fitted(description, imgsz), *_ends(description)])


def _fitted(description: dict[str, Any], imgsz: int) -> list[Any]:
    """uint8 -> uint8 of the side that a network takes."""
    if form(description) == "cifar":
        return [v2.Resize((imgsz, imgsz), antialias=True)]
    return [v2.Resize(round(imgsz * 256 / 224), antialias=True), v2.CenterCrop(imgsz)]


def augmentation(
    description: dict[str, Any], imgsz: int, kind: str = "crop", jpeg: int = 0
) -> tuple[v2.Transform, v2.Transform]:
    """The two transforms of training: of each picture, and then of a whole batch.

    The second one is fast on a GPU, and bytes between them are a quarter of what a loader process
    would send else.

    Args:
        description: Of the network: `form`, `mean`, `std`.
        imgsz: Side in pixels.
        kind: `none` (as in evaluation), `crop` (CIFAR: 4 pixels of padding; else random size; and
            mirrored), `cutout` (a square of half the side is grey as well, DeVries & Taylor 2017)
            or `autoaugment` (and AutoAugment's policy, Cubuk et al. 2019).
        jpeg: Quality, 1 to 100, that the picture is compressed with after that, before the square
            of cutout; 0 for none.

    Returns:
        [3, H, W] -> [3, imgsz, imgsz], both uint8, and [B, 3, imgsz, imgsz] uint8 -> float32.

    Raises:
        UsageError: Another kind or quality.
    """
    if kind not in AUGMENTATIONS:
        raise UsageError(f"augment is {kind!r}; expected {', '.join(AUGMENTATIONS)}")
    if not 0 <= jpeg <= 100:
        raise UsageError(f"jpeg is {jpeg}; expected a quality from 1 to 100, or 0 for none")
    policy = v2.AutoAugmentPolicy.IMAGENET
    if kind == "none":
        single = _fitted(description, imgsz)
    elif form(description) == "cifar":
        policy = v2.AutoAugmentPolicy.CIFAR10
        single = [v2.Resize((imgsz, imgsz), antialias=True), v2.RandomCrop(imgsz, padding=4)]
    else:
        single = [v2.RandomResizedCrop(imgsz, antialias=True)]
    if kind != "none":
        single.append(v2.RandomHorizontalFlip())
    if kind == "autoaugment":  # Pillow is nearly twice as fast on small pictures as on tensors
        single += [v2.ToPILImage(), v2.AutoAugment(policy), v2.PILToTensor()]
    if jpeg:
        single.append(Jpeg(jpeg))
    whole = _ends(description)
    if kind in ("cutout", "autoaugment"):
        whole.append(Cutout(imgsz // 2))
    return v2.Compose(single), v2.Compose(whole)


class Jpeg(v2.Transform):
    """A picture [3, H, W] uint8 RGB after compression as JPEG, with half as many colours as pixels
    in each direction (4:2:0), as most files have.

    Args:
        quality: 1 to 100.
    """

    def __init__(self, quality: int):
        super().__init__()
        self.quality = quality

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        import cv2

        options = [cv2.IMWRITE_JPEG_QUALITY, self.quality]
        _, file = cv2.imencode(".jpg", inpt.permute(1, 2, 0).numpy()[..., ::-1], options)
        picture = cv2.imdecode(file, cv2.IMREAD_COLOR)
        assert picture is not None  # it was encoded just now
        return torch.from_numpy(picture[..., ::-1].copy()).permute(2, 0, 1)


class Cutout(v2.Transform):
    """In each picture of a batch [B, C, H, W] a square around a random place becomes 0.

    It may reach over the border. Places are drawn on the CPU, so that they do not depend on the
    device.

    Args:
        side: Of the square in pixels.
    """

    def __init__(self, side: int):
        super().__init__()
        self.side = side

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Tensor]:
        count, _, height, width = flat_inputs[0].shape
        first = {"y": torch.randint(height, (count, 1)), "x": torch.randint(width, (count, 1))}
        return {name: place - self.side // 2 for name, place in first.items()}

    def transform(self, inpt: Tensor, params: dict[str, Tensor]) -> Tensor:
        rows = torch.arange(inpt.shape[-2]) - params["y"]  # [B, H], from the square's first
        columns = torch.arange(inpt.shape[-1]) - params["x"]
        rows, columns = ((at >= 0) & (at < self.side) for at in (rows, columns))
        covered = rows[:, None, :, None] & columns[:, None, None, :]
        return inpt.masked_fill(covered.to(inpt.device), 0)
