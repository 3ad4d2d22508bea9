"""Keeping an index true to a collection that changes.

The files in reading order, each of which begins with what it is for: ``sync.py``, ``scan.py``, ``read.py``,
``state.py``, ``watch.py``.
"""
