"""The encoder: from pixels to an embedding.

``tensors`` to ``chooser`` need no torch.

The files in reading order, each of which begins with what it is for: ``tensors.py``, ``positions.py``, ``delta.py``,
``catalog.py``, ``wheels.py``, ``pretrained.py``, ``seen.py``, ``artifact.py``, ``named_graph.py``, ``hub.py``,
``text.py``, ``towers.py``, ``preprocessor.py``, ``published_graph.py``, ``conversion.py``, ``published.py``,
``default.py``, ``chooser.py``, ``prompts.py``, ``checkpoint.py``, ``backbone.py``, ``lora.py``, ``pooling.py``,
``reduction.py``, ``encoder.py``, ``blocks.py``, ``foreign.py``, ``export.py``, ``device_formats.py``,
``hugging_face.py``, ``text_export.py``, ``tower_export.py``.
"""
