"""Runs of distillation for tests: the shipped configuration, a server that answers by rule, a teacher without a model."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from PIL import Image
from rehearsal_server import RehearsalServer
from rehearsal_server.grids import speckled_grid
from rehearsal_server.script import Asked

from dsd_lightning.runs.resolvers import register_resolvers
from support.commands import CONF

CAPTIONS = [f"a {color} {thing}" for thing in ("dog", "cup", "car", "owl") for color in ("red", "blue", "green")]
EMPTY = "nothing but fog"
"""A caption that the rule finds no subject in."""

QUADRANTS = "top-left day, top-right night, bottom-left sun, bottom-right rain"


def rule(asked: Asked) -> str:
    """Answer every question of a run, by the words and images of the request alone."""
    caption = re.search(r"`([^`]*)`", asked.turns[1][1] if asked.turns[0][0] == "system" else asked.turns[0][1])
    if "one clear subject" in asked.text:
        assert caption is not None
        return "no: only fog" if "nothing" in caption[1] else f"yes: {caption[1]}"
    if "grid of four" in asked.text or "breaks a rule" in asked.text:
        assert caption is not None
        return f"a grid of {caption[1]}: {QUADRANTS}"
    if "one and the same, only" in asked.text:
        mark = int(hashlib.sha256(b"".join(asked.images)).hexdigest(), 16) % 100
        return f"I compared all of it.\nconfidence: {mark}\n{'yes' if mark >= 40 else 'no'}"
    if "Write a prompt with which" in asked.text or "Write an instruction" in asked.text:
        return "shown " + hashlib.sha256(b"".join(asked.images)).hexdigest()[:6]
    return "a thing, in both"


class Crayons:
    """A teacher of grids without a model: four panels of speckled colour, by the seed; three if the prompt says so."""

    def __init__(self, height: int, width: int, **others: Any) -> None:
        self.height, self.width = height, width

    def settings(self) -> Mapping[str, Any]:
        return {"crayons": [self.height, self.width]}

    def licence(self) -> Mapping[str, str]:
        return {"teacher": "crayons", "license": "cc0-1.0"}

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        return [self._grid(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]

    def _grid(self, prompt: str, seed: int) -> Image.Image:
        return speckled_grid(self.height, self.width, seed, columns=3 if "owl" in prompt else 2)

    def close(self) -> None:
        pass


def captions_file(folder: Path, captions: Sequence[str] = (*CAPTIONS, EMPTY)) -> Path:
    """Write captions, one a line."""
    path = folder / "captions.txt"
    path.write_text("\n".join(captions) + "\n")
    return path


def arguments(out: Path, captions: Path, url: str, *more: str) -> list[str]:
    """Return the command line of a run that asks the server at `url` and generates with crayons."""
    return [
        f"out={out}",
        "agents=local",
        *(
            f"agents.{role}.provider.{name}"
            for role in ("llm", "vlm")
            for name in ("model=m", f"base_url={url}/v1", "identity=rehearsal")  # servers come and go, answers stay
        ),
        "agents.retries.first_wait=0.002",
        "agents/teacher=tiny",
        "agents.teacher._target_=support.distill_runs.Crayons",
        "agents.teacher.height=64",
        "agents.teacher.width=64",
        "captions=files",
        f"captions.path={captions}",
        "partition_size=4",
        "shards.validation_share=0.2",
        *more,
    ]


def compose_distill(*overrides: str) -> DictConfig:
    """Return the configuration that `python distill.py OVERRIDES` would have."""
    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config: DictConfig = compose("distill", list(overrides))
    return config


def run_here(out: Path, captions: Path, server: RehearsalServer, *more: str) -> dict[str, int]:
    """Run in this process; return the samples of each set."""
    from dsd_lightning.distillation.runner import Distillation

    return Distillation(compose_distill(*arguments(out, captions, server.url, *more))).run()


def samples(root: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Return every sample of a run's shards: key, words, and digests of both images."""
    from dsd_lightning.shards import PairShards

    rows: dict[str, list[tuple[Any, ...]]] = {}
    for folder in sorted((root / "shards").iterdir()):
        if folder.is_dir():
            shards = PairShards(folder, verify="sha256")
            rows[folder.name] = [
                (pair.key, pair.caption, pair.instruction, pair.reference.tobytes(), pair.target.tobytes())
                for pair in (shards[position] for position in range(len(shards)))
                if pair.reference is not None
            ]
    return rows


def tars(root: Path) -> dict[str, str]:
    """Return the sha256 of every tar of a run's shards."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((root / "shards").rglob("*.tar"))
    }


def rejected(out: Path, stage: str) -> dict[str, list[str]]:
    """Return the ids of what a stage rejected, by reason."""
    reasons: dict[str, list[str]] = {}
    for file in sorted((out / stage).glob("part-*/rejected.jsonl")):
        for line in file.read_text().splitlines():
            content = json.loads(line)
            reasons.setdefault(content["reason"], []).append(content["id"])
    return reasons
