"""vitrieve: train a vision transformer to find the same thing again, measure it, and search with it.

The files of this package in reading order, which is also the order of running and the allowed direction
of import: ``quoting``, ``errors``, ``progress``, ``machine``, ``plugins`` | ``settings``, ``objective/``, ``config``,
``recipes/`` | ``similarity/`` | ``artifacts`` | ``data/`` | ``feedback/`` | ``model/`` | ``runtime/`` | ``embed/`` |
``evaluation/`` | ``training/`` | ``comparison/`` | ``index/`` | ``syncing/`` | ``search/`` | ``curation/`` |
``mapping/`` | ``serve/`` | ``reproduce/`` | ``doctor`` | ``cli/``.

The public names stand once, as imports in ``__init__.pyi``, where type checkers read them. Each is imported when it is
first used (PEP 562), so that importing ``vitrieve`` costs nothing.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
