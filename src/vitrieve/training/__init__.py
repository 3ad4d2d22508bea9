"""Fine-tuning.

Read ``loop.py`` first: the whole story in one function. ``holdout.py``, ``settings.py``, ``device.py``,
``resolution.py``, ``microbatch.py``, ``optimizer.py``, ``average.py``, ``selection.py``, ``tuples.py``, ``state.py``,
``metrics_log.py`` and ``reduce.py`` are its parts.
"""
