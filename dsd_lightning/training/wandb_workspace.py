"""Saves a W&B workspace with panels of this project's metrics: `python -m dsd_lightning.training.wandb_workspace`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from dsd_lightning.cli.flags import Flags
from dsd_lightning.module import VALIDATION_BINS

STEP = "trainer/global_step"
"""The horizontal axis: optimizer steps, as Lightning's WandbLogger names them."""

MISSING = "This needs the package wandb-workspaces: pip install -e '.[workspace]' (or pip install wandb-workspaces)."


@dataclass(frozen=True)
class Panel:
    """A line plot of metrics over the optimizer steps, or, if `media`, a browser of images and tables."""

    title: str
    metrics: tuple[str, ...]
    vertical: str = ""
    bounds: tuple[float | None, float | None] = (None, None)
    media: bool = False


@dataclass(frozen=True)
class Section:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]
    is_open: bool = True


def _bins(kind: str) -> tuple[str, ...]:
    return tuple(f"val/loss_{kind}_bin{index}" for index in range(VALIDATION_BINS))


SECTIONS = (
    Section(
        "Held-out samples, scored",
        (
            Panel("Right identity, right prompt (chance 0.0625)", ("probe/identity_accuracy", "probe/prompt_accuracy"),
                  "share", (0.0, 1.0)),
            Panel("Overlap with the true mask", ("probe/mask_iou",), "IoU", (0.0, 1.0)),
            Panel("Error of depth (AbsRel)", ("probe/depth_abs_rel",), "share of the true depth"),
            Panel("Right light (chance 0.2 and 0.33)",
                  ("probe/light_direction_accuracy", "probe/light_color_accuracy"), "share", (0.0, 1.0)),
            Panel("Copied from the reference (0 is none)", ("probe/copy_paste",), "RMS RGB difference"),
            Panel("Reconstructed reference", ("probe/reference_psnr",), "PSNR, dB"),
        ),
    ),
    Section(
        "Judge",
        (
            Panel("Concept preservation and prompt following", ("judge/cp", "judge/pf"), "share", (0.0, 1.0)),
            Panel("The same, debiased", ("judge/debiased_cp", "judge/debiased_pf"), "share", (0.0, 1.0)),
            Panel("Their products", ("judge/cp_pf", "judge/debiased_cp_pf"), "share", (0.0, 1.0)),
            Panel("Judgements with a score", ("judge/coverage",), "share", (0.0, 1.0)),
        ),
    ),
    Section("Samples", (Panel("Sheet", ("samples/sheet",), media=True), Panel("Table", ("samples/table",), media=True))),
    Section(
        "Is the reference used?",
        (
            Panel("Target loss by reference", ("val/loss_right", "val/loss_shuffled", "val/loss_null"), "velocity MSE"),
            Panel("Validation loss by frame", ("val/loss_reference", "val/loss_target"), "velocity MSE"),
            Panel("Right reference, by timestep", _bins("right"), "velocity MSE"),
            Panel("Shuffled reference, by timestep", _bins("shuffled"), "velocity MSE"),
            Panel("No reference, by timestep", _bins("null"), "velocity MSE"),
        ),
    ),
    Section(
        "Training",
        (
            Panel("Loss", ("train/loss", "train/loss_reference", "train/loss_target"), "velocity MSE"),
            Panel("Learning rate", ("optimizer/lr",)),
            Panel("Gradient norm before clipping", ("optimizer/grad_norm",)),
            Panel("Steps left out, not finite", ("optimizer/skipped_steps",)),
            Panel("Batches whose loss jumped", ("train/loss_spikes",)),
            Panel("Decay of the EMA weights", ("ema/decay",), "", (0.0, 1.0)),
        ),
    ),
    Section(
        "Speed",
        (
            Panel("Pairs a second", ("throughput/pairs_per_second",)),
            Panel("Share of the time spent waiting for data", ("throughput/data_share",), "share", (0.0, 1.0)),
            Panel("Share of the devices' peak", ("throughput/mfu",), "share", (0.0, 1.0)),
            Panel("Most GPU memory", ("throughput/memory_gib",), "GiB"),
        ),
        is_open=False,
    ),
)  # fmt: skip
"""The workspace, from top to bottom."""


def metric_names() -> list[str]:
    """Return every metric that the workspace shows."""
    return [name for section in SECTIONS for panel in section.panels for name in panel.metrics]


def build(entity: str, project: str, name: str) -> Any:
    """Return a `wandb_workspaces.workspaces.Workspace` of `SECTIONS`, not saved yet.

    Raises:
        ModuleNotFoundError: wandb-workspaces is not installed.
    """
    workspaces = _package("wandb_workspaces.workspaces")
    reports = _package("wandb_workspaces.reports.v2")

    def panel(wanted: Panel) -> Any:
        if wanted.media:
            return reports.MediaBrowser(title=wanted.title, media_keys=list(wanted.metrics))
        return reports.LinePlot(
            title=wanted.title,
            x=STEP,
            y=list(wanted.metrics),
            title_y=wanted.vertical or None,
            range_y=wanted.bounds,
        )

    sections = [
        workspaces.Section(name=section.title, panels=[panel(each) for each in section.panels], is_open=section.is_open)
        for section in SECTIONS
    ]
    return workspaces.Workspace(entity=entity, project=project, name=name, sections=sections)


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(MISSING, name=error.name) from error


def main(arguments: Sequence[str] | None = None) -> None:
    """Save the workspace as a new view of a W&B project."""
    parser = Flags(prog="python -m dsd_lightning.training.wandb_workspace", description=__doc__)
    parser.add_argument("--project", default="dsd-lightning", help="W&B project (default: %(default)s)")
    parser.add_argument("--entity", default=None, help="W&B user or team (default: your own)")
    parser.add_argument("--name", default="Diffusion Self-Distillation", help="the view's name (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    try:
        _package("wandb_workspaces.workspaces")
    except ModuleNotFoundError as error:
        parser.exit(1, f"{error}\n")
    import wandb  # here, so that --help is quick

    try:
        entity = chosen.entity or wandb.Api().default_entity
        if entity is None:
            parser.exit(1, "W&B names no default user; give --entity\n")
        workspace = build(entity, chosen.project, chosen.name)
        workspace.save()  # wandb prints the address
    except wandb.errors.UsageError as error:  # no key
        parser.exit(1, f"Not logged in to W&B: run `wandb login` first ({error})\n")
    except (wandb.errors.CommError, ValueError) as error:
        parser.exit(1, f"W&B refused the workspace of {chosen.entity or 'your user'}/{chosen.project}: {error}\n")


if __name__ == "__main__":
    main()
