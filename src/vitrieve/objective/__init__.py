"""What training minimises.

Read ``contrastive.py``, ``memory.py``, ``koleo.py``, ``multi_similarity.py``, ``proxy_anchor.py``, then
``objective.py``, which adds them up.
"""
