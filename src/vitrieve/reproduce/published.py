"""Every number that the paper published in its tables.

Source: El-Nouby, Neverova, Laptev and Jégou, "Training Vision Transformers for Image Retrieval", arXiv:2102.05644v1,
Tables 2 to 9. All of them are percentages; nothing is computed from them here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vitrieve.evaluation.metrics import short_name

PAPER = "El-Nouby, Neverova, Laptev and Jégou, arXiv:2102.05644v1"
REIMPLEMENTATION = "a public re-implementation, Recall@1 (it averages Eq. 1 over non-zero pairs)"

DATASET_TITLES = {
    "sop": "SOP",
    "cub200": "CUB-200",
    "inshop": "In-Shop",
    "sfm120k": "SfM-120k",
    "roxford5k": "ROxford",
    "rparis6k": "RParis",
}


@dataclass(frozen=True)
class Measure:
    """A metric on a data set.

    Attributes:
        dataset: Name of the source that it is measured on.
        metric: Name of the metric in ``results.json``.
        protocol: Protocol of the data set; None: its first.
    """

    dataset: str
    metric: str
    protocol: str | None = None

    @property
    def metric_title(self) -> str:
        """Spell the metric, with its protocol: ``R@1``, ``mAP M``."""
        name = short_name(self.metric)
        return f"{name} {self.protocol[0].upper()}" if self.protocol else name

    @property
    def title(self) -> str:
        """Spell data set and metric; of a source with a path only the last part of it.

        >>> Measure("sop", "recall_at_1").title, Measure("rparis6k", "mean_average_precision", "hard").title
        ('SOP R@1', 'RParis mAP H')
        """
        name = DATASET_TITLES.get(self.dataset) or self.dataset.rstrip("/").split("/")[-1]
        return f"{name} {self.metric_title}"


Percentages = Mapping[Measure, float]


def _recalls(dataset: str, *ks: int) -> tuple[Measure, ...]:
    return tuple(Measure(dataset, f"recall_at_{k}") for k in ks)


SOP = _recalls("sop", 1, 10, 100, 1000)
CUB = _recalls("cub200", 1, 2, 4, 8)
INSHOP = _recalls("inshop", 1, 10, 20, 30)
REVISITED = tuple(
    Measure(dataset, "mean_average_precision", protocol)
    for dataset in ("roxford5k", "rparis6k")
    for protocol in ("medium", "hard")
)


def _read(columns: Sequence[Measure], text: str) -> dict[Measure, float]:
    """Read the numbers of one row; a dash stands for one that was not published."""
    numbers = text.replace("/", " ").split()
    return {column: float(number) for column, number in zip(columns, numbers, strict=True) if number != "-"}


_CATEGORY = (*SOP, *CUB, *INSHOP)
_FIRSTS_AND_REVISITED = (SOP[0], CUB[0], INSHOP[0], *REVISITED)


def _grid(backbone: str, margins: Mapping[float, str]) -> dict[str, Percentages]:
    """Read one side of Table 5: a line for each margin, a number for each weight of KoLeo."""
    return {
        grid_name(backbone, margin, weight): {SOP[0]: float(number)}
        for margin, text in margins.items()
        for weight, number in zip(KOLEO_WEIGHTS, text.split(), strict=True)
    }


def grid_name(backbone: str, margin: float, weight: float) -> str:
    """Name a row of Table 5.

    >>> grid_name("deit_s", 0.5, 0.7)
    'deit_s-b0.5-l0.7'
    """
    return f"{backbone}-b{margin:g}-l{weight:g}"


KOLEO_WEIGHTS = (0.0, 0.3, 0.5, 0.7, 1.0)
"""λ of Table 5."""
MARGINS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""β of Table 5."""

PUBLISHED: dict[str, dict[str, Percentages]] = {
    "table2": {
        "xbm_128": _read(_CATEGORY, "80.6 91.6 96.2 98.7 - - - - 91.3 97.8 98.4 98.7"),
        "proxynca_pp_512": _read(_CATEGORY, "80.7 92.0 96.7 98.9 69.0 79.8 87.3 92.7 90.4 98.1 98.8 99.0"),
        "proxynca_pp_2048": _read(_CATEGORY, "81.4 92.4 96.9 99.0 72.2 82.0 89.2 93.5 90.9 98.2 98.9 99.1"),
        "irt_r_128": _read(_CATEGORY, "83.4 93.0 97.0 99.0 72.6 81.9 88.7 92.8 91.1 98.1 98.6 99.0"),
        "irt_r_384": _read(_CATEGORY, "84.0 93.6 97.2 99.1 74.7 82.9 89.3 93.3 91.5 98.1 98.7 99.0"),
        "irt_r_distilled_384": _read(_CATEGORY, "84.2 93.7 97.3 99.1 76.6 85.0 91.1 94.3 91.9 98.1 98.7 98.9"),
    },
    "table3": {
        "irt_o": _read(_FIRSTS_AND_REVISITED, "52.8 58.5 31.3 20.3/5.6 50.2/26.3"),
        "irt_l": _read(_FIRSTS_AND_REVISITED, "83.0 74.2 90.3 32.7/11.4 63.6/37.8"),
        "irt_r": _read(_FIRSTS_AND_REVISITED, "84.0 74.7 91.5 34.0/11.5 66.1/40.2"),
    },
    "table4": {
        "nsoftmax-r50": {SOP[0]: 79.5},
        "nsoftmax-deit_s": {SOP[0]: 80.8},
        "snca-r50": {SOP[0]: 78.0},
        "snca-deit_s": {SOP[0]: 81.1},
        "contrastive-r50": {SOP[0]: 79.8},
        "contrastive-deit_s": {SOP[0]: 83.0},
    },
    "table5": {
        **_grid(
            "r50",
            {
                0.1: "78.9 79.2 79.1 78.8 78.8",
                0.3: "79.3 81.3 81.7 81.7 81.7",
                0.5: "79.8 80.7 81.0 81.2 81.3",
                0.7: "79.3 80.5 81.2 81.1 78.5",
                0.9: "79.1 80.0 31.4 13.4 9.1",
            },
        ),
        **_grid(
            "deit_s",
            {
                0.1: "70.3 70.7 71.4 70.1 71.1",
                0.3: "82.5 83.0 83.0 83.1 83.1",
                0.5: "83.0 83.5 83.6 84.0 84.0",
                0.7: "82.9 83.8 84.1 84.2 83.8",
                0.9: "82.6 84.4 80.6 71.2 41.5",
            },
        ),
    },
    "table6": {
        "l0": _read(REVISITED, "32.7/11.4 63.6/37.8"),
        "l1": _read(REVISITED, "31.5/9.3 64.7/38.6"),
        "l2": _read(REVISITED, "34.5/11.1 65.7/39.8"),
        "l3": _read(REVISITED, "34.6/11.5 66.1/40.1"),
        "l4": _read(REVISITED, "34.0/11.5 66.1/40.2"),
        "l5": _read(REVISITED, "32.3/10.4 65.6/39.8"),
    },
    "table7": {
        "r50_gem-224-128": _read(REVISITED, "25.8/8.6 56.7/31.2"),
        "r50_rmac-224-128": _read(REVISITED, "23.6/5.5 56.0/30.8"),
        "r101_gem-224-128": _read(REVISITED, "27.8/8.0 59.0/32.2"),
        "r101_rmac-224-128": _read(REVISITED, "27.3/7.4 57.9/31.3"),
        "deit_s_distilled-224-128": _read(REVISITED, "32.1/13.3 63.8/39.3"),
        "deit_b_distilled-224-128": _read(REVISITED, "36.6/14.8 64.4/39.1"),
        "r50_gem-224-full": _read(REVISITED, "28.7/10.9 61.2/35.9"),
        "r50_rmac-224-full": _read(REVISITED, "25.6/7.3 60.6/35.4"),
        "r101_gem-224-full": _read(REVISITED, "31.7/11.1 63.4/37.3"),
        "r101_rmac-224-full": _read(REVISITED, "31.0/9.3 62.6/36.5"),
        "deit_s_distilled-224-full": _read(REVISITED, "34.5/15.8 65.8/42.0"),
        "deit_b_distilled-224-full": _read(REVISITED, "39.5/17.4 67.5/43.6"),
        "r101_gem-384-128": _read(REVISITED, "34.1/9.5 62.6/36.3"),
        "r101_rmac-384-128": _read(REVISITED, "31.4/7.4 61.6/35.3"),
        "deit_b_distilled-384-128": _read(REVISITED, "49.0/21.5 68.5/43.8"),
        "r101_gem-384-full": _read(REVISITED, "38.1/12.5 69.4/45.8"),
        "r101_rmac-384-full": _read(REVISITED, "37.1/10.6 66.0/41.4"),
        "deit_b_distilled-384-full": _read(REVISITED, "50.5/22.7 70.6/47.4"),
    },
    "table8": {
        "irt_l-128": _read(REVISITED, "49.0/21.5 68.5/43.8"),
        "irt_r-128": _read(REVISITED, "49.1/21.1 68.3/44.1"),
        "irt_l-768": _read(REVISITED, "50.5/22.7 70.6/47.4"),
        "irt_r-768": _read(REVISITED, "55.1/28.3 72.7/49.6"),
    },
    "table9": {
        "average": _read(_FIRSTS_AND_REVISITED, "83.0 72.8 90.2 28.3/8.5 61.9/36.0"),
        "max": _read(_FIRSTS_AND_REVISITED, "82.2 69.2 90.3 25.2/6.8 60.4/34.1"),
        "gem": _read(_FIRSTS_AND_REVISITED, "82.6 69.1 89.8 26.5/8.5 60.2/33.7"),
        "cls": _read(_FIRSTS_AND_REVISITED, "83.0 74.4 90.4 32.7/11.4 63.6/37.8"),
    },
}
"""Name of a table -> name of a row -> its percentages."""

REIMPLEMENTED: dict[str, Percentages] = {
    "irt_o": _read((SOP[0], CUB[0], INSHOP[0]), "53.12 58.68 31.28"),
    "irt_l": _read((SOP[0], CUB[0], INSHOP[0]), "83.56 73.68 93.09"),
    "irt_r": _read((SOP[0], CUB[0], INSHOP[0]), "82.67 73.73 90.47"),
    "irt_r_distilled": _read((SOP[0], CUB[0], INSHOP[0]), "82.70 76.55 90.66"),
}
"""Numbers of ``REIMPLEMENTATION`` for Table 3 (the last row: for Table 2)."""
