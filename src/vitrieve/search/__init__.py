"""Searching an index: by picture, image, vector, region or several examples.

The files in reading order:

- ``request.py``: what can be asked, and the answer.
- ``query.py`` makes one vector of the examples of a request.
- ``ranking.py`` fetches the nearest images, puts the first in another order, and groups them.
- ``words.py`` finds the words of a text in the names, files and metadata of the images.
- ``fusion.py`` orders images by words, alone or together with what the vector finds.
- ``part_store.py`` keeps the parts of the images that some re-rankings compare.
- ``threshold.py``: from which score on a result counts as the wanted thing, and how that is calibrated.
- ``remembered.py`` reads the threshold and the re-ranking that an index keeps, again when a command wrote them.
- ``searcher.py`` joins an index with its encoder and answers requests.
- ``facets.py`` counts the values of metadata columns; ``variety.py`` chooses images that show the variety of many.
- ``explain.py`` finds which patches of a query and a result match, and draws them.
"""
