"""Finds the language model that a command calls, and reads its answers."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from importlib.resources import files

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dsd_lightning.agents import Agent, AgentFailure, Answer, AuthenticationFailed
from dsd_lightning.agents.providers.keys import read_key
from dsd_lightning.generation.jobs import GenerationError

log = logging.getLogger(__name__)

DEFAULT_PRESETS = ("gemini", "openai")
"""Presets of `conf/agents` that are tried if none is chosen; the first with a key is used."""


class NoAnswer(Exception):
    """A language model gave no usable answer; the message says why."""


def find_agent(chosen: Sequence[str] | None) -> Agent:
    """Return the agent that reads images; see `find_settings`."""
    agent: Agent = instantiate(find_settings(chosen))
    return agent


def find_settings(chosen: Sequence[str] | None) -> DictConfig:
    """Return the settings of the chosen preset's VLM, or those of the first preset with a key.

    Args:
        chosen: a preset of `conf/agents`, and overrides in Hydra's syntax (`agents.vlm.provider.model=NAME`).

    Raises:
        AuthenticationFailed: no key is set.
        GenerationError: no such preset, or one that needs an override.
    """
    if chosen:
        return _usable(chosen[0], chosen[1:])
    for preset in DEFAULT_PRESETS:
        try:
            return _usable(preset, ())
        except AuthenticationFailed:
            continue
    raise AuthenticationFailed("neither GEMINI_API_KEY nor OPENAI_API_KEY holds a key")


def _usable(preset: str, overrides: Sequence[str]) -> DictConfig:
    settings: DictConfig = _composed(preset, overrides).vlm
    missing = OmegaConf.missing_keys(settings)
    if missing:
        named = " ".join(f"agents.vlm.{key}=..." for key in sorted(missing))
        raise GenerationError(f"--agents {preset} needs more: --agents {preset} {named}")
    variable = OmegaConf.select(settings, "provider.api_key_env")
    read_key(None if variable is None else str(variable))
    return settings


def _composed(preset: str, overrides: Sequence[str]) -> DictConfig:
    from dsd_lightning.models.restore import CHECKOUT

    folder = CHECKOUT / "conf"
    presets = sorted(file.stem for file in (folder / "agents").glob("*.yaml"))
    if preset not in presets:
        raise GenerationError(f"--agents {preset} is unknown; choose one of {', '.join(presets)}")
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(folder), version_base="1.3"):
        composed: DictConfig = compose(overrides=[f"+agents={preset}", *overrides]).agents
    return composed


def instruction(name: str, **values: object) -> str:
    """Return the text of `instructions/NAME.txt` with `values` inserted."""
    text = (files(__package__) / "instructions" / f"{name}.txt").read_text(encoding="utf-8")
    return text.strip().format(**values)


def line_of(answer: Answer | AgentFailure) -> str:
    """Return an answer as one line, without quotation marks around it.

    Raises:
        NoAnswer: a failure, an empty answer, or one that was cut off.
    """
    if isinstance(answer, AgentFailure):
        raise NoAnswer(str(answer))
    text = re.sub(r"\s+", " ", answer.text).strip()
    for mark in ('"', "'", "`", "**"):
        if len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark):
            text = text[len(mark) : -len(mark)].strip()
    if not text or answer.finish == "length":
        raise NoAnswer(f"{answer.served_model} gave {'a cut-off' if text else 'an empty'} answer")
    return text
