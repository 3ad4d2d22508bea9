"""OpenVINO and NNCF without their telemetry. Next file: ``openvino_engine.py``.

Importing them sends an event over the network, from a process forked in the middle of ours: nobody who embeds private
pictures has asked for the first, and a fork is not safe beside LanceDB's threads. Both do without where the package
``openvino_telemetry`` is missing, so it is hidden from them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

TELEMETRY = "openvino_telemetry"


@contextmanager
def no_telemetry() -> Iterator[None]:
    """Hide the package while others are imported; where it is imported already nothing can be done."""
    if TELEMETRY in sys.modules:
        yield
        return
    modules = cast(dict[str, Any], sys.modules)
    modules[TELEMETRY] = None  # Python then raises ImportError
    try:
        yield
    finally:
        if modules.get(TELEMETRY, "") is None:
            del modules[TELEMETRY]


def import_openvino() -> None:
    """Import OpenVINO, the first time in this process, without telemetry."""
    with no_telemetry():
        import openvino  # noqa: F401
