"""The numbers that the two-stage conversion paper prints for classification, for comparison.

They are in percent, exactly as printed, without spaces. In `A/B`, A is the result of another method
as reproduced by the authors of the paper, and B is the result in that method's own paper. The names
of networks are those of `configs/models`. The paper's "ResNet-20" is `resnet20-wide`, and
"ResNet-20" with a dagger is `resnet20` (but its reproduced 96.60 % can only be of the wide
network). T = 128 in table II means "128 or more". The paper prints no numbers for its figures.
"""

from __future__ import annotations

from dataclasses import dataclass, field

NOT_PRINTED = "-"
_CIFAR_10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR_100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
# classes of the data sets that the paper's CIFAR networks are trained on
CLASSES = {"CIFAR-10": tuple(_CIFAR_10.split()), "CIFAR-100": tuple(_CIFAR_100.split())}


@dataclass(frozen=True)
class Row:
    """A row of a table, or the cells of one network in a row.

    Attributes:
        dataset: `CIFAR-10`, `CIFAR-100` or `ImageNet`.
        network: Name in `configs/models`, or the printed name if there is none.
        method: Printed name of the method.
        source: Cell of the float network, or `-`.
        cells: Printed cells by T. T is 0 if the row has no T.
        measure: Kind of the cells: `top1`, `relative_loss`, `gsop`, `energy` or `ratio`.
        pictures: Number of calibration pictures, for rows of table VI.
    """

    dataset: str
    network: str
    method: str
    source: str
    cells: dict[int, str] = field(default_factory=dict)
    measure: str = "top1"
    pictures: int | None = None


def number(cell: str) -> float | None:
    """The first number in a cell: `96.60/91.47` gives 96.6, `83.4±4.0` gives 83.4, `-` None."""
    first = cell.split("/")[0].split("±")[0].split("(")[0].rstrip("%")
    return None if first in (NOT_PRINTED, "") else float(first)


def _rows(steps: tuple[int, ...], text: str, measure: str = "top1") -> list[Row]:
    """Read rows from lines `dataset network method source cell...`, with a cell for each step."""
    rows = []
    for line in text.strip().splitlines():
        dataset, network, method, source, *cells = line.split()
        printed = zip(steps, cells, strict=True)
        kept = {T: cell for T, cell in printed if cell != NOT_PRINTED}
        rows.append(Row(dataset, network, method.replace("_", " "), source, kept, measure))
    return rows


STEPS_2 = (2, 4, 8, 16, 32, 64, 128)
TABLE_2 = _rows(
    STEPS_2,
    """
CIFAR-10 resnet20 TSC 91.47 - - - - - 69.38 91.42
CIFAR-10 resnet20 RMP 96.60/91.47 10.00/- 10.00/- 10.30/- 62.38/- 91.99/- 95.62/- 96.22/91.36
CIFAR-10 resnet20-wide OPT 96.53/95.46 10.00/- 10.02/- 31.19/- 81.72/- 94.21/84.06 95.97/92.48 96.38/95.30
CIFAR-10 resnet20-wide CAP 96.89/95.46 67.24/- 80.86/- 90.44/- 94.08/- 95.95/94.78 96.44/95.30 96.66/95.45
CIFAR-10 PreActResNet-18 RNL 93.06/93.06 10.00/- 12.19/- 20.54/- 43.63/47.63 82.94/83.95 91.85/91.96 93.30/93.41
CIFAR-10 resnet18 OPI 96.51/96.04 34.47/- 49.94/- 73.79/75.44 91.02/90.43 95.59/94.82 96.37/95.92 96.61/96.08
CIFAR-10 resnet18 QCFS 96.04 75.44 90.43 94.82 95.92 96.08 96.06 96.06
CIFAR-10 resnet18 Ours 96.41 89.97 93.27 95.36 96.28 96.44 96.49 96.43
CIFAR-10 resnet20-wide Ours 96.66 90.43 93.27 95.46 96.30 96.60 96.71 96.76
CIFAR-10 vgg16 TSC 93.63 - - - - - 92.79 93.63
CIFAR-10 vgg16 RMP 95.81/93.63 10.00/- 10.00/- 10.00/- 26.89/- 81.13/60.30 93.34/90.35 95.45/93.63
CIFAR-10 vgg16 OPT 95.59/95.72 10.00/- 10.00/- 45.35/- 91.55/- 94.66/76.24 95.43/90.64 95.53/95.73
CIFAR-10 vgg16 CAP 95.75/95.72 77.78/- 85.37/- 90.82/- 93.41/- 94.72/93.71 95.35/95.14 95.62/95.79
CIFAR-10 vgg16 RNL 92.81/92.82 10.00/- 10.00/- 11.17/- 52.91/57.90 85.00/85.40 91.04/91.15 92.52/92.51
CIFAR-10 vgg16 OPI 95.59/94.57 68.37/- 88.03/- 93.05/90.96 94.74/93.38 95.42/94.20 95.51/94.45 95.55/94.55
CIFAR-10 vgg16 QCFS 95.52 91.18 93.96 94.95 95.40 95.54 95.55 95.59
CIFAR-10 vgg16 Ours 95.73 91.71 94.06 95.26 95.55 95.71 95.78 95.81
CIFAR-100 vgg16 RMP 71.22 1.00/- 1.00/- 1.00/- 8.47/- 39.04/- 65.09/- 74.47/63.76
CIFAR-100 vgg16 OPT 77.09/77.89 1.00/- 1.00/- 2.32/- 53.37/- 71.80/7.64 76.13/21.84 77.02/55.04
CIFAR-100 vgg16 CAP 77.54/77.89 30.82/- 44.16/- 61.27/- 68.27/- 72.41/73.55 76.34/76.64 77.33/77.40
CIFAR-100 vgg16 OPI 77.09/76.31 38.42/- 51.67/- 64.63/60.49 72.72/70.72 76.15/74.82 76.91/75.97 77.13/76.31
CIFAR-100 vgg16 QCFS 76.28 63.79 69.62 73.96 76.24 77.01 77.10 77.08
CIFAR-100 vgg16 Ours 77.22 64.89 70.08 75.06 76.61 77.41 77.35 77.24
CIFAR-100 resnet20 TSC 68.72 - - - - - - 58.42
CIFAR-100 resnet20 RMP 80.99/68.72 1.00/- 1.00/- 1.03/- 3.99/- 51.40/27.64 75.25/46.91 79.63/57.69
CIFAR-100 resnet20-wide OPT 79.20/77.16 1.00/- 1.02/- 1.65/- 34.57/- 71.31/51.27 78.07/70.12 79.07/75.81
CIFAR-100 resnet20-wide CAP 80.38/77.16 32.98/- 51.44/- 67.85/- 75.27/- 78.80/76.32 80.04/77.29 80.51/77.73
CIFAR-100 resnet18 OPI 79.43/79.36 33.07/- 47.16/- 65.50/57.70 75.37/72.85 78.60/77.86 79.29/78.98 79.60/79.60
CIFAR-100 resnet18 QCFS 78.80 70.79 75.67 78.48 79.48 79.62 79.54 79.61
CIFAR-100 resnet18 Ours 79.22 73.20 75.98 78.84 79.83 80.36 80.61 80.41
""",  # noqa: E501
)

# (float - spiking) / float. The copy of the paper at hand has no T = 128 cell of the last row.
STEPS_3 = (32, 64, 128)
TABLE_3 = _rows(
    STEPS_3,
    """
ImageNet resnet34 QCFS - 6.66% 2.65% 1.57%
ImageNet resnet34 RMP - 98.35% 56.91% 15.09%
ImageNet resnet34 Norm-on-Shortcut - 89.74% 34.71% 8.04%
ImageNet resnet34 TCL - 98.64% 72.82% 14.20%
ImageNet resnet34 OPT - 93.61% 35.69% 7.08%
ImageNet resnet34 CAP - 10.40% 3.89% 1.65%
ImageNet resnet34 Ours - 2.41% 1.06% 0.08%
ImageNet vgg16 RMP - 99.57% 87.21% 31.72%
ImageNet vgg16 OPT - 98.53% 69.62% 13.58%
ImageNet vgg16 CAP - 11.45% 5.64% 2.82%
ImageNet vgg16 SNM - 11.48% 2.30% 0.44%
ImageNet vgg16 Burst - 4.93% 1.28% 0.38%
ImageNet vgg16 QCFS - 7.83% 1.94% 0.43%
ImageNet vgg16 OPI - 13.56% 3.18% 0.81%
ImageNet vgg16 Ours - 1.92% 0.27% -
""",
    "relative_loss",
)

STEPS_4 = (4, 8, 16, 32, 64, 128, 256)
TABLE_4 = _rows(
    STEPS_4,
    """
ImageNet resnet34 TSC 70.64 - - - - - - 55.65
ImageNet resnet34 QCFS 74.32 - - 59.35 69.37 72.35 73.15 73.37
ImageNet resnet34 RMP 74.54/70.64 0.10/- 0.10/- 0.10/- 1.23/- 32.12/- 63.29/- 71.20/55.65
ImageNet resnet34 Norm-on-Shortcut 74.54/72.88 0.13/- 0.20/- 0.70/- 7.65/- 48.67/- 68.55/- 72.75/-
ImageNet resnet34 TCL 73.43/70.85 0.09/- 0.10/- 0.18/- 1.00/- 19.96/- 63.00/- 72.57/-
ImageNet resnet34 OPT 73.43/75.66 0.10/- 0.10/- 0.15/- 4.69/0.09 47.22/0.12 68.23/3.19 72.37/47.11
ImageNet resnet34 CAP 75.65/75.66 1.68/- 23.82/- 52.72/- 67.78/64.54 72.71/71.12 74.40/73.45 74.92/74.61
ImageNet resnet34 Ours 73.43 55.71 61.20 67.77 71.66 72.65 73.37 73.45
ImageNet vgg16 TSC 73.49 - - - - - - 69.71
ImageNet vgg16 RMP 74.53/73.49 0.08/- 0.09/- 0.13/- 0.32/- 9.53/- 50.89/- 68.78/48.32
ImageNet vgg16 OPT 74.88/75.36 0.10/- 0.11/- 0.21/- 1.10/0.114 22.75/0.118 64.71/0.122 72.81/1.81
ImageNet vgg16 CAP 74.53/75.36 5.65/- 25.70/- 56.25/- 66.0/63.64 70.33/70.69 72.43/73.32 73.54/74.23
ImageNet vgg16 SNM 73.18 - - - 64.78 71.50 72.86 -
ImageNet vgg16 Burst 74.27 - - - 70.61 73.32 73.99 74.25
ImageNet vgg16 QCFS 74.29 - - 50.97 68.47 72.85 73.97 74.22
ImageNet vgg16 OPI 74.85 - 6.25 36.02 64.70 72.47 74.24 74.62
ImageNet vgg16 Ours 74.88 59.95 62.51 70.13 73.44 74.68 74.93 74.94
""",  # noqa: E501
)


def _single(text: str) -> list[Row]:
    """Read rows from lines `dataset network method T accuracy`."""
    rows = []
    for line in text.strip().splitlines():
        dataset, network, method, T, cell = line.split()
        rows.append(Row(dataset, network, method, NOT_PRINTED, {int(T): cell}))
    return rows


STEPS_5 = (4,)  # T of our rows; the other rows have their own T
TABLE_5 = _single(
    """
CIFAR-10 2D-CSNN BRP 0 57.08
CIFAR-10 CIFARNet STBP 12 90.53
CIFAR-10 ResNet-20 Hybrid 250 92.22
CIFAR-10 ResNet-20 DIET-SNN 5 91.78
CIFAR-10 CIFARNet TSSL 5 91.41
CIFAR-10 CIFARNet STBP-tDBN 4 92.92
CIFAR-10 resnet20-wide Ours 4 93.27
CIFAR-10 vgg16 Ours 4 94.06
CIFAR-100 VGG-11 Hybrid 125 67.87
CIFAR-100 VGG-16 DIET-SNN 5 69.67
CIFAR-100 ResNet-19 STBP-tDBN 4 70.86
CIFAR-100 resnet18 Ours 4 75.98
CIFAR-100 vgg16 Ours 4 70.08
"""
)


def _by_pictures(networks: dict[str, str], steps: tuple[int, ...], text: str) -> list[Row]:
    """Read rows from lines `pictures cell...`: for each network, a cell for each of `steps`."""
    rows = []
    for line in text.strip().splitlines():
        pictures, *cells = line.split()
        for index, (network, source) in enumerate(networks.items()):
            own = cells[index * len(steps) : (index + 1) * len(steps)]
            printed = dict(zip(steps, own, strict=True))
            row = Row("CIFAR-10", network, "Ours", source, printed, pictures=int(pictures))
            rows.append(row)
    return sorted(rows, key=lambda row: list(networks).index(row.network))


STEPS_6 = (2, 4, 8)
TABLE_6 = _by_pictures(
    {"resnet18": "96.41", "vgg16": "95.73"},
    STEPS_6,
    """
0 76.01 66.52 84.17 88.89 92.89 92.72
2 75.55 32.20 74.47 47.54 17.25 84.01
4 83.46 80.26 90.42 82.92 51.22 91.75
8 85.79 87.67 93.21 89.04 88.81 93.24
16 87.89 90.47 94.31 88.96 91.79 94.31
32 88.75 91.94 94.89 90.21 93.24 94.41
64 89.56 92.40 94.85 90.59 93.19 94.80
128 89.74 92.18 95.07 90.91 93.54 95.01
256 89.51 92.77 95.29 90.80 94.04 95.02
512 89.89 92.96 95.31 91.41 94.13 95.22
1024 90.49 93.23 95.35 90.98 93.60 95.04
""",
)

# The accuracy cells hold the relative loss in brackets. GSOP are in units of 1e-3, energy in uJ.
STEPS_7 = (2, 4, 8)
TABLE_7 = [
    *_rows(
        STEPS_7,
        """
CIFAR-100 resnet18 OPI 79.43 33.07(73.49) 47.16(40.63) 65.50(17.54)
CIFAR-100 resnet18 CAP 78.89 38.37(51.36) 53.96(31.60) 64.87(17.77)
CIFAR-100 resnet18 QCFS 77.75 57.05(26.62) 67.28(13.47) 73.57(5.38)
CIFAR-100 resnet18 Ours 79.22 73.20(7.60) 75.98(4.09) 78.84(0.48)
""",
    ),
    *_rows(
        STEPS_7,
        """
CIFAR-100 resnet18 OPI 480.2 83.4±4.0 159.0±8.3 309.4±17.5
CIFAR-100 resnet18 CAP 480.2 159.1±4.5 236.5±9.1 368.0±23.2
CIFAR-100 resnet18 QCFS 480.2 138.7±6.2 266.5±14.1 522.1±30.3
CIFAR-100 resnet18 Ours 480.2 156.1±6.3 238.9±10.0 433.7±17.2
""",
        "gsop",
    ),
    *_rows(
        STEPS_7,
        """
CIFAR-100 resnet18 OPI 2208.7 75.1±3.6 143.1±7.4 278.5±15.7
CIFAR-100 resnet18 CAP 2208.7 143.2±4.0 212.9±8.2 331.2±20.9
CIFAR-100 resnet18 QCFS 2208.7 124.8±5.6 239.8±12.7 469.9±27.2
CIFAR-100 resnet18 Ours 2208.7 140.5±5.7 215.0±9.0 356.0±21.7
""",
        "energy",
    ),
    *_rows(
        STEPS_7,
        """
CIFAR-100 resnet18 OPI 100 3.40±0.16 6.48±0.34 12.61±0.71
CIFAR-100 resnet18 CAP 100 6.48±0.18 9.64±0.37 15.00±0.95
CIFAR-100 resnet18 QCFS 100 5.65±0.25 10.86±0.57 21.27±1.23
CIFAR-100 resnet18 Ours 100 6.36±0.26 9.73±0.41 16.11±0.98
""",
        "ratio",
    ),
]

# Tables VIII and IX do not name their data set; the float accuracies are those of CIFAR-10.
STEPS_8 = (8, 16, 32)
TABLE_8 = _rows(
    STEPS_8,
    """
CIFAR-10 resnext29-2x64d Baseline 96.55 27.60 49.74 -
CIFAR-10 resnext29-2x64d Stage-I 96.55 79.17 92.43 -
CIFAR-10 resnext29-2x64d Stage-II 96.55 62.96 83.92 -
CIFAR-10 resnext29-2x64d Stage-I_+_Stage-II 96.55 90.02 94.33 -
CIFAR-10 mobilenetv2 Baseline 95.29 - 15.59 29.36
CIFAR-10 mobilenetv2 Stage-I 95.29 - 26.16 54.17
CIFAR-10 mobilenetv2 Stage-II 95.29 - 60.42 88.63
CIFAR-10 mobilenetv2 Stage-I_+_Stage-II 95.29 - 75.64 91.49
""",
)

STEPS_9 = (4, 8)
TABLE_9 = _rows(
    STEPS_9,
    """
CIFAR-10 vgg16 Baseline 95.62 47.77 71.80
CIFAR-10 vgg16 Stage-I 95.62 78.83 82.47
CIFAR-10 vgg16 Stage-II 95.62 86.02 91.48
CIFAR-10 vgg16 Stage-I_+_Stage-II 95.62 91.76 93.38
CIFAR-10 resnet18 Baseline 96.81 71.46 87.49
CIFAR-10 resnet18 Stage-I 96.81 88.27 91.55
CIFAR-10 resnet18 Stage-II 96.81 85.44 92.52
CIFAR-10 resnet18 Stage-I_+_Stage-II 96.81 91.23 93.93
""",
)
