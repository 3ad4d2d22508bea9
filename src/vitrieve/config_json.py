"""Frozen dataclasses as JSON: every artifact keeps its settings so, and reads them strictly."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from vitrieve.errors import ConfigError, unknown_name_message

T = TypeVar("T")


def config_to_json(config: Any) -> dict[str, Any]:
    """Convert a configuration dataclass to plain JSON values."""
    return dataclasses.asdict(config)


def config_from_json(cls: type[T], values: Mapping[str, Any]) -> T:
    """Build ``cls`` from JSON values, strictly.

    Raises:
        ConfigError: A key is unknown or missing, or a value has the wrong type.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{values!r} is not a table of the fields of {cls.__name__}.")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ConfigError(unknown_name_message(f"field of {cls.__name__}", unknown[0], hints))
    try:
        return cls(**{name: read_value(hints[name], value) for name, value in values.items()})
    except TypeError as error:
        raise ConfigError(f"{cls.__name__}: {error}") from None


def read_value(hint: Any, value: Any) -> Any:
    """Check a JSON value against the type of a field, and return it as the field holds it.

    Raises:
        ConfigError: The value has another type.
    """
    if dataclasses.is_dataclass(hint):
        return config_from_json(typing.cast(type, hint), value)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        arms = typing.get_args(hint)
        if value is None and types.NoneType in arms:
            return None
        hint = next(arm for arm in arms if arm is not types.NoneType)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{value!r} is not a list.")
        item = typing.get_args(hint)[0]
        return tuple(read_value(item, entry) for entry in value)
    if typing.get_origin(hint) is Literal:
        if value not in typing.get_args(hint):
            raise ConfigError(f"{value!r} is not one of {', '.join(map(str, typing.get_args(hint)))}.")
        return value
    accepted = (int, float) if hint is float else hint
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{value!r} is not of type {hint.__name__}.")
    return value
