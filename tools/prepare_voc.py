#!/usr/bin/env python
"""Download the official PASCAL VOC archives, or check a folder that is already there.

    tools/prepare_voc.py FOLDER              # download, verify, unpack into FOLDER/VOCdevkit
    tools/prepare_voc.py FOLDER --check      # only look: FOLDER is a VOCdevkit or holds one

A download that stops goes on when the command is run again. No file that is there is replaced.
VOC 2012's copies of VOC 2007 pictures (ids 2007_NNNNNN) are neither used nor counted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spikedet import cli  # noqa: E402
from spikedet.errors import DataError  # noqa: E402

if TYPE_CHECKING:
    from spikedet.detection.prepare import Archive

SHOWN = 5


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    parser.add_argument("folder", type=Path, help="where VOCdevkit is or will be")
    parser.add_argument(
        "--years",
        nargs="+",
        default=["2007", "2012"],
        choices=["2007", "2012"],
        help="which challenges",
    )
    parser.add_argument("--check", action="store_true", help="only say what is there and missing")
    parser.add_argument("--server", help="address that holds the archives, instead of the official")
    parser.add_argument("--keep", action="store_true", help="keep the archives after unpacking")
    return parser


def check(folder: Path) -> int:
    """Print what every split holds; returns the exit code."""
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
    """Download and unpack one archive, unless all it brings is there."""
    from spikedet.detection.prepare import check_split, download, unpack

    dataset = folder / "VOCdevkit" / archive.dataset
    if not any(check_split(dataset, split).problems for split in archive.splits):
        print(f"{archive.dataset} {', '.join(archive.splits)}: already there")
        return
    path = folder / Path(archive.path).name
    with cli.progress(desc=path.name, unit="B", unit_scale=True) as bar:

        def advance(done, size):
            bar.total = size
            bar.update(done - bar.n)

        download(f"{server.rstrip('/')}/{archive.path}", path, archive.md5, advance)
    unpack(path, folder)
    if not keep:
        path.unlink()


def main(args: argparse.Namespace) -> int:
    if not args.check:
        from spikedet.detection.prepare import ARCHIVES, SERVER, expect_safe_unpacking

        expect_safe_unpacking()
        for year in args.years:
            for archive in ARCHIVES[year]:
                fetch(archive, args.folder, args.server or SERVER, args.keep)
    return check(args.folder)


if __name__ == "__main__":
    cli.run(main, arguments())
