"""Agents for tests around a provider without a network, with prices and short waits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsd_lightning.agents import (
    Agent,
    Sampling,
)
from dsd_lightning.agents.budget import Budget
from dsd_lightning.agents.cache import AnswerCache
from dsd_lightning.agents.limits import Limits
from dsd_lightning.agents.prices import Price, Prices
from dsd_lightning.agents.retries import Retries

PRICE = Price("stand-1", input_usd=100.0, output_usd=1000.0, image_tokens=50, source="here", date="2026-01-01")
"""A call of 10 tokens in and 5 out costs 0.006 USD."""


CALL_USD = 0.006


def agent_of(provider: Any, folder: Path, **parts: Any) -> Agent:
    defaults: dict[str, Any] = {
        "cache": AnswerCache(folder / "answers"),
        "limits": Limits(8),
        "retries": Retries(first_wait=0.002),
        "budget": Budget(None, folder / "spending.jsonl"),
        "prices": Prices([PRICE]),
        "sampling": Sampling(max_output_tokens=10),
        "timeout": 60.0,
    }
    return Agent(provider, **{**defaults, **parts})
