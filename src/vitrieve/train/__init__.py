"""Fine-tuning.

Read ``loop.py`` first: the whole story in one function. ``holdout.py``, ``optimizer.py``, ``average.py``,
``selection.py``, ``state.py`` and ``metrics_log.py`` are its parts.
"""
