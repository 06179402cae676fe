"""Builds the model of a method: a run of ours, the shipped miniature, or the authors' weights."""

from __future__ import annotations

from pathlib import Path

from dsd_lightning.evaluation.errors import EvaluationError
from dsd_lightning.evaluation.samples.generate import Model, Sampling
from dsd_lightning.pipeline import TwoFramePipeline
from dsd_lightning.runs.folder import OUTPUTS

LAST = "last"


def trained(run: str | None, sampling: Sampling, damage: float = 0.0, device: str | None = None) -> Model:
    """Return a run's model.

    Args:
        run: its folder, or a checkpoint's; "last" takes the newest below `outputs/` that has a checkpoint; None takes the
            shipped miniature.
        sampling: settings of its sampler.
        damage: see `Model`.
        device: None takes the GPU if there is one.

    Raises:
        EvaluationError: there is no last run.
        LoadingError: the folder is no run, or has no complete checkpoint.
    """
    if run is None:
        return Model(TwoFramePipeline.tiny(device=device), sampling, damage)
    folder = last_run(OUTPUTS) if run == LAST else Path(run)
    return Model(TwoFramePipeline.from_run(folder, device=device), sampling, damage)


def last_run(outputs: Path) -> Path:
    """Return the newest training run that has a checkpoint."""
    runs = [each for each in outputs.glob("*-*-*/*-*-*") if any((each / "checkpoints").glob("step_*"))]
    if not runs:
        raise EvaluationError(
            f"method.maker.run=last, but no run below {outputs}/ has a checkpoint; null takes the shipped one"
        )
    return max(runs)


def official(base: str, transformer: str, lora: str | None, sampling: Sampling, device: str | None = None) -> Model:
    """Return the authors' model.

    Args:
        base: FLUX.1-dev's folder or hub id.
        transformer, lora: the authors' weights, as `TwoFramePipeline.load` takes them; lora="found" is the file beside the
            transformer.
        sampling: settings of its sampler.
        device: None takes the GPU if there is one.
    """
    return Model(TwoFramePipeline.load(base, transformer, lora, device=device), sampling)
