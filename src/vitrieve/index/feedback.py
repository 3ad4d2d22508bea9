"""``open_feedback``: the corrections of an index, beside its folder or on its PostgreSQL server."""

from __future__ import annotations

from pathlib import Path

from vitrieve.feedback.store import FeedbackStore, SqliteFeedback
from vitrieve.index.store import needing_psycopg, read_info


def open_feedback(index: Path | str) -> FeedbackStore:
    """Find where the corrections of an index are kept; nothing is made before the first one.

    Args:
        index: Folder of the index.

    Raises:
        ArtifactError: The folder is no index.
        ConfigError: The client of its server is not installed.
    """
    folder = Path(index)
    info, manifest = read_info(folder)
    if info.kind != "pgvector":
        return SqliteFeedback(folder)
    with needing_psycopg():
        from vitrieve.index.pgvector_feedback import PgvectorFeedback
    return PgvectorFeedback(manifest)
