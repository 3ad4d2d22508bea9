"""Collection to vectors: resumable, bad files reported.

In reading order: ``rows.py`` (image records as a Parquet table), ``batches.py`` (decoding beside encoding),
``parts.py`` (what a killed run has already done), ``collection.py`` (the two verbs, and the embeddings they make).
"""
