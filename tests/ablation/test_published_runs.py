"""Holds the runs that docs/ablation and docs/students publish against what their experiments would run today."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from support.commands import ROOT, compose_train

from dsd_lightning.runs.folder import flattened, may_differ

SEED = 0  # the other seeds differ in it alone, or the published report would say so

PUBLISHED = sorted(ROOT.glob(f"docs/*/runs/*-seed{SEED}.json"))

DEFAULTS_NOT_USED = {"base.num_inference_steps"}
"""Settings that only give others their defaults, which these experiments do not use."""

CHOICE = {"ablation": "arch", "students": "pairs"}
"""The override that an experiment's rows are named by."""


def test_runs_are_published() -> None:
    assert {run.parts[-3] for run in PUBLISHED} == set(CHOICE)


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: f"{file.parts[-3]}-{file.stem}")
def test_the_experiment_would_run_what_is_published(file: Path) -> None:
    experiment = file.parts[-3]
    run = json.loads(file.read_text())
    overrides = [f"experiment={experiment}", f"seed={run['seed']}", f"task={run['task']}"]
    overrides.append(f"{CHOICE[experiment]}={file.stem.split('-')[1]}")
    if experiment == "students":
        overrides.append(f"sets={run['config']['sets']}")
    composed = OmegaConf.to_container(compose_train(Path(), *overrides, as_it_is=True), resolve=True)
    assert isinstance(composed, dict)
    settings = flattened({str(key): value for key, value in composed.items() if key != "hydra"})
    published = flattened(run["config"])
    differences = {
        name: (published.get(name, "not given"), settings.get(name, "not given"))
        for name in {*published, *settings}
        if published.get(name, "not given") != settings.get(name, "not given")
        and name not in DEFAULTS_NOT_USED
        and not may_differ(name)
    }
    assert not differences, "published, today"
