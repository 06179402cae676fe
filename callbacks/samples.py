"""Writes sheets of images generated from fixed held-out pairs, and from a user's own references and prompts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from jaxtyping import Float
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from callbacks.isolated_sampling import EveryNSteps, isolated_sampling
from callbacks.logged_images import log_images
from dsd_lightning.files.atomic import write_json
from dsd_lightning.files.rows import Table
from dsd_lightning.images.pixels import load_rgb, to_image, to_pixels
from dsd_lightning.images.sheet import FINAL, GENERATED, GIVEN, RECONSTRUCTED, ROWS, TRUTH, Row, draw_sheet, save_whole
from dsd_lightning.module import DiffusionSelfDistillation
from dsd_lightning.pairs import REFERENCE, TARGET

log = logging.getLogger(__name__)

COLUMNS = (GIVEN, RECONSTRUCTED, GENERATED, TRUTH)
"""Of a sheet, from left to right; those without any image are left out."""

SHEET, TABLE = "samples/sheet", "samples/table"
"""Names in W&B."""


class PromptsFileError(ValueError):
    """A file of prompts and references that cannot be used; the message names the remedy."""


@dataclass(frozen=True)
class Request:
    """A user's request: a reference image's file and a prompt."""

    image: Path
    prompt: str


def read_requests(path: Path) -> list[Request]:
    """Return the requests of a JSONL file, one `{"image": path, "prompt": text}` a line; paths relative to the file.

    Raises:
        PromptsFileError: no such file, or images that do not exist (all of them named).
        TableError: a row of another form.
    """
    if not path.is_file():
        raise PromptsFileError(f"prompts_file={path}: no such file; give a JSONL file, or null for none")
    requests = [Request(path.parent / row.required_text("image"), row.required_text("prompt")) for row in Table(path)]
    missing = [str(request.image) for request in requests if not request.image.is_file()]
    if missing:
        raise PromptsFileError(f"{path} names {len(missing)} images that do not exist: {', '.join(missing)}")
    return requests


class SampleSheets(L.Callback):
    """Writes sheets `samples/step_<8 digits>.png`: before training, every N optimizer steps and at the end.

    A row is a held-out pair (reference, reconstructed reference, generated, truth); pairs and noise are the same every time, so
    that sheets can be compared. Rows of a user's file follow, without a truth. After the first step EMA weights are used
    if a callback keeps them (`callbacks.ema`, which comes before this one in the list). Each sheet goes to
    W&B or TensorBoard too if their logger is there; to W&B with a table of captions and images at the end.

    Args:
        count: pairs a sheet, from `trainer.datamodule.probe_batches`; also the most samples generated at once.
        every_n_steps: optimizer steps between sheets; None for none before the end.
        at_start: whether the untrained state is shown too.
        prompts_file: a JSONL file of `{"image": path, "prompt": text}` with paths relative to it; its images are cut to
            the datamodule's `resolution` (height, width).
        folder: where the sheets go; `samples/` in the run folder (the trainer's `default_root_dir`) if None.

    Raises:
        PromptsFileError: see `read_requests`; and at the start of the run, for images that cannot be read or are
            smaller than the resolution.
    """

    def __init__(
        self,
        count: int = 8,
        every_n_steps: int | None = None,
        at_start: bool = True,
        prompts_file: str | None = None,
        folder: str | None = None,
    ) -> None:
        super().__init__()
        if count < 1:
            raise ValueError(f"count={count} must be at least 1 pair a sheet")
        self.count, self.at_start = count, at_start
        self.clock = EveryNSteps(every_n_steps, "every_n_steps")
        self.folder = None if folder is None else Path(folder)
        self.prompts_file = None if prompts_file is None else Path(prompts_file)
        self.requests = [] if self.prompts_file is None else read_requests(self.prompts_file)
        self.references: list[Float[Tensor, "3 h w"]] = []
        self._without = False

    # --- Schedule.

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Read the user's images, so that a bad one is refused before anything is trained."""
        if not self.requests:
            return
        resolution = getattr(getattr(trainer, "datamodule", None), "resolution", None)
        if resolution is None:
            raise PromptsFileError(f"prompts_file={self.prompts_file} needs a datamodule with a `resolution`")
        height, width = resolution
        self.references = []
        for request in self.requests:
            try:
                self.references.append(to_pixels(load_rgb(request.image), height, width))
            except ValueError as error:
                raise PromptsFileError(f"{self.prompts_file} names {request.image}: {error}") from error

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the untrained state, unless the run is resumed."""
        self.clock.start(trainer)
        if self.at_start and trainer.global_step == 0:
            self.write_sheet(trainer, pl_module, ema=False)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Write a sheet every N optimizer steps."""
        if self.clock.due(trainer):
            self.write_sheet(trainer, pl_module, ema=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the trained state, keep its images one by one, and log the table to W&B."""
        rows = self.write_sheet(trainer, pl_module, ema=True)
        if rows and trainer.is_global_zero:
            _keep(rows, self.path(trainer, trainer.global_step).parent / FINAL)
            self._log_table(trainer, rows)

    # --- Sheets.

    def write_sheet(self, trainer: L.Trainer, pl_module: L.LightningModule, ema: bool) -> list[Row]:
        """Generate one sheet, write and log it, and return its rows; none where there is nothing to generate."""
        module = cast(DiffusionSelfDistillation, pl_module)
        # Every device generates, as sharded weights demand; the first one writes.
        with isolated_sampling(trainer, module, ema):
            rows = self._pair_rows(trainer, module) + self._request_rows(module)
        if not rows:
            if not self._without:
                log.info("no sample sheets: no pair validates, and callbacks.samples.prompts_file=FILE gives none")
            self._without = True
            return []
        if trainer.is_global_zero:
            step = trainer.global_step
            sheet = draw_sheet(_columns(rows), rows, title=f"arch={module.architecture.name}, step {step}")
            path = self.path(trainer, step)
            save_whole(sheet, path)
            log.info("sample sheet: %s", path)
            log_images(trainer, SHEET, [sheet])
        return rows

    def path(self, trainer: L.Trainer, step: int) -> Path:
        """Return the file of the sheet after `step` optimizer steps."""
        folder = self.folder or Path(trainer.default_root_dir) / "samples"
        return folder / f"step_{step:08d}.png"

    def _pair_rows(self, trainer: L.Trainer, module: DiffusionSelfDistillation) -> list[Row]:
        offered = getattr(getattr(trainer, "datamodule", None), "probe_batches", None)
        first = None if offered is None else next(iter(offered(self.count, self.count)), None)
        if first is None:
            return []
        batch = first.to(module.device)
        generated = module.generate(batch)
        return _rows({GIVEN: batch.reference, **_named(generated), TRUTH: batch.target}, batch.prompts, batch.keys)

    def _request_rows(self, module: DiffusionSelfDistillation) -> list[Row]:
        rows: list[Row] = []
        for start in range(0, len(self.requests), self.count):
            chosen = slice(start, start + self.count)
            prompts = [request.prompt for request in self.requests[chosen]]
            reference = torch.stack(self.references[chosen]).to(module.device)
            keys = [f"request {index}" for index in range(start, start + len(prompts))]
            rows += _rows({GIVEN: reference, **_named(module.generate_from(reference, prompts, keys))}, prompts, keys)
        return rows

    def _log_table(self, trainer: L.Trainer, rows: Sequence[Row]) -> None:
        loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
        if not loggers:
            return
        import wandb  # here, because it takes a second and only these runs need it

        columns = _columns(rows)
        data = [
            [row.caption, *(wandb.Image(row.images[name]) if name in row.images else None for name in columns)]
            for row in rows
        ]
        for logger in loggers:
            logger.log_table(key=TABLE, columns=["caption", *columns], data=data, step=trainer.global_step)


def _named(frames: dict[str, Tensor]) -> dict[str, Tensor]:
    titles = {REFERENCE: RECONSTRUCTED, TARGET: GENERATED}
    return {titles[name]: images for name, images in frames.items()}


def _rows(images: dict[str, Tensor | None], captions: Sequence[str], keys: Sequence[str]) -> list[Row]:
    return [
        Row({name: to_image(batch[index]) for name, batch in images.items() if batch is not None}, caption, key)
        for index, (caption, key) in enumerate(zip(captions, keys, strict=True))
    ]


def _keep(rows: Sequence[Row], folder: Path) -> None:
    """Write each image of `rows` as a file, and last the list of them."""
    listed = []
    for number, row in enumerate(rows):
        files = {column: f"{number:02d}_{column.replace(' ', '_')}.png" for column in row.images}
        for column, name in files.items():
            save_whole(row.images[column], folder / name)
        listed.append({"key": row.key, "caption": row.caption, "images": files})
    write_json(folder / ROWS, listed, indent=1)


def _columns(rows: Sequence[Row]) -> list[str]:
    return [name for name in COLUMNS if any(name in row.images for row in rows)]
