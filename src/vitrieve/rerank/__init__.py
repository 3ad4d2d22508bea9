"""Ordering the first images of a search again.

In reading order:
    names.py        the names, which need nothing else
    neighbors.py    by global vectors: query expansion, k-reciprocal sets, SuperGlobal
    matching.py     by parts of pictures: Chamfer similarity, optimal transport, the best pair
    parts.py        the parts of a picture, patches or tiles, as a few vectors of bytes
    head.py         the learned head of ELViS, without torch
    learning.py     how that head is learned, with torch
    reranker.py     the one interface of all of them, and their table
    remember.py     the re-ranking that an index remembers
"""
