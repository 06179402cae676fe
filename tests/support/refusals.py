"""Runs that are refused, and the message that a user gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsd_lightning.cli.errors import message_for_user
from dsd_lightning.training.run import train
from support.commands import compose_train

QUICK = ("callbacks=minimal", "logger=csv")


def refusal(run_dir: Path, *overrides: str) -> str:
    """Return the message that a user gets when `overrides` are refused."""
    with pytest.raises(Exception) as caught:  # noqa: PT011
        train(compose_train(run_dir, *overrides), run_dir)
    message = message_for_user(caught.value)
    assert message is not None, f"not a refusal: {caught.value!r}"
    return message
