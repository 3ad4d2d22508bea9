"""Keeping an index true to a collection that changes.

In reading order: ``stamps.py`` (what a file was when it was indexed, on disk), ``ledger.py`` (stamps and vector store,
changed in an order that survives a kill), ``describe.py`` (metadata that a place and a content give), ``content.py``
(a file read once: hash, metadata, pixels), ``scan.py`` (the collection now, and what differs), ``intake.py`` (files to
vectors in the store), ``removal.py`` (what may be removed), ``run.py`` (one sync), ``watch.py`` (when to sync again),
``place.py`` (which index belongs to a folder), ``session.py`` (an index opened for syncing), ``sync.py`` (the public
function, and syncing again and again), ``findings.py`` (what a person must be told of a sync).
"""
