"""The encoder: from pixels to an embedding.

``spec``, ``pretrained``, ``positions``, ``artifact``, ``card`` and ``named_graph`` need no torch.

The files in reading order, each of which begins with what it is for: ``spec.py``, ``pretrained.py``, ``wheels.py``,
``hub.py``, ``local_weights.py``, ``key_names.py``, ``positions.py``, ``checkpoint.py``, ``backbone.py``,
``pooling.py``, ``reduction.py``, ``scales.py``, ``encoder.py``, ``going_on.py``, ``cost.py``, ``artifact.py``,
``card.py``, ``export.py``, ``named_graph.py``.
"""
