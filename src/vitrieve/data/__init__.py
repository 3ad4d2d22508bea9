"""Images and their labels: from a source on disk to batches of pictures.

In reading order: ``records.py`` (one record type), ``sources.py`` (the spelling ``NAME:PATH``), the readers
``grocery.py``, ``emoji.py``, ``folder.py`` and ``manifest.py``, ``decode.py`` (bytes to RGB), ``preprocess.py``
(the test-time view), ``augment.py`` (training views), ``sampler.py``, ``loader.py``, and ``check.py``
(what is wrong with a collection).
"""
