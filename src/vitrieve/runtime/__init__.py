"""Engines that turn prepared pictures into embeddings; evaluate, embed and search use the same ones.

Only ``torch_engine.py`` imports torch, and ``device.py`` inside its functions.

The files in reading order, each of which begins with what it is for: ``encoder.py``, ``text.py``, ``device.py``,
``engine.py``, ``torch_engine.py``, ``compiled.py``, ``graph_engines.py``, ``int8.py``.
"""
