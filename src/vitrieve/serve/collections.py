"""Several collections of one service: the file that names them, and their indexes with the encoders that they share."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitrieve.config import Device
from vitrieve.errors import ArtifactError, ConfigError, InputError, unknown_name_message
from vitrieve.index.open import load_index_encoder
from vitrieve.index.resident import count_bytes
from vitrieve.index.store import read_info
from vitrieve.runtime.encoder import Encoder
from vitrieve.runtime.engine import EngineChoice, PrecisionChoice
from vitrieve.search.searcher import Searcher, parse_path_map
from vitrieve.serve.settings import Tokens, check_token

NAME_PATTERN = "[a-z0-9][a-z0-9-]{0,62}"
"""What a collection may be called: part of an address that nobody needs to spell otherwise."""
MAX_COLLECTIONS = 256
MIN_COPY_BYTES = 2**20
"""What is counted for the copy of an index at least: one that is empty now may grow."""
_KEYS = ("index", "encoder", "map-path", "tokens")
_TOKEN_KEYS = ("role", "file", "variable")
_ROLES = ("read", "write")


@dataclass(frozen=True, kw_only=True)
class CollectionSettings:
    """One collection, as the file describes it.

    Attributes:
        name: Its name in addresses.
        index: Folder of the index.
        encoder: Where the index's encoder is now; None: where it was when the index was made.
        map_path: ``OLD=NEW`` for photographs that lie elsewhere by now.
        tokens: Who may read and who may write.
    """

    name: str
    index: Path
    encoder: str | None = None
    map_path: tuple[str, ...] = ()
    tokens: Tokens = field(default_factory=Tokens)


def read_collections(
    file: Path, *, token: str | None = None, write_token: str | None = None
) -> list[CollectionSettings]:
    """Read the file of collections, and their tokens from where it says that they are.

    Args:
        file: A TOML file with a table for each collection; its paths begin at its own folder.
        token: Token that reads every collection, too.
        write_token: Token that writes every collection, too.

    Raises:
        ConfigError: No such file, no TOML, a name or a key that it cannot have, or a token that is not there.
    """
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}); give a TOML file of collections.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is no TOML: {error}.") from None
    if not 1 <= len(tables) <= MAX_COLLECTIONS:
        raise ConfigError(
            f"{file} names {len(tables)} collections; give 1 to {MAX_COLLECTIONS}, each as a table [name] with its "
            "index."
        )
    found = []
    for name, table in sorted(tables.items()):
        try:
            found.append(_read_collection(file.absolute().parent, name, table, Tokens.of(token, write_token)))
        except ConfigError as error:
            raise ConfigError(f"{file}: the collection {name!r}: {error}") from None
    return found


def _read_collection(folder: Path, name: str, table: Any, shared: Tokens) -> CollectionSettings:
    if not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError("a name has up to 63 of a-z, 0-9 and -, and does not begin with -.")
    if not isinstance(table, dict):
        raise ConfigError(f'it must be a table: [{name}] and below it index = "FOLDER".')
    for key in table:
        if key not in _KEYS:
            raise ConfigError(unknown_name_message("key", key, _KEYS))
    index, encoder, maps = table.get("index"), table.get("encoder"), table.get("map-path", [])
    if not isinstance(index, str) or not index:
        raise ConfigError('index is missing; give the folder of its index: index = "FOLDER".')
    if not isinstance(encoder, str | None):
        raise ConfigError("encoder must be a text.")
    if not (isinstance(maps, list) and all(isinstance(one, str) for one in maps)):
        raise ConfigError('map-path must be a list of texts: ["OLD=NEW"].')
    tokens = _read_tokens(folder, table.get("tokens", []), shared)
    if tokens.write and maps:
        raise ConfigError(
            "a token for writing and map-path do not go together: a change would write the mapped paths into the index."
        )
    if encoder is not None and (folder / encoder).exists():
        encoder = str(folder / encoder)
    return CollectionSettings(name=name, index=folder / index, encoder=encoder, map_path=tuple(maps), tokens=tokens)


def _read_tokens(folder: Path, described: Any, shared: Tokens) -> Tokens:
    """Read the tokens of a collection, and add those of the whole service."""
    if not isinstance(described, list):
        raise ConfigError('tokens must be a list: [{ role = "read", file = "FILE" }].')
    own = [_read_token(folder, one) for one in described]
    read, write = ([token for role, token in own if role == wanted] for wanted in _ROLES)
    tokens = Tokens(
        read=tuple(dict.fromkeys((*read, *shared.read))), write=tuple(dict.fromkeys((*write, *shared.write)))
    )
    if set(tokens.read) & set(tokens.write):
        raise ConfigError("a token for writing is a token for reading, too; give two that differ.")
    return tokens


def _read_token(folder: Path, described: Any) -> tuple[str, str]:
    """Read one token from its file or variable; return its role with it."""
    if not isinstance(described, dict):
        raise ConfigError('a token is described by { role = "read", file = "FILE" }, or variable = "NAME".')
    for key in described:
        if key not in _TOKEN_KEYS:
            raise ConfigError(
                f"{unknown_name_message('key', key, _TOKEN_KEYS)} A token itself does not stand in this file."
            )
    role, file, variable = (described.get(key) for key in _TOKEN_KEYS)
    if role not in _ROLES:
        raise ConfigError(f"a token's role is {role!r}; accepted: {', '.join(_ROLES)}.")
    if isinstance(variable, str) and file is None:
        token = os.environ.get(variable, "")
        if not token:
            raise ConfigError(f"the variable {variable} for its token is not set.")
    elif isinstance(file, str) and variable is None:
        try:
            token = (folder / file).read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the file {file} of its token cannot be read: {error}.") from None
    else:
        raise ConfigError("a token comes from a file or from a variable; give one of the two, as a text.")
    check_token(token, f"token from {file or variable}")
    return role, token


class Collections:
    """Indexes that are open, by the names of their collections, with who may read and write each.

    Attributes:
        searchers: Index and encoder of each collection, in the order of names.
        tokens: Who may read and who may write it.
    """

    def __init__(self, searchers: Mapping[str, Searcher], tokens: Mapping[str, Tokens]) -> None:
        self.searchers = dict(searchers)
        self.tokens = dict(tokens)

    @property
    def is_open(self) -> bool:
        """Say whether anything can be read without a token."""
        return not all(one.read for one in self.tokens.values())

    def count_bytes(self) -> dict[str, int]:
        """Return about what a copy of each index in memory takes."""
        return {
            name: max(MIN_COPY_BYTES, count_bytes(searcher.store.count(), searcher.store.info.embedding_dim))
            for name, searcher in self.searchers.items()
        }

    def close(self) -> None:
        """Close all indexes."""
        for searcher in self.searchers.values():
            searcher.close()

    def __enter__(self) -> Collections:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_collections(
    file: Path,
    *,
    token: str | None = None,
    write_token: str | None = None,
    engine: EngineChoice = "auto",
    precision: PrecisionChoice = "auto",
    num_threads: int | None = None,
    device: Device = "auto",
) -> Collections:
    """Open the collections of a file; an encoder that several of them have is loaded once.

    Args:
        file: As for ``read_collections``.
        token: As there.
        write_token: As there.
        engine: What computes.
        precision: Numeric precision of the matrix products.
        num_threads: CPU threads of a search; None: all cores.
        device: Device of the encoders.

    Raises:
        ConfigError: As ``read_collections``.
        ArtifactError: As ``Searcher.open``, with the name of the collection.
    """
    described = read_collections(file, token=token, write_token=write_token)
    encoders: dict[str, Encoder] = {}
    searchers: dict[str, Searcher] = {}
    with ExitStack() as stack:
        for one in described:
            try:
                info, _ = read_info(one.index)
                if info.fingerprint not in encoders:
                    encoders[info.fingerprint] = load_index_encoder(
                        info, one.encoder, engine=engine, precision=precision, num_threads=num_threads, device=device
                    )
                searcher = Searcher.open(
                    one.index,
                    encoders[info.fingerprint],
                    engine=engine,
                    precision=precision,
                    num_threads=num_threads,
                    device=device,
                    maps=[parse_path_map(text) for text in one.map_path],
                )
            except InputError as error:
                kind = ArtifactError if isinstance(error, ArtifactError) else ConfigError
                raise kind(f"the collection {one.name}: {error}") from error
            searchers[one.name] = stack.enter_context(searcher)
        stack.pop_all()
    return Collections(searchers, {one.name: one.tokens for one in described})


def divide_memory(needs: Mapping[str, int], max_bytes: int) -> dict[str, int]:
    """Divide memory for copies of indexes: the smallest first, each with its share of what is left over, to grow.

    Args:
        needs: What the copy of each takes.
        max_bytes: What all of them may take.

    Returns:
        The bound of each; 0 for one that does not fit.

    >>> divide_memory({"large": 900, "small": 100, "huge": 5000}, 2000)
    {'large': 1800, 'small': 200, 'huge': 0}
    """
    fitting: dict[str, int] = {}
    for name, need in sorted(needs.items(), key=lambda one: (one[1], one[0])):
        if sum(fitting.values()) + need <= max_bytes:
            fitting[name] = need
    total = sum(fitting.values())
    return {
        name: max_bytes * need // total if name in fitting and total else 0 if total else max_bytes // len(needs)
        for name, need in needs.items()
    }
