"""The paper's tables and figures as plans of runs, and their pages.

The files in reading order, each of which begins with what it is for: ``published.py``, ``rows.py``, ``methods.py``,
``tables.py``, ``figures.py``, ``plan.py``, ``stand_in.py``, ``commands.py``, ``analyze.py``, ``gradients.py``,
``run.py``, ``outcome.py``, ``charts.py``, ``page.py``, ``reproduce.py``.
"""
