"""Runs public code in a process of its own, builds ours from the shipped configuration, and collects what differs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

from benchmarks.published.stand_ins import in_parts
from dsd_lightning.agents import Sampling
from dsd_lightning.agents.providers.openai_chat import OpenAIChat
from dsd_lightning.evaluation.judging.run import Judging

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-5
"""Largest difference of two numbers that count as equal."""


@dataclass
class Comparison:
    """Collects what was compared, by name.

    Attributes:
        results: by name, number of values and their largest difference, or how many of them are equal.
    """

    results: dict[str, dict[str, Any]]

    def numbers(self, name: str, code: str, ours: Sequence[float], theirs: Sequence[float]) -> None:
        """Compare numbers by their largest difference."""
        pairs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        difference = float(np.abs(pairs[0] - pairs[1]).max())
        spread = [float(pairs[1].min()), float(pairs[1].max())]
        self._add(name, {"code": code, "values": len(theirs), "theirs": spread, "largest_difference": difference})

    def equal(self, name: str, code: str, ours: Sequence[object], theirs: Sequence[object]) -> None:
        """Compare things that are equal or not."""
        same = sum(one == other for one, other in zip(ours, theirs, strict=True))
        self._add(name, {"code": code, "values": len(theirs), "equal": same})

    def _add(self, name: str, result: dict[str, Any]) -> None:
        self.results[name] = result
        sys.stderr.write(f"{name}: {json.dumps(result)}\n")

    @property
    def failed(self) -> list[str]:
        """Return the names of what differs."""
        return [
            name
            for name, each in self.results.items()
            if each.get("equal", each["values"]) < each["values"] or not each.get("largest_difference", 0) <= TOLERANCE
        ]


class Theirs:
    """Runs public code in a process of its own.

    Args:
        checkouts: by option.
        packages: folder that the process imports from first.
        folder: for files.
    """

    def __init__(self, checkouts: Mapping[str, Path], packages: Path, folder: Path) -> None:
        self.checkouts, self.packages, self.folder = checkouts, packages, folder
        self.versions: dict[str, str] = {}

    def run(self, code: str, **spec: Any) -> dict[str, Any]:
        """Return what a runner of `their_code` returns.

        Raises:
            RuntimeError: it failed; the message is the end of what it printed.
        """
        folder = self.folder / f"run_{code}"
        folder.mkdir()
        file = folder / "spec.json"
        file.write_text(
            json.dumps({"code": code, **spec, **{name: str(path) for name, path in self.checkouts.items()}})
        )
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (self.packages, ROOT))),
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        command = [sys.executable, "-m", "benchmarks.published.their_code", str(file)]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{code}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        results: dict[str, Any] = json.loads(file.with_suffix(".results.json").read_text())
        self.versions = results.pop("versions")
        return results


def configured(*overrides: str) -> DictConfig:
    """Return the configuration of `python evaluate.py` with these overrides."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("evaluate", ["out=.", *overrides])


def encoder_of(name: str, path: Path, config: DictConfig) -> Any:
    """Return a shipped encoder with other weights."""
    return instantiate(config.encoders[name], path=str(path), device="cpu")


def judge() -> Any:
    """Return what judging reads of an agent, around a provider that writes requests as they are sent."""
    provider = OpenAIChat("judge", "http://127.0.0.1/v1", None, max_tokens_field="max_tokens")
    return SimpleNamespace(provider=provider, model="judge", sampling=Sampling(512))


def bodies(judging: Judging, questions: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the requests as they are sent."""
    sent = []
    for question in questions:
        request = judging.request(*question)
        body = judging.agent.provider._body(request.messages, request.sampling or judging.agent.sampling)  # type: ignore[attr-defined]
        sent.append({**body, "messages": in_parts(body["messages"])})
    return sent
