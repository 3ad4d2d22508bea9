"""Single settings by name: how ``train(..., num_steps=200)`` and the command line change a recipe.

A setting is named by its dotted path, ``objective.koleo_weight``, or by any end of it that no other setting shares:
``koleo_weight``. In a keyword of Python the dots are underscores: ``objective_koleo_weight``.
"""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from vitrieve.config_json import read_value
from vitrieve.errors import ConfigError, find_nearest

T = TypeVar("T")


def override_config(config: T, overrides: Mapping[str, Any]) -> T:
    """Return a configuration with some settings changed.

    Args:
        config: A configuration dataclass, for example the ``Config`` of a recipe.
        overrides: Values by name. A name of a whole stage (``objective``) takes a dataclass of it, or a mapping of
            names to values.

    Raises:
        ConfigError: A name is unknown, or several settings share it; or a value has the wrong type.

    >>> from vitrieve.config import Config
    >>> changed = override_config(Config(), {"num_steps": 200, "objective.koleo_weight": 0.3})
    >>> changed.train.num_steps, changed.objective.koleo_weight
    (200, 0.3)
    """
    for name, value in overrides.items():
        config = _replace(config, _find_path(config, name), value)
    return config


def list_overrides(config: Any, base: Any) -> dict[str, Any]:
    """List what has to be overridden in ``base`` so that it equals ``config``: values by dotted path.

    >>> from vitrieve.config import Config, TrainConfig
    >>> list_overrides(Config(train=TrainConfig(seed=3)), Config())
    {'train.seed': 3}
    """
    overrides: dict[str, Any] = {}
    for field in dataclasses.fields(base):
        value, before = getattr(config, field.name), getattr(base, field.name)
        if _is_stage(before) and type(value) is type(before):
            overrides |= {f"{field.name}.{name}": changed for name, changed in list_overrides(value, before).items()}
        elif value != before:
            overrides[field.name] = value
    return overrides


def _is_stage(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _list_paths(config: Any) -> Iterator[tuple[str, ...]]:
    """Yield the path of every setting and of every stage."""
    for field in dataclasses.fields(config):
        yield (field.name,)
        value = getattr(config, field.name)
        if _is_stage(value):
            yield from ((field.name, *rest) for rest in _list_paths(value))


def _find_path(config: Any, name: str) -> tuple[str, ...]:
    sought = name.replace(".", "_").replace("-", "_")
    paths = list(_list_paths(config))
    matching = [path for path in paths if any("_".join(path[start:]) == sought for start in range(len(path)))]
    exact = [path for path in matching if "_".join(path) == sought]
    found = exact or matching
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(
            f"{name!r} is the end of several settings: {', '.join(map('.'.join, found))}. Name one whole."
        )
    nearest = find_nearest(name.replace("-", "_"), map(".".join, paths))
    raise ConfigError(
        f"unknown setting {name!r}; the nearest valid ones: {', '.join(nearest)}. `vitrieve train RECIPE --help` lists "
        "them all."
    )


def _replace(config: T, path: tuple[str, ...], value: Any) -> T:
    name, *rest = path
    before = getattr(config, name)
    if rest:
        changed = _replace(before, tuple(rest), value)
    elif _is_stage(before):
        changed = _read_stage(name, before, value)
    else:
        hint = typing.get_type_hints(type(config))[name]
        try:
            changed = read_value(hint, os.fspath(value) if isinstance(value, os.PathLike) else value)
        except ConfigError as error:
            raise ConfigError(f"the setting {name}: {error}") from None
    return dataclasses.replace(config, **{name: changed})  # type: ignore[type-var]


def _read_stage(name: str, before: Any, value: Any) -> Any:
    if isinstance(value, Mapping):
        return override_config(before, value)
    if not isinstance(value, type(before)):
        raise ConfigError(f"{name} is {value!r}; give a {type(before).__name__}, or a mapping of its fields.")
    return value
