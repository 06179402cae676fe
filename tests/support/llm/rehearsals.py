"""Agents for tests, built from the shipped YAML, that call a rehearsal server over real sockets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import DictConfig
from rehearsal_server import RehearsalServer

from dsd_lightning.agents import Agent, Answer
from dsd_lightning.agents.providers.provider import Reply

ROOT = Path(__file__).parents[3]
CONF = ROOT / "conf"

OFFLINE = "offline"
"""The preset, and the beginning of its models' names, that call nobody."""

BATCHES = ("openai_batch", "gemini_batch")
"""Providers that answer many requests together, and not at once: test_agents_batch.py."""

PRESETS = sorted(file.stem for file in (CONF / "agents").glob("*.yaml") if file.stem != OFFLINE)
PROVIDERS = sorted(
    file.stem
    for file in (CONF / "agents" / "model").glob("*.yaml")
    if not file.stem.startswith(OFFLINE) and file.stem not in BATCHES
)

QUICK = ["agents.retries.first_wait=0.002", "agents.vlm.timeout=30.0"]
"""Waits that a test can afford, seconds."""


def compose_agents(preset: str, *overrides: str) -> DictConfig:
    """Return the node `agents` that a command with this preset would have."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config: DictConfig = compose(overrides=[f"+agents={preset}", *overrides])
    return config


def rehearsing_agent(preset: str, server: RehearsalServer, folder: Path, *overrides: str) -> Agent:
    """Return the preset's VLM, asking the rehearsal server."""
    url = server.url if preset.startswith("gemini") else f"{server.url}/v1"
    model = ["agents.vlm.provider.model=a-model"] if preset == "local" else []
    config = compose_agents(
        preset, *QUICK, *model, f"agents.folder={folder}", f"agents.vlm.provider.base_url={url}", *overrides
    )
    agent: Agent = instantiate(config.agents.vlm)
    return agent


def batching_agent(provider: str, url: str, folder: Path, *overrides: str) -> Agent:
    """Return the VLM that asks the rehearsal server at `url` in batches, and loses no time in between."""
    config = compose_agents(
        provider.removesuffix("_batch"),
        f"agents/model@agents.vlm={provider}",
        "agents.vlm.provider.batches.gather=0.1",
        "agents.vlm.provider.batches.poll=0.05",
        "agents.vlm.retries.first_wait=0.002",
        "agents.vlm.timeout=60.0",
        f"agents.folder={folder}",
        f"agents.vlm.provider.base_url={url}{'/v1' if provider == 'openai_batch' else ''}",
        *overrides,
    )
    agent: Agent = instantiate(config.agents.vlm)
    return agent


class Stand:
    """A provider without a network: answers by a function, in the agent's own loop."""

    identity = "stand"
    model = "stand-1"

    def __init__(self, answer: Callable[[str], Any]) -> None:
        self.answer = answer
        self.asked: list[str] = []

    async def send(self, messages: Any, sampling: Any, timeout_seconds: float) -> Reply:
        self.asked.append(messages[-1].text)
        result = self.answer(messages[-1].text)
        said = await result if hasattr(result, "__await__") else result
        return said if isinstance(said, Reply) else Reply(said, "stop", "stand-1-served", 10, 5)

    async def close(self) -> None:
        pass


def texts(answers: list[Any]) -> list[str]:
    """Return what was answered; every result must be an answer."""
    assert all(isinstance(answer, Answer) for answer in answers), answers
    return [answer.text for answer in answers]
