"""Images and their labels: from a source on disk to batches of pictures.

The files in reading order, each of which begins with what it is for:
``records.py``, ``sources.py``, ``layout.py``, ``walk.py``, ``ignore.py``, ``class_folders.py``, ``folder.py``,
``manifest.py``, ``table_cells.py``, ``table_paths.py``, ``grocery.py``, ``emoji.py``, ``cub200.py``, ``sop.py``,
``inshop.py``, ``sfm120k.py``, ``revisited.py``, ``restricted_pickle.py``, ``descriptions.py``, ``check.py``,
``jpeg.py``, ``isobmff.py``, ``work.py``, ``budget.py``, ``raw.py``, ``decode.py``, ``convert.py``, ``picture.py``,
``preprocess.py``, ``readable.py``, ``augment.py``, ``sampler.py``, ``loader.py``.
"""
