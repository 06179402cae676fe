"""Finds the files that come with the checkout, whatever folder a command runs in."""

from __future__ import annotations

from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
"""The folder with conf/ and assets/."""


def in_checkout(path: str) -> str:
    """Return a path of the configuration; one that is only found from the checkout's root is looked up there."""
    return str(CHECKOUT / path) if not Path(path).exists() and (CHECKOUT / path).exists() else path
