"""vitrieve: train a vision transformer to find the same thing again, measure it, and search with it.

The files of this package in reading order, which is also the order of running and the allowed direction
of import: ``quoting``, ``errors``, ``progress``, ``cache``, ``machine`` | ``config``, ``config_check``,
``config_json``, ``config_overrides``, ``recipes`` | ``similarity`` | ``artifacts``, ``replacing`` |
``data/`` | ``model/`` | ``runtime/`` | ``objective/`` | ``embed/`` | ``evaluation/`` | ``training/`` | ``index/`` |
``syncing/`` | ``search/`` | ``serve/`` | ``reproduce/`` | ``doctor`` | ``cli/``.

The imports below are the one list of public names. They are carried out when a name is first used (PEP 562), so that
importing ``vitrieve`` costs nothing; type checkers read them as they stand.
"""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vitrieve import recipes as recipes
    from vitrieve.config import Config as Config
    from vitrieve.data.records import Dataset as Dataset
    from vitrieve.data.records import ImageRecord as ImageRecord
    from vitrieve.data.sources import read_collection as read_collection
    from vitrieve.data.sources import read_source as read_source
    from vitrieve.embed.collection import Embeddings as Embeddings
    from vitrieve.embed.collection import embed_images as embed_images
    from vitrieve.embed.collection import load_embeddings as load_embeddings
    from vitrieve.errors import ArtifactError as ArtifactError
    from vitrieve.errors import ConfigError as ConfigError
    from vitrieve.errors import DataError as DataError
    from vitrieve.errors import DecodeError as DecodeError
    from vitrieve.errors import DiskFullError as DiskFullError
    from vitrieve.errors import FingerprintError as FingerprintError
    from vitrieve.errors import InputError as InputError
    from vitrieve.errors import NonFiniteLossError as NonFiniteLossError
    from vitrieve.errors import PictureTooLargeError as PictureTooLargeError
    from vitrieve.errors import ReplacedError as ReplacedError
    from vitrieve.errors import UnfinishedRunError as UnfinishedRunError
    from vitrieve.errors import VitrieveError as VitrieveError
    from vitrieve.errors import WeightsError as WeightsError
    from vitrieve.evaluation.evaluate import Evaluation as Evaluation
    from vitrieve.evaluation.evaluate import evaluate as evaluate
    from vitrieve.evaluation.metrics import map_at_r as map_at_r
    from vitrieve.evaluation.metrics import r_precision as r_precision
    from vitrieve.evaluation.metrics import recall_at_k as recall_at_k
    from vitrieve.evaluation.revisited import revisited_metrics as revisited_metrics
    from vitrieve.index.open import build_index as build_index
    from vitrieve.index.open import open_index as open_index
    from vitrieve.runtime.encoder import Encoder as Encoder
    from vitrieve.runtime.encoder import load_encoder as load_encoder
    from vitrieve.search.request import Example as Example
    from vitrieve.search.request import SearchAnswer as SearchAnswer
    from vitrieve.search.request import SearchRequest as SearchRequest
    from vitrieve.search.request import SearchResult as SearchResult
    from vitrieve.search.searcher import Searcher as Searcher
    from vitrieve.serve.app import create_app as create_app
    from vitrieve.syncing.run import SyncReport as SyncReport
    from vitrieve.syncing.sync import sync as sync
    from vitrieve.training.run import TrainedRun as TrainedRun
    from vitrieve.training.run import train as train


def _read_public_names() -> dict[str, str]:
    """Read the imports above: public name -> its module."""
    statements = ast.parse(Path(__file__).read_text(encoding="utf-8")).body
    block = next(statement for statement in statements if isinstance(statement, ast.If))
    imports = [statement for statement in block.body if isinstance(statement, ast.ImportFrom)]
    return {alias.name: str(statement.module) for statement in imports for alias in statement.names}


_PUBLIC_NAMES = _read_public_names()
__all__ = sorted([*_PUBLIC_NAMES, "__version__"])


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _PUBLIC_NAMES:
        raise AttributeError(f"module 'vitrieve' has no attribute {name!r}")
    module = _PUBLIC_NAMES[name]
    return import_module(f"vitrieve.{name}") if module == "vitrieve" else getattr(import_module(module), name)


def __dir__() -> list[str]:
    """List the public names without importing them."""
    return list(__all__)
