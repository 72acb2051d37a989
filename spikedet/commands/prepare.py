"""Download a data set from its authors, verify and unpack it.

    spikedet prepare voc FOLDER          # into FOLDER/VOCdevkit
    spikedet prepare voc FOLDER --check  # only look, download nothing
    spikedet prepare cifar10 FOLDER

If a download stops, run the command again: it continues. Existing files are never replaced. VOC
2012 has copies of VOC 2007 pictures (ids 2007_NNNNNN). They are neither used nor counted. Then give
FOLDER to the other commands as --data; for VOC, give FOLDER/VOCdevkit.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spikedet.commands import parse
from spikedet.commands.checks import refuse
from spikedet.commands.main import progress
from spikedet.errors import DataError, counted
from spikedet.files import expect_folder
from spikedet.options import option

if TYPE_CHECKING:
    from spikedet.detection.prepare import Archive

SHOWN = 5


@dataclass(kw_only=True)
class Options(parse.Options):
    """Options of the command."""

    name: str = option(
        help="voc, cifar10 or cifar100",
        positional=True,
        choices=("voc", "cifar10", "cifar100"),
        metavar="DATASET",
    )
    folder: Path = option(help="folder of the data set", positional=True, metavar="FOLDER")
    years: list[str] = option(["2007", "2012"], "years of VOC", choices=("2007", "2012"))
    check: bool = option(False, "only show what is there and what is missing (VOC)")
    server: str | None = option(None, "address of another server with the archives (VOC)")
    keep: bool = option(False, "keep the archives after unpacking (VOC)")


def run(options: Options) -> int:
    if not options.check:
        expect_folder(options.folder)
    if options.name != "voc":
        refuse(options, ["years", "check", "server", "keep"], "is for VOC only")
        return cifar(options.name, options.folder)
    if options.check:
        refuse(options, ["years", "server", "keep"], "has no effect with --check")
    else:
        from spikedet.detection.prepare import ARCHIVES, SERVER

        for year in options.years:
            for archive in ARCHIVES[year]:
                fetch(archive, options.folder, options.server or SERVER, options.keep)
    return check(options.folder)


def cifar(name: str, folder: Path) -> int:
    """Download CIFAR and print what was downloaded. Returns the exit code."""
    from spikedet.classification.data import download, read

    files = download(name, folder)
    for split in ("train", "test"):
        samples = read([files], split)
        number = counted(len(samples), "picture")
        print(f"{folder}: {split}, {number} of {len(samples.names)} classes")
    return 0


def check(folder: Path) -> int:
    """Print the content of every split. Returns the exit code."""
    from spikedet.detection.prepare import check_split

    devkit = folder / "VOCdevkit" if (folder / "VOCdevkit").is_dir() else folder
    datasets = sorted(p for p in devkit.glob("VOC*") if p.is_dir())
    if not datasets:
        raise DataError(f"{folder}: no VOC2007 or VOC2012 here; run without --check to download")
    wrong = 0
    for dataset in datasets:
        splits = sorted((dataset / "ImageSets" / "Main").glob("*.txt"))
        # one file a class and split (`cat_train.txt`) lies beside the splits themselves
        names = [p.stem for p in splits if "_" not in p.stem]
        if not names:
            print(f"error: {dataset}/ImageSets/Main: no split files here", file=sys.stderr)
            wrong += 1
        for split in names:
            listed, pictures, annotations, problems = check_split(dataset, split)
            print(
                f"{dataset.name}:{split}: {listed} listed, {pictures} pictures, "
                f"{annotations} annotations, {len(problems)} problems"
            )
            for problem in problems[:SHOWN]:
                print(f"error: {problem}", file=sys.stderr)
            if len(problems) > SHOWN:
                print(f"error: and {len(problems) - SHOWN} more in {split}", file=sys.stderr)
            wrong += len(problems)
    return DataError.exit_code if wrong else 0


def fetch(archive: Archive, folder: Path, server: str, keep: bool) -> None:
    """Download and unpack one archive, unless its content exists already."""
    from spikedet.detection.prepare import check_split, download, unpack

    dataset = folder / "VOCdevkit" / archive.dataset
    if not any(check_split(dataset, split).problems for split in archive.splits):
        print(f"{archive.dataset} {', '.join(archive.splits)}: already there")
        return
    path = folder / Path(archive.path).name
    with progress(desc=path.name, unit="B", unit_scale=True) as bar:

        def advance(done, size):
            bar.total = size
            bar.update(done - bar.n)

        download(f"{server.rstrip('/')}/{archive.path}", path, archive.md5, advance)
    unpack(path, folder)
    if not keep:
        path.unlink()
