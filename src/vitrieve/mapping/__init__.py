"""A map of a collection: every picture is a point in the plane, and what looks alike lies together.

In reading order:
    neighbors.py       the exact nearest neighbors of every picture
    layout.py          a place for every picture, from its neighbors, and how well the places keep them
    clusters.py        groups of pictures, from the same neighbors
    collection_map.py  the map as a whole: computed once, kept beside the index, computed anew when the index changed
"""
