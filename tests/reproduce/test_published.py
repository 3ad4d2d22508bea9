from __future__ import annotations

import re
from collections import Counter

import pytest

from vitrieve.reproduce.plans import PLANS, plan_table
from vitrieve.reproduce.published import PUBLISHED, REIMPLEMENTED, SOP, Measure, grid_name

NOTES_OF_THE_PAPER = {
    "table2": """XBM R50 128 d | 80.6 91.6 96.2 98.7 | - | 91.3 97.8 98.4 98.7
        ProxyNCA++ R50 512 d | 80.7 92.0 96.7 98.9 | 69.0 79.8 87.3 92.7 | 90.4 98.1 98.8 99.0
        ProxyNCA++ R50 2048 d | 81.4 92.4 96.9 99.0 | 72.2 82.0 89.2 93.5 | 90.9 98.2 98.9 99.1
        IRT_R DeiT-S .128 | 83.4 93.0 97.0 99.0 | 72.6 81.9 88.7 92.8 | 91.1 98.1 98.6 99.0
        IRT_R DeiT-S 384 | 84.0 93.6 97.2 99.1 | 74.7 82.9 89.3 93.3 | 91.5 98.1 98.7 99.0
        IRT_R DeiT-S-distilled 384 | 84.2 93.7 97.3 99.1 | 76.6 85.0 91.1 94.3 | 91.9 98.1 98.7 98.9""",
    "table3": """O 52.8 58.5 31.3 | 20.3 5.6 | 50.2 26.3 . L 83.0 74.2 90.3 | 32.7 11.4 | 63.6 37.8 .
        R 84.0 74.7 91.5 | 34.0 11.5 | 66.1 40.2""",
    "table4": "normalized softmax 79.5/80.8, scalable NCA 78.0/81.1, contrastive 79.8/83.0",
    "table5": """78.9 79.2 79.1 78.8 78.8, 79.3 81.3 81.7 81.7 81.7, 79.8 80.7 81.0 81.2 81.3, 79.3 80.5 81.2 81.1 78.5,
        79.1 80.0 31.4 13.4 9.1; 70.3 70.7 71.4 70.1 71.1, 82.5 83.0 83.0 83.1 83.1, 83.0 83.5 83.6 84.0 84.0,
        82.9 83.8 84.1 84.2 83.8, 82.6 84.4 80.6 71.2 41.5""",
    "table6": """32.7/11.4 63.6/37.8, 31.5/9.3 64.7/38.6, 34.5/11.1 65.7/39.8, 34.6/11.5 66.1/40.1, 34.0/11.5 66.1/40.2,
        32.3/10.4 65.6/39.8""",
    "table7": """25.8/8.6 56.7/31.2, 23.6/5.5 56.0/30.8, 27.8/8.0 59.0/32.2, 27.3/7.4 57.9/31.3, 32.1/13.3 63.8/39.3,
        36.6/14.8 64.4/39.1; 28.7/10.9 61.2/35.9, 25.6/7.3 60.6/35.4, 31.7/11.1 63.4/37.3, 31.0/9.3 62.6/36.5,
        34.5/15.8 65.8/42.0, 39.5/17.4 67.5/43.6; 34.1/9.5 62.6/36.3, 31.4/7.4 61.6/35.3, 49.0/21.5 68.5/43.8;
        38.1/12.5 69.4/45.8, 37.1/10.6 66.0/41.4, 50.5/22.7 70.6/47.4""",
    "table8": "49.0/21.5 68.5/43.8, 49.1/21.1 68.3/44.1, 50.5/22.7 70.6/47.4, 55.1/28.3 72.7/49.6",
    "table9": """83.0 72.8 90.2 | 28.3/8.5 61.9/36.0, 82.2 69.2 90.3 | 25.2/6.8 60.4/34.1,
        82.6 69.1 89.8 | 26.5/8.5 60.2/33.7, 83.0 74.4 90.4 | 32.7/11.4 63.6/37.8""",
}
"""Copied from the design notes as text; here only the numbers with one decimal are read."""
NUM_FIGURES = {
    "table2": 5 * 12 + 8,
    "table3": 3 * 7,
    "table4": 3 * 2,
    "table5": 2 * 5 * 5,
    "table6": 6 * 4,
    "table7": (6 + 6 + 3 + 3) * 4,
    "table8": 4 * 4,
    "table9": 4 * 7,
}


@pytest.mark.parametrize("name", NUM_FIGURES)
def test_published_and_plan_hold_every_figure_of_the_table(name: str) -> None:
    noted = Counter(map(float, re.findall(r"(?<![\d.])\d+\.\d(?!\d)", NOTES_OF_THE_PAPER[name])))
    published = Counter(value for row in PUBLISHED[name].values() for value in row.values())
    planned = Counter(value for row in plan_table(name).rows for value in row.published.values())
    assert noted.total() == NUM_FIGURES[name]
    assert published == noted
    assert planned == noted


def test_plans_put_figures_where_the_paper_has_them() -> None:
    def figure(table: str, key: str, title: str) -> float:
        (row,) = (row for row in plan_table(table).rows if row.key == key)
        return {measure.title: value for measure, value in row.published.items()}[title]

    assert figure("table2", "proxynca_pp_512-cub200", "CUB-200 R@8") == 92.7
    assert figure("table2", "xbm_128-inshop", "In-Shop R@10") == 97.8
    assert figure("table3", "irt_r-sfm120k", "RParis mAP H") == 40.2
    assert figure("table4", "snca-deit_s", "SOP R@1") == 81.1
    assert figure("table5", "r50-b0.9-l0.7", "SOP R@1") == 13.4
    assert figure("table5", "deit_s-b0.7-l0.3", "SOP R@1") == 83.8
    assert figure("table6", "l3", "ROxford mAP M") == 34.6
    assert figure("table7", "deit_b_distilled-224-full", "ROxford mAP H") == 17.4
    assert figure("table7", "r101_rmac-384-128", "RParis mAP M") == 61.6
    assert figure("table8", "irt_r-768", "ROxford mAP M") == 55.1
    assert figure("table9", "gem-inshop", "In-Shop R@1") == 89.8


def test_figures_list_the_published_figures_of_their_rows() -> None:
    values = {row.key: row.published[SOP[0]] for row in plan_table("figure4").rows}
    assert len(values) == 25
    assert values["deit_s-b0.9-l1"] == 41.5
    for name in PLANS:
        assert plan_table(name).rows
        assert any(row.published for row in plan_table(name).rows)


def test_reimplemented_are_the_twelve_figures() -> None:
    assert sum(map(len, REIMPLEMENTED.values())) == 12
    assert REIMPLEMENTED["irt_l"][Measure("inshop", "recall_at_1")] == 93.09


def test_grid_name_spells_whole_and_broken_weights() -> None:
    assert grid_name("r50", 0.1, 1.0) == "r50-b0.1-l1"
