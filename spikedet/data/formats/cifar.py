"""CIFAR-10 and CIFAR-100 in their original files, read by torchvision."""

from __future__ import annotations

from pathlib import Path

from spikedet.data.formats.base import Classes, Format, Labelled
from spikedet.errors import DataError, did_you_mean, shorten

# Folders of the files, and the archives that they are in.
ARCHIVES = {
    "cifar-10-batches-py": "cifar-10-python.tar.gz",
    "cifar-100-python": "cifar-100-python.tar.gz",
}
KINDS = dict(zip(ARCHIVES, ("CIFAR10", "CIFAR100"), strict=True))


class Cifar(Classes):
    """The folder with the CIFAR files, or the folder that contains it."""

    @property
    def splits(self) -> list[str]:
        """`train` and `test`."""
        return ["train", "test"]

    def usual_split(self, test: bool) -> str | None:
        """See `Source.usual_split`."""
        return "test" if test else "train"

    def read(self, split: str) -> Labelled:
        """See `Classes.read`. Pictures are [3, 32, 32] uint8 RGB."""
        import torch
        from torchvision import datasets

        folder = self.paths[0]
        data_sets = [folder.name] if folder.name in ARCHIVES else _inside(folder)
        if len(data_sets) > 1:
            raise DataError(
                f"{folder}: two data sets; name one of them, as in {folder / data_sets[0]}"
            )
        if split not in ("train", "test"):
            meant = did_you_mean(split, ("train", "test"))
            raise DataError(
                f"{folder}: CIFAR has no split {shorten(split)!r}; expected train or test{meant}"
            )
        root = folder.parent if folder.name in ARCHIVES else folder
        kind = getattr(datasets, KINDS[data_sets[0]])
        try:
            read = kind(str(root), train=split == "train", download=False)
        except RuntimeError:
            raise DataError(
                f"{root}: {kind.__name__} is incomplete, damaged or not unpacked; see "
                "spikedet prepare"
            ) from None
        labels = [int(label) for label in read.targets]
        wrong = [label for label in labels if not 0 <= label < len(read.classes)]
        if wrong:
            raise DataError(
                f"{root}: a picture has class {wrong[0]}; expected 0 to {len(read.classes) - 1}"
            )
        pictures = torch.from_numpy(read.data).permute(0, 3, 1, 2).contiguous()
        return Labelled(tuple(read.classes), labels, list(pictures))


def _inside(folder: Path) -> list[str]:
    """The CIFAR data sets in a folder, unpacked or as an archive."""
    return [
        name
        for name, archive in ARCHIVES.items()
        if (folder / name).is_dir() or (folder / archive).is_file()
    ]


def fits(path: Path) -> bool:
    """Whether a folder is a CIFAR data set or contains one."""
    return path.name in ARCHIVES or bool(_inside(path))


FORMAT = Format("CIFAR", "classification", fits, Cifar)
