"""Make a data set in the VOCdevkit layout from annotated pictures.

The annotations are one of three: a list with one picture per line (`path x1,y1,x2,y2,class ...`,
with the class numbers of --names), a folder of VOC XML files, or COCO files, such as those of
spikedet label. The boxes of a list are in pixels of the picture as a viewer shows it, with its
rotation tag applied. With several COCO files, an object is left out if it overlaps one of an
earlier file. Objects of classes that VOC does not have are left out. Pictures without a VOC object
are left out too, and counted. Pictures must be JPEG files. They are linked, not copied. Existing
files are never changed: if one would change, the command stops before it writes anything.

    spikedet import-boxes --pictures coco/val2017 --list val2017.txt \\
        --names coco.names --out devkit/COCO2017 --split voc
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from spikedet.commands import parse
from spikedet.commands.checks import refuse
from spikedet.data.formats.voc import is_copy_of_2007
from spikedet.errors import DataError, UsageError, counted
from spikedet.files import read_lines
from spikedet.options import option
from spikedet.picture_files import pictures_in

JPEG = {".jpg", ".jpeg"}


@dataclass(kw_only=True)
class Options(parse.Options):
    """Options of the command."""

    pictures: list[Path] = option(help="picture folders")
    out: Path = parse.written_folder(help="folder of the new data set")
    boxes: Path | None = option(
        None, "text file with pictures and boxes", name="list", metavar="FILE"
    )
    xml: Path | None = option(None, "folder of VOC XML files")
    coco: list[Path] | None = option(None, "COCO files; earlier files win over later ones")
    least_score: float = option(
        0.35, "leave out boxes of --coco with a lower score", least=0, most=1
    )
    names: Path | None = option(None, "class names of --list, one per line", metavar="FILE")
    split: str = option("train", "name of the split")
    skip: list[Path] = option([], "split files with the ids of pictures to leave out")


def run(options: Options) -> None:
    from spikedet.detection.to_voc import write

    expect_one_source(options)
    skip = {line.split()[0] for path in options.skip for line in read_lines(path) if line}
    pictures = pictures_of(options.pictures)
    # VOC 2012's copies of VOC 2007: some are for evaluation, see `read_ids`
    skip |= set(filter(is_copy_of_2007, pictures))
    xmls: dict[str, bytes | None] = {}
    for stem, xml in annotated(options, pictures, skip):
        if stem in xmls:
            raise DataError(f"{options.boxes}: two lines are for pictures named {stem}")
        xmls[stem] = xml
    kept = {stem: xml for stem, xml in sorted(xmls.items()) if xml is not None}
    if not kept:
        raise DataError(f"none of {len(xmls)} annotated pictures has an object of a VOC class")
    write(
        options.out,
        options.split,
        kept,
        {stem: Path(os.path.realpath(pictures[stem])) for stem in kept},
    )
    without = f"{len(xmls) - len(kept)} more are without an object of a VOC class"
    if options.xml:
        alone = {path.stem for path in options.xml.glob("*.xml")} - pictures.keys() - skip
        without += f", {len(alone)} annotations without a JPEG picture" if alone else ""
    print(f"{options.out}: {counted(len(kept), 'picture')}, split {options.split}; {without}")


def expect_one_source(options: Options) -> None:
    """Check that there is exactly one source of boxes, and no option of another source.

    Raises:
        UsageError: The message names the options.
    """
    sources = {"list": options.boxes, "xml": options.xml, "coco": options.coco}
    if sum(source is not None for source in sources.values()) != 1:
        raise UsageError("expected one of --list, --xml and --coco")
    if options.boxes and options.names is None:
        raise UsageError("--list needs --names, the names of its class numbers")
    if options.xml:
        refuse(options, ["names"], "VOC XML files contain their class names")
    if options.coco:
        refuse(options, ["names"], "COCO files contain their class names")
    else:
        refuse(options, ["least_score"], "only boxes of --coco have scores")


def pictures_of(folders: Sequence[Path]) -> dict[str, Path]:
    """Find the JPEG files in folders and their subfolders, by name without suffix.

    Raises:
        DataError: There are no pictures, or two different pictures have the same name.
    """
    pictures: dict[str, Path] = {}
    for path in (p for folder in folders for p in pictures_in(folder, deep=True)[0]):
        if path.suffix.lower() not in JPEG:
            continue
        known = pictures.setdefault(path.stem, path)
        if os.path.realpath(path) != os.path.realpath(known):
            raise DataError(f"{path} and {known}: two different pictures have the same name")
    if not pictures:
        raise DataError(f"{folders[0]}: no JPEG pictures here")
    return pictures


def annotated(
    options: Options, pictures: dict[str, Path], skip: set[str]
) -> Iterator[tuple[str, bytes | None]]:
    """Yield the name and the VOC XML of each picture. It is None without a VOC object."""
    from spikedet.detection import to_voc

    if options.boxes:
        assert options.names is not None  # they go together
        return to_voc.annotations_of_list(options.boxes, options.names, pictures, skip)
    if options.coco:
        return to_voc.annotations_of_coco(options.coco, options.least_score, pictures, skip)
    assert options.xml is not None  # one of the three is named
    return to_voc.annotations_of_folder(options.xml, pictures, skip)
