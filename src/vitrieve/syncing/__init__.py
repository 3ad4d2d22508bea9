"""Keeping an index true to a collection that changes.

The files in reading order, each of which begins with what it is for: ``stamps.py``, ``ledger.py``, ``content.py``,
``exclusion.py``, ``scan.py``, ``intake.py``, ``removal.py``, ``run.py``, ``watch.py``, ``session.py``, ``sync.py``,
``findings.py``.
"""
