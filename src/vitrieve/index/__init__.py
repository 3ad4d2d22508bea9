"""Embeddings made searchable: three stores behind one protocol.

The files in reading order, each of which begins with what it is for: ``store.py``, ``kinds.py``, ``filter.py``,
``comparison.py``, ``lock.py``, ``identity.py``, ``batch.py``, ``engine_errors.py``, ``vectors_file.py``,
``segments.py``, ``exact.py``, ``lance_schema.py``, ``lance_library.py``, ``lance_files.py``, ``lance_kinds.py``,
``resident.py``, ``lance.py``, ``milvus_rows.py``, ``milvus_server.py``, ``milvus.py``, ``open.py``.
"""
