"""How the page and the terminal spell the metrics, as the field does. Next file: ``galleries.py``."""

from __future__ import annotations

from vitrieve.evaluation.metrics import Scores

SPELLINGS = {"r_precision": "R-precision", "map_at_r": "MAP@R", "mean_average_precision": "mAP"}
PREFIXES = {"recall_at_": "Recall@", "mp_at_": "mP@"}


def display_name(metric: str) -> str:
    """Spell a metric.

    >>> display_name("recall_at_10"), display_name("map_at_r"), display_name("mp_at_5")
    ('Recall@10', 'MAP@R', 'mP@5')
    """
    if metric in SPELLINGS:
        return SPELLINGS[metric]
    for prefix, spelling in PREFIXES.items():
        metric = metric.replace(prefix, spelling)
    return metric


def name_first(scores: Scores) -> str:
    """Spell what a group's first headline figure is: for a single query precision, not its mean."""
    return "P@1" if scores.group_name == "query" else display_name(scores.headlines[0])


def name_average(scores: Scores) -> str:
    """Spell what ``Scores.average_precision`` of one query or class is."""
    return "AP" if scores.group_name == "query" else display_name(scores.headlines[1])
