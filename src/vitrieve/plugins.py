"""What other packages add, by entry points: sources of images, losses, stores of vectors, and commands.

A package is asked for the names of what it adds from its metadata; its code is loaded when a name is used. A package
that cannot be loaded is a failure of that name, and of nothing else. ``docs/contribute/plugins.md`` has the contracts.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from vitrieve.errors import ConfigError, find_nearest
from vitrieve.quoting import quote_name

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

PluginKind = Literal["source", "loss", "store", "command"]
GROUPS: Mapping[PluginKind, str] = {
    "source": "vitrieve.sources",
    "loss": "vitrieve.losses",
    "store": "vitrieve.stores",
    "command": "vitrieve.commands",
}
"""The group of entry points of each kind."""


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """A name that another package adds.

    Attributes:
        kind: What it adds.
        name: The name.
        package: The distribution and its version, ``vitrieve-example 1.0``.
        target: What stands behind the name, as ``module:object``.
        problem: Why it cannot be used; empty where it can, or where nobody has tried.
    """

    kind: PluginKind
    name: str
    package: str
    target: str
    problem: str = ""


@functools.cache
def _find_entries(kind: PluginKind) -> dict[str, tuple[EntryPoint, ...]]:
    from importlib.metadata import entry_points  # takes 20 ms, which most commands need not wait for

    found: dict[str, tuple[EntryPoint, ...]] = {}
    for entry in entry_points(group=GROUPS[kind]):
        if entry not in found.get(entry.name, ()):
            found[entry.name] = (*found.get(entry.name, ()), entry)
    return found


def list_plugin_names(kind: PluginKind) -> tuple[str, ...]:
    """List the names that other packages add, sorted; nothing of them is loaded."""
    return tuple(sorted(_find_entries(kind)))


def load_plugin(kind: PluginKind, name: str) -> Any:
    """Load what another package has put behind a name.

    Raises:
        ConfigError: No package adds it, several do, or the package cannot be loaded; the message names it.
    """
    entries = _find_entries(kind).get(name, ())
    if not entries:
        names = list_plugin_names(kind)
        known = f"the nearest: {', '.join(find_nearest(name, names))}" if names else "no package adds one"
        raise ConfigError(f"no installed package adds the {kind} {quote_name(name)}; {known}. See: vitrieve doctor")
    if len(entries) > 1:
        packages = " and ".join(_describe_package(entry) for entry in entries)
        raise ConfigError(f"the {kind} {quote_name(name)} is added by {packages}; uninstall one of them.")
    try:
        return entries[0].load()
    except Exception as error:  # whatever the code of another package raises while it is imported
        raise ConfigError(
            f"the {kind} {quote_name(name)} of the package {_describe_package(entries[0])} cannot be loaded "
            f"({type(error).__name__}: {error}); mend or uninstall that package."
        ) from error


def describe_plugin_package(kind: PluginKind, name: str) -> str:
    """Name the package that adds a name, with its version."""
    return " and ".join(map(_describe_package, _find_entries(kind)[name]))


def check_plugins(built_in: Mapping[PluginKind, Collection[str]]) -> tuple[Plugin, ...]:
    """Load everything that other packages add, and say of each whether it can be used.

    Args:
        built_in: Names of vitrieve's own, which win over those of another package.
    """
    return tuple(
        Plugin(
            kind=kind,
            name=name,
            package=describe_plugin_package(kind, name),
            target=_find_entries(kind)[name][0].value,
            problem=_find_problem(kind, name, built_in.get(kind, ())),
        )
        for kind in get_args(PluginKind)
        for name in list_plugin_names(kind)
    )


def _find_problem(kind: PluginKind, name: str, built_in: Collection[str]) -> str:
    if name in built_in:
        return f"the {kind} {quote_name(name)} of {describe_plugin_package(kind, name)} is hidden by vitrieve's own."
    try:
        load_plugin(kind, name)
    except ConfigError as error:
        return str(error)
    return ""


def _describe_package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else entry.value
