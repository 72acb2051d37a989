"""A VOCdevkit, picture by picture."""

import cv2
import numpy as np

EDGES = ("xmin", "ymin", "xmax", "ymax")


def annotation(*objects, size=(60, 40)):
    """VOC XML; objects: (class, (xmin, ymin, xmax, ymax), difficult)."""
    rows = "".join(
        f"<object><name>{name}</name><difficult>{int(difficult)}</difficult><bndbox>"
        + "".join(f"<{k}>{v}</{k}>" for k, v in zip(EDGES, box, strict=True))
        + "</bndbox></object>"
        for name, box, difficult in objects
    )
    width, height = size
    return (
        f"<annotation><size><width>{width}</width><height>{height}</height></size>"
        f"{rows}</annotation>"
    )


def add(devkit, dataset, name, xml, split="train"):
    folder = devkit / dataset
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / "JPEGImages" / f"{name}.jpg"), np.zeros((40, 60, 3), np.uint8))
    (folder / "Annotations" / f"{name}.xml").write_text(xml)
    with (folder / "ImageSets/Main" / f"{split}.txt").open("a") as file:
        file.write(f"{name}\n")
