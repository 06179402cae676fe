"""Reads API keys from the environment, and keeps them out of everything that is written."""

from __future__ import annotations

import os

from dsd_lightning.agents.failures import AuthenticationFailed

NO_KEY = "none"
"""What is sent to servers that need no key, by libraries that insist on one."""


def read_key(variable: str | None) -> str:
    """Return the key that the environment variable `variable` holds; `NO_KEY` where None is needed.

    Raises:
        AuthenticationFailed: the variable is not set. The message names it, and never a value.
    """
    if variable is None:
        return NO_KEY
    key = os.environ.get(variable, "").strip()
    if not key:
        raise AuthenticationFailed(
            f"the environment variable {variable} holds no key: export {variable}=..., or name another variable with "
            "provider.api_key_env=NAME. Keys are read from nowhere else"
        )
    return key


def redacted(text: str, key: str) -> str:
    """Return `text` without `key`, which providers may repeat in their error messages."""
    return text if key in ("", NO_KEY) else text.replace(key, "[key]")
