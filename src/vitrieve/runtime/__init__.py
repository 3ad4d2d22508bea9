"""Engines that turn prepared pictures into embeddings; evaluate, embed and search use the same ones.

In reading order: ``encoder.py`` (``Encoder`` and ``load_encoder``), ``engine.py`` (what an engine is), ``choice.py``
(which one), ``torch_engine.py``, ``onnx_engine.py``, ``telemetry.py``, ``openvino_engine.py``, ``precision.py`` (has
this processor bf16 instructions?), ``quantisation.py`` (int8). Only ``torch_engine.py`` imports torch.
"""
