"""Searching an index: ``searcher.py`` (by picture), then ``page.py`` (the result as a web page in one file)."""
