"""What training minimizes.

The files in reading order, each of which begins with what it is for: ``contrastive.py``, ``memory.py``,
``tuple_contrastive.py``, ``koleo.py``, ``multi_similarity.py``, ``proxy_anchor.py``, ``normalized_softmax.py``,
``proxy_nca.py``, ``scalable_nca.py``, ``objective.py``.
"""
