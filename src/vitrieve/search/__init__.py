"""Searching an index: by picture, image, vector, region or several examples.

The files in reading order, each of which begins with what it is for: ``request.py``, ``query.py``, ``ranking.py``,
``rerank.py``, ``threshold.py``, ``searcher.py``, ``mapped.py``, ``explain.py``, ``page.py``, ``text.py``,
``calibrate.py``.
"""
