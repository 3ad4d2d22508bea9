"""Embeddings made searchable: ``exact.py`` compares with every vector, and is never wrong."""
