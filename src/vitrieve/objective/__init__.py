"""What training minimizes.

The files in reading order: ``term.py`` (the contract of a loss); ``contrastive.py``, ``memory.py``,
``tuple_contrastive.py``, ``koleo.py``, ``multi_similarity.py``, ``proxy_anchor.py``, ``normalized_softmax.py``,
``proxy_nca.py``, ``scalable_nca.py`` (a loss each, and the memory); ``losses.py`` (the table of the losses);
``own.py`` (terms of a user's own); ``objective.py`` (the sum).
"""
