"""A process for tests to kill: sends `COUNT` requests to the server at `URL`, with answers stored below `FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

from dsd_lightning.agents import Agent, Request, Sampling
from dsd_lightning.agents.budget import Budget
from dsd_lightning.agents.cache import AnswerCache
from dsd_lightning.agents.limits import Limits
from dsd_lightning.agents.prices import Price, Prices
from dsd_lightning.agents.providers.openai_chat import OpenAIChat
from dsd_lightning.agents.retries import Retries

url, folder, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
agent = Agent(
    OpenAIChat("a-model", f"{url}/v1", None, "rehearsal"),
    AnswerCache(folder / "answers"),
    Limits(4),
    Retries(first_wait=0.05),
    Budget(100.0, folder / "spending.jsonl"),
    Prices([Price("a-model", 10.0, 100.0, 100, "here", "2026-01-01")]),
    Sampling(max_output_tokens=100),
    timeout=10.0,
)
agent.ask_all(Request.of(f"question {number}") for number in range(count))
sys.stdout.write(f"{agent.budget.spent_usd}\n")
