"""Finds the agent that a command line names: a preset of `conf/agents` and overrides, or the first with a key."""

from __future__ import annotations

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dsd_lightning.agents.agent import Agent
from dsd_lightning.agents.failures import AuthenticationFailed
from dsd_lightning.agents.providers.keys import read_key
from dsd_lightning.files.checkout import CHECKOUT

DEFAULT_PRESETS = ("gemini", "openai")
"""Presets of `conf/agents` that are tried if none is chosen; the first with a key is used."""

HELP = (
    "the language model to ask: gemini, openai, local, ... (docs/agents.md) and overrides of its settings, such "
    "as agents.vlm.provider.model=NAME; if not given, gemini or openai, whichever has a key"
)
"""Help of the flag --agents."""


class PresetError(ValueError):
    """An unknown preset, or one that needs an override; the message names it and the remedy."""


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
        PresetError: no such preset, or one that needs an override.
    """
    if chosen:
        return _usable(chosen[0], chosen[1:])
    for preset in DEFAULT_PRESETS:
        try:
            return _usable(preset, ())
        except AuthenticationFailed:
            continue
    raise AuthenticationFailed(
        "neither GEMINI_API_KEY nor OPENAI_API_KEY holds a key: set one, or name another model with --agents (docs/agents.md)"
    )


def _usable(preset: str, overrides: Sequence[str]) -> DictConfig:
    settings: DictConfig = _composed(preset, overrides).vlm
    missing = OmegaConf.missing_keys(settings)
    if missing:
        named = " ".join(f"agents.vlm.{key}=..." for key in sorted(missing))
        raise PresetError(f"--agents {preset} needs more: --agents {preset} {named}")
    variable = OmegaConf.select(settings, "provider.api_key_env")
    read_key(None if variable is None else str(variable))
    return settings


def _composed(preset: str, overrides: Sequence[str]) -> DictConfig:
    folder = CHECKOUT / "conf"
    presets = sorted(file.stem for file in (folder / "agents").glob("*.yaml"))
    if preset not in presets:
        raise PresetError(f"--agents {preset} is unknown; choose one of {', '.join(presets)}")
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(folder), version_base="1.3"):
        composed: DictConfig = compose(overrides=[f"+agents={preset}", *overrides]).agents
    return composed
