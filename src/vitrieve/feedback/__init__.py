"""What people say of the results of a search, kept beside an index, and what a training learns from it.

Files in reading order: ``events.py`` (one correction, and which of them count), ``pairs.py`` (the manifest of pairs
that a training reads), ``learning.py`` (what it learns), ``store.py`` (the small database). ``index/feedback.py`` opens
that of an index.
"""
