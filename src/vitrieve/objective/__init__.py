"""What training minimises.

Read ``contrastive.py``, ``memory.py``, ``tuple_contrastive.py``, ``koleo.py``, ``multi_similarity.py``,
``proxy_anchor.py``, ``normalized_softmax.py``, ``proxy_nca.py`` and ``scalable_nca.py``, then ``objective.py``, which
adds them up.
"""
