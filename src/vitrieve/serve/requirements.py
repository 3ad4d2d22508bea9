"""What must be there before the service begins: its packages, and a token where strangers can reach it."""

from __future__ import annotations

import os
from importlib.util import find_spec

from vitrieve.errors import ConfigError

TOKEN_VARIABLE = "VITRIEVE_TOKEN"
EXTRA_PACKAGES = ("fastapi", "httptools", "prometheus_client", "python_multipart", "uvicorn")
MIN_TOKEN_LENGTH = 16
"""A token can be tried as fast as the network allows; shorter ones are words."""


def check_extra() -> None:
    """Refuse to go on without the packages of the service.

    Raises:
        ConfigError: One is missing.
    """
    for package in EXTRA_PACKAGES:
        if find_spec(package) is None:
            raise ConfigError(
                f"this needs the package {package!r}, which is not installed: pip install 'vitrieve[serve]'."
            )


def read_token(host: str, token: str | None) -> str | None:
    """Return the token, from the flag or the variable VITRIEVE_TOKEN; None on a local address without one.

    Raises:
        ConfigError: None although other machines can reach the address, or one that is too short or no ASCII.
    """
    from vitrieve.serve.gate import is_local

    token = token or os.environ.get(TOKEN_VARIABLE) or None
    if token is None:
        if not is_local(host):
            raise ConfigError(
                f"--host {host} can be reached from other machines, so it needs a token: set {TOKEN_VARIABLE} "
                "(python -c 'import secrets; print(secrets.token_urlsafe())' makes one), or leave --host out."
            )
        return None
    if len(token) < MIN_TOKEN_LENGTH or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"the token has {len(token)} characters; it must be {MIN_TOKEN_LENGTH} or more printable ASCII "
            "characters without spaces."
        )
    return token
