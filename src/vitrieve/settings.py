"""What every dataclass of settings can do: ranges on its fields, JSON, and changes by name.

A setting is named by its dotted path, ``objective.koleo.weight``, or by any end of it that no other setting shares:
``koleo.weight``. In a keyword of Python the dots are underscores: ``objective_koleo_weight``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from vitrieve.errors import ConfigError, find_nearest, unknown_name_message
from vitrieve.progress import print_message

T = TypeVar("T")


# Marks on a field


@dataclass(frozen=True)
class Range:
    """The values that a field accepts beyond its type. It stands on the field: ``Annotated[float, Range(...)]``.

    Attributes:
        accepted: Words for the message: "1 or more".
        is_valid: Whether a value is accepted. None is accepted where the field's type has it.
    """

    accepted: str
    is_valid: Callable[[Any], bool]


@dataclass(frozen=True)
class Needs:
    """What a field has no effect without. It stands on the field, as a range does.

    Attributes:
        partner: Words for the note: "gem pooling".
        is_met: Whether the complete settings have it.
    """

    partner: str
    is_met: Callable[[Any], bool]


Count = Annotated[int, Range("1 or more", lambda value: value >= 1)]
CountOrZero = Annotated[int, Range("0 or more", lambda value: value >= 0)]
Seed = Annotated[int, Range("a whole number in [0, 2^32)", lambda value: 0 <= value < 2**32)]
Positive = Annotated[float, Range("a number above 0", lambda value: value > 0)]
NotNegative = Annotated[float, Range("0 or more", lambda value: value >= 0)]
Share = Annotated[float, Range("a share in [0, 1]", lambda value: 0 <= value <= 1)]
PositiveShare = Annotated[float, Range("a number in (0, 1]", lambda value: 0 < value <= 1)]
BelowOne = Annotated[float, Range("a number in [0, 1)", lambda value: 0 <= value < 1)]
Cosine = Annotated[float, Range("a similarity in [-1, 1)", lambda value: -1 <= value < 1)]


def check_seed(seed: int) -> None:
    """Refuse a seed that the generators would refuse, each with words of its own.

    Raises:
        ConfigError: It is no ``Seed``.
    """
    if not 0 <= seed < 2**32:
        raise ConfigError(f"the seed is {seed}; expected a whole number in [0, 2^32).")


def list_texts(given: str | Iterable[str]) -> tuple[str, ...]:
    """List the texts that somebody gave; one alone is one, and not as many as it has letters.

    >>> list_texts("drafts/"), list_texts(["drafts/", "old/"])
    (('drafts/',), ('drafts/', 'old/'))
    """
    return (given,) if isinstance(given, str) else tuple(given)


class Setting(NamedTuple):
    """One setting of a tree of dataclasses.

    Attributes:
        name: Dotted path, for example ``objective.koleo.weight``.
        value: Its value.
        hint: Type of the field, with its marks.
    """

    name: str
    value: Any
    hint: Any

    def find_marks(self, kind: type[T]) -> list[T]:
        """List the marks of a kind that stand on the field."""
        return list(_find_marks(self.hint, kind))


def _find_marks(hint: Any, kind: type[T]) -> Iterator[T]:
    yield from (mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, kind))
    for part in typing.get_args(hint):
        yield from _find_marks(part, kind)


def list_settings(settings: Any, prefix: str = "") -> Iterator[Setting]:
    """Yield every setting of a dataclass and of the dataclasses in it, in the order of the fields."""
    hints = _read_hints(type(settings))  # type: ignore[arg-type]  # mypy takes no class for hashable
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), prefix + field.name
        if _is_stage(value):
            yield from list_settings(value, f"{name}.")
        else:
            yield Setting(name, value, hints[field.name])


@functools.cache
def _read_hints(cls: type[Any]) -> dict[str, Any]:
    """Read the types of the fields, with their marks; the text of each is evaluated once in a process."""
    return typing.get_type_hints(cls, include_extras=True)


def _is_stage(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def check_ranges(settings: Any) -> None:
    """Refuse a value that is out of the range on its field.

    Raises:
        ConfigError: The message names the setting, its value and what is accepted.
    """
    for one in list_settings(settings):
        for accepted_range in one.find_marks(Range):
            if one.value is not None and not accepted_range.is_valid(one.value):
                raise ConfigError(f"{one.name} is {one.value}; expected {accepted_range.accepted}.")


# JSON


def config_to_json(config: Any) -> dict[str, Any]:
    """Convert a configuration dataclass to plain JSON values, as a file gives them back: a tuple is a list."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return values


def config_from_json(cls: type[T], values: Mapping[str, Any]) -> T:
    """Build ``cls`` from JSON values, strictly; former names of its fields are understood.

    Raises:
        ConfigError: A key is unknown or missing, or a value has the wrong type.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{values!r} is not a table of the fields of {cls.__name__}.")
    values = rename_former(cls, values)
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise ConfigError(unknown_name_message(f"field of {cls.__name__}", unknown[0], names))
    try:
        return cls(**{name: read_value(hints[name], value) for name, value in values.items()})
    except TypeError as error:
        raise ConfigError(f"{cls.__name__}: {error}") from None


def rename_former(cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Bring a table that an earlier version saved into the present shape.

    Args:
        cls: The dataclass of the table. Its ``FORMER_NAMES``, where it has some, lead from the former name of a field
            to its present path, ``stage.field``.
        values: Values by name.
    """
    former: Mapping[str, str] = getattr(cls, "FORMER_NAMES", {})
    present = {name: value for name, value in values.items() if name not in former}
    for name in former.keys() & values.keys():
        stage, field = former[name].split(".")
        table = present.get(stage)
        present[stage] = {**(table if isinstance(table, Mapping) else {}), field: values[name]}
    return present


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


# Changes by name


def override_config(config: T, overrides: Mapping[str, Any]) -> T:
    """Return a configuration with some settings changed.

    Args:
        config: A configuration dataclass, for example the ``Config`` of a recipe.
        overrides: Values by name. A name of a whole stage (``objective``) takes a dataclass of it, or a mapping of
            names to values. Of a former name a message tells the present one.

    Raises:
        ConfigError: A name is unknown, or several settings share it; or a value has the wrong type.

    >>> from vitrieve.config import Config
    >>> changed = override_config(Config(), {"num_steps": 200, "objective.koleo.weight": 0.3})
    >>> changed.train.num_steps, changed.objective.koleo.weight
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
    pairs = zip(list_settings(config), list_settings(base), strict=True)
    return {now.name: now.value for now, before in pairs if now.value != before.value}


Path = tuple[str, ...]
"""Names of the fields that lead to a setting or a stage."""


def _list_paths(config: Any) -> Iterator[Path]:
    """Yield the path of every setting and of every stage."""
    for field in dataclasses.fields(config):
        yield (field.name,)
        value = getattr(config, field.name)
        if _is_stage(value):
            yield from ((field.name, *rest) for rest in _list_paths(value))


def _list_former_paths(config: Any) -> Iterator[tuple[Path, Path]]:
    """Yield the former path of every setting that has one, with the present one."""
    for name, present in getattr(config, "FORMER_NAMES", {}).items():
        yield (name,), tuple(present.split("."))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if _is_stage(value):
            yield from (((field.name, *former), (field.name, *now)) for former, now in _list_former_paths(value))


def _ends_with(path: Path, sought: str) -> bool:
    return any("_".join(path[start:]) == sought for start in range(len(path)))


def _find_path(config: Any, name: str) -> Path:
    sought = name.replace(".", "_").replace("-", "_")
    paths = list(_list_paths(config))
    matching = [path for path in paths if _ends_with(path, sought)]
    found = [path for path in matching if "_".join(path) == sought] or matching
    if len(found) == 1:
        return found[0]
    former = [now for path, now in _list_former_paths(config) if _ends_with(path, sought)]
    if len(former) == 1:
        print_message(f"the setting {name} is called {'.'.join(former[0])} now.")
        return former[0]
    if found:
        raise ConfigError(
            f"{name!r} is the end of several settings: {', '.join(map('.'.join, found))}. Name one whole."
        )
    nearest = find_nearest(name.replace("-", "_"), map(".".join, paths))
    raise ConfigError(
        f"unknown setting {name!r}; the nearest valid ones: {', '.join(nearest)}. `vitrieve train RECIPE --help` lists "
        "them all."
    )


def _replace(config: T, path: Path, value: Any) -> T:
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
