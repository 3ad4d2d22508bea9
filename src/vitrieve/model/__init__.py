"""The encoder: from pixels to an embedding.

``tensors`` to ``named_graph`` need no torch.

The files in reading order, each of which begins with what it is for: ``tensors.py``, ``positions.py``,
``delta.py``, ``catalog.py``, ``pretrained.py``, ``chooser.py``, ``artifact.py``, ``named_graph.py``,
``checkpoint.py``, ``backbone.py``, ``pooling.py``, ``reduction.py``, ``encoder.py``, ``export.py``.
"""
