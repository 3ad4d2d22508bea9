"""Searching an index: by picture, image, vector, region or several examples.

In reading order: ``request.py`` (what can be asked), ``query.py`` (examples become a vector), ``ranking.py`` and
``grouping.py`` (the order of the results, and what stands behind one), ``rerank.py``, ``threshold.py`` (is it in the
collection at all?), ``searcher.py`` (all of it), ``overlay.py`` and ``explain.py`` (why did this match?), ``page.py``
(the result as a web page in one file).
"""
