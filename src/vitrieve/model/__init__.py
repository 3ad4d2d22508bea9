"""The encoder: from pixels to an embedding.

``tensors``, ``positions``, ``delta``, ``pretrained``, ``artifact`` and ``named_graph`` need no torch.

The files in reading order, each of which begins with what it is for: ``tensors.py``, ``positions.py``,
``delta.py``, ``pretrained.py``, ``artifact.py``, ``named_graph.py``, ``checkpoint.py``, ``backbone.py``,
``pooling.py``, ``reduction.py``, ``encoder.py``, ``export.py``.
"""
