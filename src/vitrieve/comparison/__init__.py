"""One honest contest of training methods: the same backbone, images, budget and number of trials for each.

The files in reading order:

- ``methods.py``: what competes, what is the same for all, and the grid of trials.
- ``cells.py``: one result: its trials are trained, the best is measured, and what came of it is kept.
- ``contest.py`` goes through the results, one after the other, and goes on with what was stopped.
- ``statistics.py``: paired tests, ranks over data sets, and the sentence that says what won.
- ``page.py`` writes the page.
"""
