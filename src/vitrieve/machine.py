"""What this machine has: processor cores, for numbers that follow them, memory, and a folder for what is fetched."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from vitrieve.errors import ConfigError


def count_cores() -> int:
    """Count the processor cores that this process may use, at least one."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def restart_peak_memory() -> bool:
    """Forget the most memory that this process has held; return whether the system can, which Linux can."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def read_peak_memory() -> int | None:
    """Return the most bytes that this process has held, since it began or since ``restart_peak_memory``.

    None where the system does not tell, as outside Linux.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)


CACHE_VARIABLE = "VITRIEVE_CACHE"


def cache_folder() -> Path:
    """Return the cache folder: ``VITRIEVE_CACHE``, or ``vitrieve`` in the user's cache folder.

    Raises:
        ConfigError: The variable names a user that does not exist, or there is neither variable nor home folder.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return expand_variable(CACHE_VARIABLE, chosen)
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "vitrieve"
    try:
        return Path.home() / ".cache" / "vitrieve"
    except RuntimeError:  # a container's user without an entry in the list of users, and no HOME
        raise ConfigError(
            f"this user has no home folder, so set {CACHE_VARIABLE} to a folder that can be written: fetched weights "
            "and the indexes of vitrieve up are kept there."
        ) from None


def require_packages(packages: Iterable[str], extra: str) -> None:
    """Refuse to go on without the packages of an extra, without importing them.

    Args:
        packages: Names that are imported.
        extra: Extra of vitrieve that installs them.

    Raises:
        ConfigError: One is missing.
    """
    for package in packages:
        if find_spec(package) is None:
            raise ConfigError(
                f"this needs the package {package!r}, which is not installed: pip install 'vitrieve[{extra}]'."
            )


def expand_variable(variable: str, value: str) -> Path:
    """Expand the ``~`` in a folder that an environment variable names.

    Args:
        variable: Name of the variable, for the message.
        value: What it says.

    Raises:
        ConfigError: The user after ``~`` does not exist, or has no home folder.
    """
    try:
        return Path(value).expanduser()
    except RuntimeError:
        user = value.split("/", 1)[0]
        raise ConfigError(
            f"{variable} is {value!r}, but the home folder of {user} is not known; give a whole path."
        ) from None
