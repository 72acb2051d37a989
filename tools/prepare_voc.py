#!/usr/bin/env python
"""Download the official PASCAL VOC archives, or check a folder that is already there.

    tools/prepare_voc.py FOLDER              # download, verify, unpack into FOLDER/VOCdevkit
    tools/prepare_voc.py FOLDER --check      # FOLDER is a VOCdevkit or holds one; nothing is written

A download that stops goes on when the command is run again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spikedet import cli  # noqa: E402
from spikedet.errors import DataError  # noqa: E402

SHOWN = 5


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    parser.add_argument("folder", type=Path, help="where VOCdevkit is or will be")
    parser.add_argument("--years", nargs="+", default=["2007", "2012"], choices=["2007", "2012"])
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
            count, problems = check_split(dataset, split)
            print(f"{dataset.name}:{split}: {count} pictures, {len(problems)} problems")
            for problem in problems[:SHOWN]:
                print(f"error: {problem}", file=sys.stderr)
            if len(problems) > SHOWN:
                print(f"error: and {len(problems) - SHOWN} more in {split}", file=sys.stderr)
            wrong += len(problems)
    return DataError.exit_code if wrong else 0


def main(args: argparse.Namespace) -> int:
    if args.check:
        return check(args.folder)
    from tqdm import tqdm

    from spikedet.detection.prepare import ARCHIVES, SERVER, download, unpack

    for year in args.years:
        for archive in ARCHIVES[year]:
            lists = args.folder / "VOCdevkit" / archive.dataset / "ImageSets" / "Main"
            if all((lists / f"{split}.txt").is_file() for split in archive.splits):
                print(f"{archive.dataset} {', '.join(archive.splits)}: already there")
                continue
            url = f"{(args.server or SERVER).rstrip('/')}/{archive.path}"
            path = args.folder / Path(archive.path).name
            if not path.is_file():
                with tqdm(desc=path.name, unit="B", unit_scale=True) as bar:

                    def advance(done, size, bar=bar):
                        bar.total = size
                        bar.update(done - bar.n)

                    download(url, path, archive.md5, advance)
            unpack(path, args.folder)
            if not args.keep:
                path.unlink()
    return check(args.folder)


if __name__ == "__main__":
    cli.run(main, arguments())
