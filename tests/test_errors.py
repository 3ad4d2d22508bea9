from __future__ import annotations

import pytest

from vitrieve import errors


@pytest.mark.parametrize(
    "name",
    ["ConfigError", "DataError", "DecodeError", "WeightsError", "ArtifactError", "FingerprintError", "DiskFullError"],
)
def test_input_errors_are_value_errors(name: str) -> None:
    assert issubclass(getattr(errors, name), errors.InputError)
    assert issubclass(getattr(errors, name), ValueError)


def test_non_finite_loss_is_no_input_error() -> None:
    assert issubclass(errors.NonFiniteLossError, errors.VitrieveError)
    assert not issubclass(errors.NonFiniteLossError, errors.InputError)


def test_docstring_draws_the_whole_tree() -> None:
    tree = errors.__doc__ or ""
    classes = [
        value for value in vars(errors).values() if isinstance(value, type) and value.__module__ == errors.__name__
    ]
    assert classes
    assert [one.__name__ for one in classes if one.__name__ not in tree] == []


def test_unknown_name_message_lists_every_valid_name() -> None:
    message = errors.unknown_name_message("recipe", "zzz", ["b", "a"])
    assert message == "unknown recipe 'zzz'. Valid: a, b."


def test_unknown_name_message_names_the_nearest_first() -> None:
    assert "Did you mean 'irt_r'" in errors.unknown_name_message("recipe", "irt_rr", ["small", "irt_r"])
