"""The encoder: from pixels to an embedding.

In reading order: ``spec.py`` (what an encoder is, without torch), ``pretrained.py`` (the table of weights and the
cache), ``wheels.py`` and ``hub.py`` (where weights come from), ``backbone.py`` (timm), ``pooling.py``,
``reduction.py`` (PCA), ``encoder.py`` (the parts joined), ``fingerprint.py`` and ``artefact.py`` (the encoder's
folder), ``card.py`` (its README), ``export.py`` (ONNX). ``spec``, ``pretrained``, ``fingerprint`` and ``card`` need no
torch.
"""
