"""Transforms for the pictures of classifiers: crop, augment and normalise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from spikedet.classification.models import FOREIGN, FORMS
from spikedet.errors import UsageError

AUGMENTATIONS = ("none", "crop", "cutout", "autoaugment")
LONGEST = 16  # times the shorter side; what is longer is cut before pictures are resized
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # if a description has none


def form(description: dict[str, Any]) -> str:
    """The form of a network, `cifar` or `imagenet`. It decides how pictures are cropped.

    Raises:
        UsageError: The form is another one.
    """
    foreign = str(description.get("arch")).startswith(FOREIGN)
    kind = description.get("form", "imagenet" if foreign else "cifar")
    if kind not in FORMS:
        raise UsageError(f"form: {kind}; expected one of {', '.join(FORMS)}")
    return kind


def _ends(description: dict[str, Any]) -> list[Any]:
    """The transforms from uint8 to normalised float32."""
    mean, std = description.get("mean", MEAN), description.get("std", STD)
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]


def view(description: dict[str, Any], imgsz: int) -> v2.Transform:
    """The transform for evaluation: [3, H, W] or [B, 3, H, W] uint8 -> [.., 3, imgsz, imgsz].

    CIFAR pictures are resized if they have another size. For other pictures, the shorter side is
    resized to 256/224 of imgsz, and the centre is cropped. Then the pictures are normalised.
    """
    return v2.Compose([*_fitted(description, imgsz), *_ends(description)])


def _fitted(description: dict[str, Any], imgsz: int) -> list[Any]:
    """The transforms from uint8 of any size to uint8 of the input size."""
    if form(description) == "cifar":
        return [v2.Resize((imgsz, imgsz), antialias=True)]
    resize = v2.Resize(round(imgsz * 256 / 224), antialias=True)
    return [Shorten(), resize, v2.CenterCrop(imgsz)]


def augmentation(
    description: dict[str, Any], imgsz: int, kind: str = "crop", jpeg: int = 0
) -> tuple[v2.Transform, v2.Transform]:
    """The two transforms for training: one for each picture, then one for the whole batch.

    The second transform is fast on a GPU. Between the two, pictures are bytes, so the loader
    processes send only a quarter of the data.

    Args:
        description: Network description: `form`, `mean` and `std` are used.
        imgsz: Side in pixels.
        kind: `none`: as in evaluation. `crop`: random crops (for CIFAR with 4 pixels of padding,
            else of random size) and random mirroring. `cutout`: crop, and a grey square with half
            the side (DeVries & Taylor 2017). `autoaugment`: all of these and the policy of
            AutoAugment (Cubuk et al. 2019).
        jpeg: JPEG quality (1 to 100) to compress each picture with, before the square of cutout; 0
            for none.

    Returns:
        The transform [3, H, W] -> [3, imgsz, imgsz], both uint8, and the transform
        [B, 3, imgsz, imgsz] uint8 -> float32.

    Raises:
        UsageError: The kind or the quality is not allowed.
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


class Shorten(v2.Transform):
    """Cuts the ends off pictures [.., H, W] that are longer than `LONGEST` times their other side.

    Resizing the shorter side would take memory without limit for a thin picture. Only the centre of
    the picture is used later, so nothing that is seen is lost. Other pictures stay the same.
    """

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        height, width = inpt.shape[-2:]
        most = LONGEST * min(height, width)
        if max(height, width) <= most:
            return inpt
        top, left = max(0, height - most) // 2, max(0, width - most) // 2
        return inpt[..., top : top + most, left : left + most]


class Jpeg(v2.Transform):
    """Compresses a picture [3, H, W] uint8 RGB as JPEG, and decodes it again.

    Colours have half the resolution in each direction (4:2:0), as in most JPEG files.

    Args:
        quality: JPEG quality, 1 to 100.
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
    """Sets a square at a random position to 0 in each picture of a batch [B, C, H, W].

    The square may extend over the border. The positions are drawn on the CPU, so that they do not
    depend on the device.

    Args:
        side: Side of the square in pixels.
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
