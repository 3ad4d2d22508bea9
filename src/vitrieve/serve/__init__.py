"""Searching over HTTP: ``app.py`` (the whole), then ``api.py`` (for programs) and ``pages.py`` (for people)."""
