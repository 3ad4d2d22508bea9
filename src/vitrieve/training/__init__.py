"""Fine-tuning. ``run.py`` is the whole story, ``loop.py`` its steps; the other files are their parts.

The files in reading order, each of which begins with what it is for: ``run.py``, ``loop.py``, ``holdout.py``,
``settings.py``, ``device.py``, ``resolution.py``, ``microbatch.py``, ``optimizer.py``, ``average.py``,
``selection.py``, ``tuples.py``, ``digest.py``, ``state.py``, ``metrics_log.py``, ``reduce.py``,
``reduction_run.py``.
"""
