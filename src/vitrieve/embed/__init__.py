"""Collection to vectors: resumable, bad files reported.

The files in reading order, each of which begins with what it is for: ``rows.py``, ``batches.py``, ``embeddings.py``,
``unfinished.py``, ``reuse.py``, ``collection.py``, ``job_array.py``, ``on_ray.py``.
"""
