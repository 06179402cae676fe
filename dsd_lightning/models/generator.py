"""The part of a model's LightningModule that generates: frames of a batch, for previews, probes and judges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor

from dsd_lightning.architectures.base import Architecture
from dsd_lightning.flux.codec import Codec
from dsd_lightning.flux.text import TextEncoder
from dsd_lightning.pairs import TARGET, Condition, PairBatch, TextEmbeddings
from dsd_lightning.randomness import normal
from dsd_lightning.sampler import SamplerSettings, Shift, sample


class FrameGenerator(L.LightningModule):
    """Generates frames from references and texts, from noise that is keyed by the samples.

    Args:
        architecture: where the reference enters; complete, with its factors attached.
        codec, text_encoder: frozen; used for what a batch does not bring encoded.
        shift: of the sampler's timesteps, by the full canvas's tokens.
        sampler: how to sample where no other settings are given.
        seed: part of the key of every draw.
    """

    def __init__(
        self,
        architecture: Architecture,
        codec: Codec,
        text_encoder: TextEncoder,
        shift: Shift,
        sampler: SamplerSettings,
        seed: int,
    ) -> None:
        super().__init__()
        self.architecture, self.codec, self.text_encoder = architecture, codec, text_encoder
        self.shift, self.sampler_settings, self.seed = shift, sampler, seed

    @contextmanager
    def encoders_at_work(self) -> Iterator[None]:
        """Have parked encoders on the device for the length of the block, in which several calls need them."""
        with self.codec.at_work(), self.text_encoder.at_work():
            yield

    def frame_noise(self, shape: Sequence[int], keys: Sequence[tuple[Any, ...]]) -> Float[Tensor, "b c h w"]:
        """Return float32 noise for a canvas of frames of latent `shape` (c, h, w).

        It is drawn one frame at a time: a frame's noise is the same in every architecture.
        """
        frames = {
            name: torch.stack([normal(shape, self.seed, *key, name, "noise") for key in keys])
            for name in self.architecture.frames
        }
        return self.architecture.join(frames)

    def null_text(self, like: TextEmbeddings) -> TextEmbeddings:
        """Return the embeddings of "no text" (batch 1) on the device and in the dtype of `like`."""
        return self.text_encoder.null(like.sequence.shape[1]).to(like.sequence.device, like.sequence.dtype)

    @torch.no_grad()
    def generate(
        self, batch: PairBatch, settings: SamplerSettings | None = None
    ) -> dict[str, Float[Tensor, "b 3 h w"]]:
        """Return the frames that the model generates for a batch, as pixels by name, from noise keyed by the samples."""
        text = batch.text if batch.text is not None else self.text_encoder.encode(batch.prompts)
        if batch.encoded is not None:
            reference = batch.encoded.reference
            shape = tuple(self.architecture.split(batch.encoded.clean)[TARGET].shape[1:])
        else:
            assert batch.target is not None
            reference = self.architecture.encode_reference(batch.reference, self.codec)
            shape = self.frame_shape(*batch.target.shape[-2:])
        return self._generate(reference, text, shape, batch.keys, settings)

    @torch.no_grad()
    def generate_from(
        self,
        reference: Float[Tensor, "b 3 h w"],
        prompts: Sequence[str],
        keys: Sequence[str],
        settings: SamplerSettings | None = None,
    ) -> dict[str, Float[Tensor, "b 3 h w"]]:
        """Return what `generate` would, without a target: the target frame has the reference's size."""
        inputs = self.architecture.encode_reference(reference, self.codec)
        shape = self.frame_shape(*reference.shape[-2:])
        return self._generate(inputs, self.text_encoder.encode(prompts), shape, keys, settings)

    def frame_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return the latent shape (c, h, w) of a frame of `height` x `width` pixels.

        Raises:
            ValueError: a size that the codec cannot pack.
        """
        self.codec.require_size(height, width)
        return self.codec.channels, height // self.codec.downsampling, width // self.codec.downsampling

    def _generate(
        self,
        reference: Mapping[str, Tensor],
        text: TextEmbeddings,
        shape: Sequence[int],
        keys: Sequence[str],
        settings: SamplerSettings | None,
    ) -> dict[str, Float[Tensor, "b 3 h w"]]:
        settings = settings or self.sampler_settings
        dtype = next(self.codec.parameters()).dtype
        noise = self.frame_noise(shape, [("draw", key) for key in keys]).to(self.device, dtype)
        guidance = torch.full((len(keys),), settings.guidance_scale, device=self.device)
        condition = Condition(text, guidance, reference)
        canvas = sample(self.architecture, condition, self.null_text(text), noise, settings, self.shift)
        return self.decode_frames(canvas)

    def decode_frames(self, canvas: Float[Tensor, "b c lh lw"]) -> dict[str, Float[Tensor, "b 3 h w"]]:
        """Return the frames of a canvas as pixels; the canvas is decoded as one image, as it was encoded."""
        return self.architecture.split(self.codec.decode(canvas))
