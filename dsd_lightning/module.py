"""One training step and one validation step of any architecture on any task, as a LightningModule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection

from dsd_lightning.architectures.base import Architecture
from dsd_lightning.checkpoints.adapter import check_header, header_of, load_trained
from dsd_lightning.compute.device import sent
from dsd_lightning.compute.machine import uncompiled
from dsd_lightning.compute.processes import mean
from dsd_lightning.compute.strategy import ShardedStrategy
from dsd_lightning.flux.codec import Codec
from dsd_lightning.flux.text import TextEncoder
from dsd_lightning.models.generator import FrameGenerator
from dsd_lightning.objective import FrameLosses, frame_losses, weights_of_mask
from dsd_lightning.pairs import SURPLUS, TARGET, Condition, Encoded, PairBatch, Task, TextEmbeddings
from dsd_lightning.randomness import uniform
from dsd_lightning.rectified_flow import LogitNormal, Mode, Uniform, shift_time
from dsd_lightning.sampler import SamplerSettings, Shift

Density = Uniform | LogitNormal | Mode

VALIDATION_BINS = 8
"""Equal timestep bins of the validation losses."""


@dataclass(frozen=True)
class Dropout:
    """Odds that a training sample loses its text, its reference, or both, so that both guidances work later."""

    text: float = 0.0
    reference: float = 0.0
    both: float = 0.0

    def __post_init__(self) -> None:
        odds = (self.text, self.reference, self.both)
        if min(odds) < 0 or sum(odds) > 1:
            raise ValueError(f"dropout text={odds[0]}, reference={odds[1]}, both={odds[2]}: odds >= 0 with a sum <= 1")

    def keeps(self, draw: float) -> tuple[bool, bool]:
        """Return (keep text, keep reference) for a uniform draw in [0, 1)."""
        if draw < self.both:
            return False, False
        if draw < self.both + self.text:
            return False, True
        return True, not draw < self.both + self.text + self.reference


class DiffusionSelfDistillation(FrameGenerator):
    """Encodes a batch, drops conditions, and minimises the weighted velocity error of every frame.

    Args:
        architecture: where the reference enters; complete, with its factors attached.
        codec, text_encoder: frozen; used for what a batch does not bring encoded.
        task: what reference and target are to each other; gives the frame weights.
        density, shift: distribution of the timesteps; the shift depends on the full canvas's tokens.
        dropout: odds of losing text, reference or both.
        optimizer: `torch.optim` class with all but its parameters, which come with their names.
        schedule: learning-rate schedule with all but its optimizer; stepped once an optimizer step.
        guidance_scale: value of the guidance embedding in training (null for models without one).
        sampler: how previews and probes sample.
        seed: part of the key of every draw.
    """

    def __init__(
        self,
        architecture: Architecture,
        codec: Codec,
        text_encoder: TextEncoder,
        task: Task,
        density: Density,
        shift: Shift,
        dropout: Dropout,
        optimizer: Callable[[Iterable[tuple[str, nn.Parameter]]], torch.optim.Optimizer],
        schedule: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler],
        guidance_scale: float | None,
        sampler: SamplerSettings,
        seed: int,
    ) -> None:
        super().__init__(architecture, codec, text_encoder, shift, sampler, seed)
        self.task, self.density, self.dropout = task, density, dropout
        self.make_optimizer, self.make_schedule = optimizer, schedule
        self.guidance_scale = guidance_scale
        self.strict_loading = False
        kinds = ("right", "shuffled", "null")
        names = [*architecture.frames, *kinds, *(f"{kind}_bin{i}" for kind in kinds for i in range(VALIDATION_BINS))]
        self.validation_losses = MetricCollection({f"val/loss_{name}": MeanMetric() for name in names})

    # --- Encoding.

    def encode(self, batch: PairBatch) -> tuple[Encoded, TextEmbeddings]:
        """Return the batch's encodings and text embeddings, computing what it does not bring along."""
        if batch.encoded is not None:
            encoded = batch.encoded
        else:
            assert batch.target is not None
            encoded = self.architecture.encode(batch.reference, batch.target, self.codec)
        text = batch.text if batch.text is not None else self.text_encoder.encode(batch.prompts)
        return encoded, text

    def condition(self, encoded: Encoded, text: TextEmbeddings, guidance_scale: float | None) -> Condition:
        """Return the condition of a batch; the guidance value is constant over it."""
        batch = encoded.clean.shape[0]
        guidance = torch.full((batch,), guidance_scale or 0.0, device=encoded.clean.device)
        return Condition(text, guidance, encoded.reference)

    def noise(self, clean: Float[Tensor, "b c h w"], keys: Sequence[tuple[Any, ...]]) -> Float[Tensor, "b c h w"]:
        """Return noise for a clean canvas; see `frame_noise`."""
        frame = self.architecture.split(clean)[TARGET]
        return sent(self.frame_noise(frame.shape[1:], keys), clean.device).to(clean.dtype)

    # --- Training.

    def training_step(self, batch: PairBatch, _: int) -> Tensor:
        """Return the weighted loss of a batch. Logs `train/loss` and `train/loss_<frame>`, means over all devices.

        Neither it nor what it calls waits for the device (`tests/training/test_waiting.py`).
        """
        losses = self.losses(batch)
        size = len(batch)
        logged = {"train/loss": losses.total.detach()}
        logged |= {f"train/loss_{name}": frame.detach().mean() for name, frame in losses.frames.items()}
        if self._is_logged_step():
            logged = {name: mean(value.clone()) for name, value in logged.items()}
        self.log_dict(logged, batch_size=size)  # with `prog_bar`, Lightning fetches it at every batch
        return losses.total

    def _is_logged_step(self) -> bool:
        """Return whether this step's metrics go to the loggers; other steps need not wait for the other devices."""
        step, every = self.trainer.global_step + 1, self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return bool(step == self.trainer.max_steps or (every and step % every == 0))

    def losses(self, batch: PairBatch) -> FrameLosses:
        """Return the losses of a training batch; every draw is keyed by (seed, epoch, sample, frame, purpose)."""
        encoded, text = self.encode(batch)
        keys = [(epoch, key) for epoch, key in zip(batch.epochs, batch.keys, strict=True)]
        condition = self._drop(self.condition(encoded, text, self.guidance_scale), keys)
        if self.architecture.guidance_range is not None:
            low, high = self.architecture.guidance_range
            scales = torch.tensor([low + (high - low) * uniform(self.seed, *key, "guidance") for key in keys])
            condition = replace(condition, guidance=sent(scales, encoded.clean.device))
        draws = sent(torch.tensor([uniform(self.seed, *key, "timestep") for key in keys]), encoded.clean.device)
        timestep = shift_time(self.density(draws), self.shift(self.architecture.image_tokens(encoded.clean)))
        noise = self.noise(encoded.clean, keys)
        weights = None
        if batch.mask is not None and self.task.background_weight < 1:
            height, width = self.architecture.split(encoded.clean)[TARGET].shape[-2:]
            weights = weights_of_mask(batch.mask, (height, width), self.task.background_weight)
        return frame_losses(self.architecture, encoded, condition, noise, timestep, self.task.frame_weights, weights)

    def _drop(self, condition: Condition, keys: Sequence[tuple[Any, ...]]) -> Condition:
        keeps = [self.dropout.keeps(uniform(self.seed, *key, "dropout")) for key in keys]
        keep = sent(torch.tensor(keeps), condition.guidance.device)
        if not all(text for text, _ in keeps):
            condition = condition.with_text(condition.text.where(keep[:, 0], self.null_text(condition.text)))
        if not all(reference for _, reference in keeps):
            condition = self.architecture.drop_reference(condition, keep[:, 1])
        return condition

    # --- Validation, which shows whether the reference is used.

    def validation_step(self, batch: PairBatch, _: int) -> None:
        """Accumulate losses a timestep bin with the right, a shuffled and the null reference, at fixed noise."""
        encoded, text = self.encode(batch)
        size, device = len(batch), encoded.clean.device
        keys = [("validation", key) for key in batch.keys]
        noise = self.noise(encoded.clean, keys)
        right = self.condition(encoded, text, self.guidance_scale)
        everyone = torch.zeros(size, dtype=torch.bool, device=device)
        shuffled = {name: value.roll(1, dims=0) for name, value in encoded.reference.items()}
        kinds = {
            "right": right,
            "shuffled": Condition(text, right.guidance, shuffled),
            "null": self.architecture.drop_reference(right, everyone),
        }
        for bin_index in range(VALIDATION_BINS):
            centre = (bin_index + 0.5) / VALIDATION_BINS
            timestep = torch.full((size,), centre, device=device)
            for kind, condition in kinds.items():
                with uncompiled():
                    losses = frame_losses(
                        self.architecture, encoded, condition, noise, timestep, self.task.frame_weights
                    )
                if SURPLUS in batch.epochs:
                    continue
                target = losses.frames[TARGET]
                self.validation_losses[f"val/loss_{kind}_bin{bin_index}"].update(target)
                self.validation_losses[f"val/loss_{kind}"].update(target)
                if kind == "right":
                    for name, frame in losses.frames.items():
                        self.validation_losses[f"val/loss_{name}"].update(frame)

    def on_validation_epoch_end(self) -> None:
        """Log the validation losses; metric names are a contract (docs/metrics.md)."""
        self.log_dict(self.validation_losses.compute())
        self.validation_losses.reset()

    # --- Optimisation.

    def configure_model(self) -> None:
        """Shard the architecture, if the strategy does."""
        if isinstance(self.trainer.strategy, ShardedStrategy):
            self.trainer.strategy.shard(self.architecture)

    def configure_optimizers(self) -> Any:
        """Return the optimizer over the trained parameters, and its schedule, stepped once an optimizer step.

        Raises:
            ValueError: settings of either that its library refuses.
        """
        try:
            optimizer = self.make_optimizer(list(self.architecture.trainable()))
            schedule = self.make_schedule(optimizer)
        except (ValueError, TypeError) as error:
            raise ValueError(f"optimizer or schedule: {error}; see conf/optimizer and conf/schedule") from error
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "frequency": 1}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as Lightning does, fused optimizers included where gradients are not scaled.

        Lightning refuses to clip for an optimizer that unscales gradients itself, as every fused one may, also under
        bf16-mixed, which has no scaler (`MixedPrecision.clip_gradients`).
        """
        plugin = self.trainer.precision_plugin
        if isinstance(plugin, MixedPrecision) and plugin.scaler is None and gradient_clip_val:
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or GradClipAlgorithmType.NORM)
            Precision.clip_gradients(plugin, optimizer, gradient_clip_val, algorithm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    # --- Checkpoints hold what is trained, never the base.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Replace the full state by the trained parameters and the header of their architecture."""
        checkpoint["state_dict"] = {name: value.detach() for name, value in self.architecture.trainable()}
        checkpoint["adapter"] = header_of(self.architecture)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another architecture or rank; then put the trained parameters in place.

        Raises:
            AdapterMismatchError: naming both sides.
        """
        check_header(checkpoint.get("adapter", {}), self.architecture)
        load_trained(self.architecture, checkpoint["state_dict"])
        checkpoint["state_dict"] = {}
