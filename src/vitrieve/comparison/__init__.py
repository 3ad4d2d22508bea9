"""One honest contest of training methods: the same backbone, images, budget and number of trials for each.

The files in reading order:

- ``methods.py``: what competes, what is the same for all, and the grid of trials.
- ``failures.py`` tells the failures of a method, which are results, from those that stop a contest.
- ``cells.py``: one result: its trials are trained, the best is measured, and what came of it is kept.
- ``begun.py`` has what the results of before say to the sources and methods of a call.
- ``contest.py`` goes through the results, one after the other, and goes on with what was stopped.
- ``statistics.py``: paired tests, ranks over data sets, and the sentence that says what won.
- ``page.py`` writes the page.
"""
