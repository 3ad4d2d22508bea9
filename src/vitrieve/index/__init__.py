"""Embeddings made searchable: three stores behind one protocol.

In reading order:
    store.py                what a vector store is
    kinds.py, filter.py, comparison.py  kinds of columns; how conditions on metadata are written; what they mean
    lock.py, identity.py, batch.py      one writer at a time; is it still the index that was opened; what every store
                            checks
    vectors_file.py, segments.py, exact.py  vectors in files, every one compared: never wrong
    lance_schema.py, lance_library.py, lance_files.py, lance_kinds.py, resident.py, lance.py    LanceDB in the folder:
                            the default; a copy in memory for services
    milvus_rows.py, milvus_server.py, milvus.py     the same index on a Milvus cluster
    open.py                 make an index, open an index
"""
