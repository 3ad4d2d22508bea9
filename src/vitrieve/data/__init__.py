"""Images and their labels: from a source on disk to batches of pictures.

The files in reading order, each of which begins with what it is for: ``records.py``, ``holdout.py``, ``sources.py``,
``several.py``, ``walk.py``, ``folder.py``, ``table.py``, ``layout.py``, ``grocery.py``, ``emoji.py``, ``cub200.py``,
``sop.py``, ``inshop.py``, ``sfm120k.py``, ``revisited.py``, ``tars.py``, ``cells.py``, ``remote.py``, ``blocks.py``,
``parts.py``, ``isobmff.py``, ``work.py``, ``raw.py``, ``color.py``, ``decode.py``, ``shards.py``, ``foreign.py``,
``huggingface.py``, ``pack.py``, ``preprocess.py``, ``background.py``, ``check.py``, ``ocr.py``, ``loader.py``.
"""
