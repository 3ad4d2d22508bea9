"""Embeddings made searchable: four stores behind one protocol.

The files in reading order, each of which begins with what it is for: ``open.py``, ``store.py``, ``filter.py``,
``folder.py``, ``written.py``, ``claims.py``, ``segments.py``, ``exact.py``, ``lance_files.py``, ``lance_table.py``,
``resident.py``, ``lance.py``, ``milvus_rows.py``, ``milvus.py``, ``pgvector_server.py``, ``pgvector_rows.py``,
``pgvector.py``, ``pgvector_feedback.py``, ``feedback.py``.
"""
