"""The way to a PostgreSQL server: its address, what it must be able to do, a pool of connections, its errors.

Passwords and TLS come from the environment of libpq (``PGPASSWORD``, ``~/.pgpass``, ``PGSSLMODE``, ``PGSSLROOTCERT``);
TLS may stand in the address, too. An address with a password is refused, because addresses are printed and kept.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from pgvector.psycopg import register_vector
from psycopg import Connection, IsolationLevel, errors
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool, PoolTimeout

from vitrieve.errors import ArtifactError, ConfigError, DataError, DiskFullError, VitrieveError
from vitrieve.quoting import quote_name

SCHEMES = ("postgresql://", "postgres://")
EXAMPLE = "postgresql://user@localhost:5432/database"
SECRETS = ("password", "sslpassword")
MIN_SERVER = 130_000
"""PostgreSQL 13, the oldest that pgvector 0.8 runs on."""
MIN_EXTENSION = (0, 8)
"""The first pgvector that goes on searching its graph where a filter leaves too few images."""
MAX_CONNECTIONS = 16
TIMEOUT_SECONDS = 15.0
"""How long to wait for a connection: a server that is started again takes a few seconds."""
WAIT_MILLISECONDS = 60_000
"""How long a change waits for another one."""

_LOCK_SETTINGS = (
    "SELECT set_config('lock_timeout', %s, false), set_config('tcp_keepalives_idle', '15', false), "
    "set_config('tcp_keepalives_interval', '5', false), set_config('tcp_keepalives_count', '3', false)"
)
_NO_IDLE_TIMEOUT = "SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'idle_session_timeout'"
"""PostgreSQL 13 has no such setting."""


class Server:
    """A pool of connections to a database; closed when nobody needs it any longer.

    Args:
        uri: Address of the database, checked.
    """

    def __init__(self, uri: str) -> None:
        # It logs every failed attempt to connect; the errors below say what is wrong.
        for name in ("psycopg", "psycopg.pool"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.uri = uri
        self._process_id = os.getpid()
        pool: ConnectionPool[Connection[TupleRow]] = ConnectionPool(
            uri,
            kwargs=_connection_options(uri),
            min_size=0,
            max_size=MAX_CONNECTIONS,
            timeout=TIMEOUT_SECONDS,
            configure=register_vector,
            check=ConnectionPool.check_connection,
            open=True,
        )
        self._pool = pool
        self.close = weakref.finalize(self, _close, pool, self._process_id)

    @contextmanager
    def reading(self) -> Iterator[Connection[TupleRow]]:
        """Give a connection for one transaction that sees one state of the database, and changes nothing.

        Raises:
            ArtifactError: The pool is closed, or came through a fork; or as ``reported``.
        """
        with self._lend() as connection:
            connection.isolation_level, connection.read_only = IsolationLevel.REPEATABLE_READ, True
            yield connection

    @contextmanager
    def changing(self) -> Iterator[Connection[TupleRow]]:
        """Give a connection for one transaction, which is undone where the block raises; errors as ``reading``."""
        with self._lend() as connection:
            connection.isolation_level, connection.read_only = IsolationLevel.READ_COMMITTED, False
            connection.execute("SELECT set_config('lock_timeout', %s, true)", [str(WAIT_MILLISECONDS)])
            yield connection

    @contextmanager
    def maintaining(self) -> Iterator[Connection[TupleRow]]:
        """Give a connection without a transaction, as VACUUM needs it; errors as ``reading``."""
        with self._lend() as connection:
            connection.read_only, connection.autocommit = False, True
            try:
                yield connection
            finally:
                if not connection.closed:
                    connection.autocommit = False

    @contextmanager
    def _lend(self) -> Iterator[Connection[TupleRow]]:
        if not self.close.alive:
            raise ArtifactError("the index is closed; open it again.")
        if os.getpid() != self._process_id:
            raise ArtifactError(
                "a pgvector index cannot be used across a fork; open it in the new process, or start that with 'spawn'."
            )
        with reported(self.uri), self._pool.connection() as connection:
            yield connection


def _close(pool: ConnectionPool[Connection[TupleRow]], process_id: int) -> None:
    """Close a pool, but not in a fork: that would end the connections of the process that opened them."""
    if os.getpid() == process_id:
        pool.close()


def check_address(uri: str) -> None:
    """Refuse what is no address of a PostgreSQL server, or holds a password.

    Raises:
        ConfigError: As it says; the message never repeats the address, which may hold a password.
    """
    try:
        parts = conninfo_to_dict(uri) if uri.startswith(SCHEMES) else None
    except psycopg.ProgrammingError:
        parts = None
    if parts is None:
        raise ConfigError(f"the uri is no address of a PostgreSQL server; give one like {EXAMPLE}.")
    if any(parts.get(secret) for secret in SECRETS):
        raise ConfigError(
            "the uri holds a password, which lists of processes and the index would show; leave it out, and give it "
            "by PGPASSWORD or in ~/.pgpass."
        )


@contextmanager
def connected(uri: str) -> Iterator[Connection[TupleRow]]:
    """Connect once, without a pool, so that a refusal is told at once; checks the server's version.

    Raises:
        ConfigError: ``uri`` is no address, or the server is too old.
        ArtifactError: As ``reported``.
    """
    check_address(uri)
    with reported(uri), psycopg.connect(uri, **_connection_options(uri)) as connection:
        version = connection.info.server_version
        if version < MIN_SERVER:
            raise ConfigError(
                f"{quote_name(uri)} runs PostgreSQL {version // 10_000}; the store pgvector needs "
                f"{MIN_SERVER // 10_000} or newer."
            )
        yield connection


def lock_name(connection: Connection[TupleRow], name: str) -> None:
    """Hold the lock of a name until the transaction ends.

    Meanwhile nobody else makes or removes the tables of this name, or holds its lock.
    """
    connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [name])


@contextmanager
def holding_name(uri: str, name: str, seconds: float) -> Iterator[None]:
    """Hold the lock of a name on a server while the block runs: one process of all machines at a time.

    The lock belongs to a connection of its own, outside of any transaction. The server releases it when that ends: at
    once where the process dies, after half a minute where its machine vanishes, and when the server itself is stopped.

    Args:
        uri: Address of the server.
        name: What is locked, as by ``lock_name``.
        seconds: How long another one is waited for.

    Raises:
        TimeoutError: Another one holds the lock for longer.
        ArtifactError: The lock was lost while the block ran; or as ``reported``.
    """
    with connected(uri) as connection:
        connection.autocommit = True
        connection.execute(_NO_IDLE_TIMEOUT)
        connection.execute(_LOCK_SETTINGS, [str(max(1, round(1000 * seconds)))])  # 0 would wait for ever
        try:
            connection.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [name])
        except errors.LockNotAvailable:
            raise TimeoutError from None
        yield
        if not _release_name(connection, name):
            raise ArtifactError(
                f"the lock of the index at {quote_name(uri)} was lost during a change, so another writer may have "
                "changed it at the same time: look at what was changed. No pooler of transactions may stand between."
            )


def _release_name(connection: Connection[TupleRow], name: str) -> bool:
    """Give the lock of a name back; return whether it was still held."""
    try:
        row = connection.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", [name]).fetchone()
    except psycopg.OperationalError:
        return False
    return row is not None and bool(row[0])


def _connection_options(uri: str) -> dict[str, Any]:
    """Return how to connect: statements are planned anew each time, because a filter decides how to search."""
    options: dict[str, Any] = {"prepare_threshold": None, "client_encoding": "utf8"}
    options["fallback_application_name"] = "vitrieve"
    if "connect_timeout" not in conninfo_to_dict(uri) and "PGCONNECT_TIMEOUT" not in os.environ:
        options["connect_timeout"] = int(TIMEOUT_SECONDS)
    return options


def require_extension(connection: Connection[TupleRow], uri: str, *, is_made: bool) -> None:
    """Check that the database has pgvector, new enough.

    Args:
        connection: A connection to it.
        uri: Its address, for messages.
        is_made: Whether the extension is made where it is missing.

    Raises:
        ConfigError: It is missing, and this role may not make it or the server does not have it; or it is too old.
    """
    version = _read_extension(connection)
    if version is None and is_made:
        reason = _make_extension(connection)
        version = _read_extension(connection)
    else:
        reason = ""
    if version is None:
        raise ConfigError(
            f"the database {quote_name(uri)} has no extension vector{reason}; its administrator runs CREATE EXTENSION "
            "vector there once (the server needs pgvector installed)."
        )
    if tuple(int(part) for part in version.split(".")[:2]) < MIN_EXTENSION:
        raise ConfigError(
            f"the database {quote_name(uri)} has pgvector {version}; this store needs "
            f"{'.'.join(map(str, MIN_EXTENSION))} or newer: install it, and run ALTER EXTENSION vector UPDATE there."
        )


def _read_extension(connection: Connection[TupleRow]) -> str | None:
    row = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
    return None if row is None else str(row[0])


def _make_extension(connection: Connection[TupleRow]) -> str:
    """Make the extension; return why that failed, as a clause, or nothing."""
    try:
        with connection.transaction():
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    except errors.UniqueViolation:  # another process has just made it
        return ""
    except (errors.InsufficientPrivilege, errors.FeatureNotSupported, errors.UndefinedFile) as error:
        return f" ({reason_of(error)})"
    return ""


def find_schema(connection: Connection[TupleRow], uri: str) -> str:
    """Return the schema where new tables go.

    Raises:
        ConfigError: There is none, or the database does not hold Unicode.
    """
    row = connection.execute("SELECT current_schema(), current_setting('server_encoding')").fetchone()
    schema, encoding = row if row is not None else (None, "")
    if schema is None:
        raise ConfigError(
            f"{quote_name(uri)} has no schema for new tables; name one with ?options=-csearch_path%3DNAME."
        )
    if encoding != "UTF8":
        raise ConfigError(f"the database {quote_name(uri)} has the encoding {encoding}; the store pgvector needs UTF8.")
    return str(schema)


def is_lost(error: psycopg.Error) -> bool:
    """Say whether the server went away: its connection is broken, or it is being stopped or started."""
    if isinstance(error, PoolTimeout) or not isinstance(error, psycopg.OperationalError):
        return False
    return error.sqlstate is None or error.sqlstate.startswith(("08", "57P"))


@contextmanager
def reported(uri: str) -> Iterator[None]:
    """Turn what psycopg raises in the block into our error.

    Raises:
        DiskFullError: The disk of the server is full; what was finished before is kept.
        DataError: An image does not fit a row of PostgreSQL.
        ArtifactError: Anything else that the server refused; ``LostError`` where it went away.
    """
    try:
        yield
    except psycopg.Error as error:
        raise _translate(uri, error) from None


class LostError(ArtifactError):
    """The server went away in the middle of a transaction."""


def _translate(uri: str, error: psycopg.Error) -> VitrieveError:
    where, reason = quote_name(uri), reason_of(error)
    if isinstance(error, errors.LockNotAvailable):
        return ArtifactError(f"the table at {where} is being changed by another process; wait until it has finished.")
    if isinstance(error, errors.DiskFull):
        return DiskFullError(f"the disk of {where} is full ({reason}); make room there and run the same command again.")
    if isinstance(error, (errors.ProgramLimitExceeded, errors.TooManyColumns)):
        return DataError(f"an image does not fit a row of PostgreSQL: {reason}.")
    if isinstance(error, errors.UndefinedTable):
        return ArtifactError(f"{where} lacks a table of the index ({reason}); make the index again.")
    if isinstance(error, PoolTimeout):
        reason = _find_reason(uri) or f"all {MAX_CONNECTIONS} connections are in use"
    kind = LostError if is_lost(error) else ArtifactError
    return kind(f"the PostgreSQL server {where} refused or did not answer: {reason}")


def _find_reason(uri: str) -> str | None:
    """Find out why the pool gets no connection, which it does not tell; None where one connection is given."""
    try:
        psycopg.connect(uri, **_connection_options(uri)).close()
    except psycopg.Error as error:
        return reason_of(error)
    return None


def reason_of(error: psycopg.Error) -> str:
    """Return what a server says, on one line."""
    text = error.diag.message_primary or str(error)
    return " ".join(text.split()) or type(error).__name__
