"""Terms of a user's own: ``train(..., objective=my_term)``."""

from __future__ import annotations

import functools
import hashlib
import inspect
import keyword
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from vitrieve.errors import ConfigError, unknown_name_message
from vitrieve.objective.losses import ObjectiveConfig
from vitrieve.objective.term import LossBatch
from vitrieve.plugins import load_plugin

if TYPE_CHECKING:
    from torch import Tensor

OFFERED = ("rows", "step", "anchors", "memory")
"""What a term may take beside embeddings and labels, by the names of its parameters (``LossBatch``)."""
RESERVED_NAMES = frozenset({"loss", "step", *(field.name for field in fields(ObjectiveConfig))})
PLAIN_TYPES = (bool, int, float, str, type(None))


@dataclass(frozen=True, kw_only=True)
class OwnTerm:
    """A term that is not of this package.

    Attributes:
        name: Its name in the log: that of the function or the class.
        weight: Its factor in the sum.
        function: Function of embeddings and labels, and by keyword of what ``arguments`` names; it returns a scalar. A
            module of torch may have parameters, which are trained, and buffers.
        arguments: Those names of ``OFFERED`` that the function takes.
    """

    name: str
    weight: float
    function: Callable[..., Tensor]
    arguments: tuple[str, ...]

    def compute(self, function: Callable[..., Tensor], batch: LossBatch) -> Tensor:
        """Call ``function``, this term or a copy of it, with what it takes of a batch.

        Raises:
            ConfigError: It returned something else than a scalar.
        """
        from torch import Tensor

        given = {name: getattr(batch, name) for name in self.arguments}
        value = function(batch.embeddings, batch.labels, **given)
        if not isinstance(value, Tensor) or value.ndim != 0:
            shape = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{value!r}"
            raise ConfigError(f"the term {self.name} returned {shape}; expected a scalar tensor, for example a mean.")
        return value

    def describe(self) -> dict[str, Any]:
        """Describe what a resumed run recognizes the term by, as plain JSON values: weight, source text and settings.

        Settings are the plain attributes of an object, the plain keywords of a ``functools.partial``, and the plain
        variables that a function has taken from around it.
        """
        inner = _unwrap(self.function)
        settings = dict(self.function.keywords) if isinstance(self.function, functools.partial) else {}
        if inspect.isfunction(inner):
            cells = inner.__closure__ or ()
            settings |= {n: cell.cell_contents for n, cell in zip(inner.__code__.co_freevars, cells, strict=True)}
        else:
            settings |= {name: value for name, value in getattr(inner, "__dict__", {}).items() if name != "training"}
        plain = {n: value for n, value in settings.items() if isinstance(value, PLAIN_TYPES) and not n.startswith("_")}
        return {"weight": self.weight, "source": _digest_source(inner), "settings": plain}


def read_own_terms(given: Any) -> tuple[OwnTerm, ...]:
    """Read the terms that a user gives.

    Args:
        given: A function or module of torch, or a list of them and of pairs of one with its weight.

    Raises:
        ConfigError: Something else, a function that does not take embeddings and labels, or a name that cannot be used.
    """
    items = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    terms = [_read_term(*item) if isinstance(item, tuple) and len(item) == 2 else _read_term(item) for item in items]
    names = [term.name for term in terms]
    for name in names:
        if not name.isidentifier() or keyword.iskeyword(name) or name in RESERVED_NAMES or names.count(name) > 1:
            raise ConfigError(
                f"a term of the objective is called {name!r}; expected a name of its own, which the log can use: that "
                "of a function or a class, unlike any other term's."
            )
    if not terms:
        raise ConfigError("the objective is an empty list; give at least one term.")
    return tuple(terms)


def read_plugin_loss(text: str) -> tuple[Any, float]:
    """Read a loss that another package adds, as the command line names it.

    Args:
        text: ``NAME``, or ``NAME:weight=0.5,power=3``: its weight, and settings by the names of its parameters. What
            the entry point leads to is a term as ``read_own_terms`` takes it, or the class of one, which is made here.

    Returns:
        The term and its weight.

    Raises:
        ConfigError: The name is unknown, its package cannot be loaded, or it does not take the settings.
    """
    name, _, rest = text.partition(":")
    found = load_plugin("loss", name)
    settings: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"--loss {text}: {part!r} is no setting; write NAME:weight=0.5,power=3.")
        settings[key] = _read_plain(value)
    weight = settings.pop("weight", 1.0)
    taken = inspect.signature(found).parameters
    unknown = [key for key in settings if key not in taken]
    if unknown and not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in taken.values()):
        raise ConfigError(unknown_name_message(f"setting of the loss {name}", unknown[0], ["weight", *taken]))
    if not isinstance(found, type):
        return (functools.partial(found, **settings) if settings else found), weight
    try:
        return found(**settings), weight
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the loss {text} cannot be made: {error}") from None


def _read_plain(text: str) -> Any:
    """Read a value of the command line: a truth value, None, a number, else the text.

    >>> [_read_plain(text) for text in ("true", "None", "3", "0.5", "mean")]
    [True, None, 3, 0.5, 'mean']
    """
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def _read_term(function: Any, weight: Any = 1.0) -> OwnTerm:
    if not callable(function) or isinstance(function, type):
        raise ConfigError(
            f"{function!r} is no term of an objective; expected a function of embeddings and labels, a module of torch "
            "(an object, not its class), a list of such, or a mapping of settings to values."
        )
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight > 0:
        raise ConfigError(f"the weight of a term is {weight!r}; expected a number above 0.")
    inner = _unwrap(function)
    name = getattr(inner, "__name__", type(inner).__name__)
    return OwnTerm(name=name, weight=float(weight), function=function, arguments=_find_arguments(name, function))


def _find_arguments(name: str, function: Any) -> tuple[str, ...]:
    """List what a term takes by keyword.

    Raises:
        ConfigError: It does not take embeddings and labels, or needs something that is not offered.
    """
    parameters = inspect.signature(getattr(function, "forward", function)).parameters
    kinds = [parameter.kind for parameter in parameters.values()]
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    takes_two = sum(kind in positional for kind in kinds) >= 2 or inspect.Parameter.VAR_POSITIONAL in kinds
    others = [parameter for parameter in list(parameters.values())[2:] if parameter.kind.name.find("VAR") < 0]
    needed = [one.name for one in others if one.default is inspect.Parameter.empty and one.name not in OFFERED]
    if not takes_two or needed:
        problem = f"needs {', '.join(needed)}" if takes_two else "does not take two arguments"
        raise ConfigError(
            f"the term {name} {problem}; it is called with embeddings and labels, and with these by keyword, where it "
            f"has parameters of these names: {', '.join(OFFERED)}."
        )
    names = OFFERED if inspect.Parameter.VAR_KEYWORD in kinds else [one.name for one in others]
    return tuple(one for one in OFFERED if one in names)


def _unwrap(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _digest_source(inner: Any) -> str | None:
    """Compute the SHA-256 of the text of a function or a class; None where Python cannot find it."""
    try:
        text = inspect.getsource(inner if inspect.isroutine(inner) else type(inner))
    except (OSError, TypeError):
        return None
    return hashlib.sha256(text.encode()).hexdigest()


def describe_own_terms(terms: Sequence[OwnTerm]) -> Mapping[str, Any]:
    """Describe the terms of a run, by name."""
    return {term.name: term.describe() for term in terms}
