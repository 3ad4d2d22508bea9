"""What training minimizes.

The files in reading order: ``term.py`` (the contract of a loss); ``contrastive.py``, ``memory.py``,
``tuple_contrastive.py``, ``koleo.py``, ``multi_similarity.py``, ``supervised_contrastive.py``, ``circle.py``,
``triplet.py``, ``hyperbolic.py`` (losses over pairs, and the memory); ``smooth_ap.py``, ``recall_at_k.py`` (losses over
ranks); ``proxies.py``, ``proxy_anchor.py``, ``normalized_softmax.py``, ``proxy_nca.py``, ``margin_softmax.py`` (losses
with learned vectors of the classes, and how these begin); ``scalable_nca.py``; ``distillation.py`` (a larger
encoder); ``losses.py`` (the table of the losses); ``own.py`` (terms of a user's own); ``objective.py`` (the sum).
"""
