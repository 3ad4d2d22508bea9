"""Fine-tuning. ``run.py`` is the whole story, ``loop.py`` its steps; the other files are their parts.

The files in reading order, each of which begins with what it is for: ``run.py``, ``order.py``, ``images.py``,
``holding_out.py``, ``image_size.py``, ``finishing.py``, ``loop.py``, ``selection.py``, ``identity.py``,
``distillation.py``, ``compute.py``, ``draws.py``, ``optimizer.py``, ``relations.py``, ``tuples.py``, ``state.py``,
``metrics_log.py``, ``callbacks.py``, ``loggers.py``, ``record.py``, ``watching.py``, ``ranks.py``, ``liveness.py``,
``reporting.py``, ``reduction.py``, ``adaptation.py``, ``alignment.py``, ``runs.py``.
"""
