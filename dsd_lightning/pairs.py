"""The shared vocabulary: what a pair is, what a batch of pairs carries, what a model is conditioned on, what a task is.

Value ranges and shapes, used everywhere below under these names:

- *pixels*: float32 [batch, 3, height, width] in [-1, 1]; black is -1.
- *latents*: [batch, channels, height / 8, width / 8], normalised as FLUX's, `(z - shift) * scale`.
- *canvas*: the latents that an architecture denoises at once: one frame, or several frames side by side.
- *timestep*: float32 [batch] in [0, 1]; 1 is noise, 0 is clean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

REFERENCE, TARGET = "reference", "target"
"""Names of the two frames. Every architecture's last frame is the target."""

SURPLUS = -1
"""Epoch of the samples of a validation batch that is not counted: it lets all devices run equally many, as a sharded model's
forward pass demands."""


@dataclass(frozen=True)
class Task:
    """What reference and target are to each other.

    Attributes:
        name: the task's name, as in `task=...` and in a shard's `task` field.
        aligned: whether the two images show the same pixels (depth map and scene; one scene under two lights), so
            that crops and flips must be shared.
        frame_weights: weight of each frame's mean squared velocity error in the loss.
        captions: odds of each caption kind, by field name of a pair ("caption", "instruction"); they sum to 1.
        background_weight: weight, in (0, 1], of a target's pixels outside of its subject's mask, inside of which it is 1;
            pairs without a mask weigh all pixels alike.
    """

    name: str
    aligned: bool
    frame_weights: Mapping[str, float]
    captions: Mapping[str, float] = field(default_factory=lambda: {"caption": 1.0})
    background_weight: float = 1.0

    def __post_init__(self) -> None:
        unknown = set(self.frame_weights) - {REFERENCE, TARGET}
        if unknown or any(weight < 0 for weight in self.frame_weights.values()) or not self.frame_weights.get(TARGET):
            raise ValueError(
                f"task.frame_weights={dict(self.frame_weights)}: give a weight >= 0 for '{REFERENCE}' and > 0 for '{TARGET}'"
            )
        if abs(sum(self.captions.values()) - 1) > 1e-6 or not set(self.captions) <= {"caption", "instruction"}:
            raise ValueError(
                f"task.captions={dict(self.captions)}: give odds for 'caption' and/or 'instruction' that sum to 1"
            )
        if not 0 < self.background_weight <= 1:
            raise ValueError(f"task.background_weight={self.background_weight}: above 0, and at most 1")


@dataclass(frozen=True)
class Pair:
    """One training example before batching: two images [3, h, w] in [-1, 1] and the words that go with them.

    `key` names the sample for good (it keys every random draw); `facts` holds what a probe may need to know about it
    (the miniature's scenes, as plain integers) and is empty for images from the world.
    """

    key: str
    reference: Float[Tensor, "3 h w"] | None
    target: Float[Tensor, "3 h w"]
    caption: str
    instruction: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    mask: Float[Tensor, "1 h w"] | None = None
    """Where the target shows its subject, in [0, 1]; None: nobody said."""


@dataclass(frozen=True)
class TextEmbeddings:
    """Embeddings of a batch of prompts: T5's sequence and CLIP's pooled vector."""

    sequence: Float[Tensor, "b n d"]
    pooled: Float[Tensor, "b p"]

    def to(
        self, device: torch.device, dtype: torch.dtype | None = None, *, non_blocking: bool = False
    ) -> TextEmbeddings:
        """Return the same embeddings elsewhere."""
        options: Any = {"dtype": dtype, "non_blocking": non_blocking}
        return TextEmbeddings(self.sequence.to(device, **options), self.pooled.to(device, **options))

    def pin_memory(self) -> TextEmbeddings:
        """Return the same embeddings in page-locked memory."""
        return TextEmbeddings(self.sequence.pin_memory(), self.pooled.pin_memory())

    def rows(self, chosen: slice) -> TextEmbeddings:
        """Return those of some prompts of the batch."""
        return TextEmbeddings(self.sequence[chosen], self.pooled[chosen])

    def where(self, keep: Bool[Tensor, " b"], other: TextEmbeddings) -> TextEmbeddings:
        """Return these embeddings where `keep`, and those of `other` (batch 1 or b) elsewhere."""
        return TextEmbeddings(
            torch.where(keep[:, None, None], self.sequence, other.sequence),
            torch.where(keep[:, None], self.pooled, other.pooled),
        )


@dataclass(frozen=True)
class Encoded:
    """What an architecture makes of a batch of pairs once: the clean canvas and its reference inputs by name."""

    clean: Float[Tensor, "b c h w"]
    reference: Mapping[str, Tensor]

    def to(self, device: torch.device, dtype: torch.dtype | None = None, *, non_blocking: bool = False) -> Encoded:
        """Return the same encodings elsewhere."""
        options: Any = {"dtype": dtype, "non_blocking": non_blocking}
        return Encoded(
            self.clean.to(device, **options), {k: v.to(device, **options) for k, v in self.reference.items()}
        )

    def pin_memory(self) -> Encoded:
        """Return the same encodings in page-locked memory."""
        return Encoded(self.clean.pin_memory(), {k: v.pin_memory() for k, v in self.reference.items()})


@dataclass(frozen=True)
class Condition:
    """What a prediction depends on besides the noisy canvas and the timestep. Never raw pixels.

    Attributes:
        text: prompt embeddings.
        guidance: value of the guidance embedding, float32 [batch] (FLUX multiplies it by 1000 inside).
        reference: reference inputs by name, as the architecture's `encode` returned them.
    """

    text: TextEmbeddings
    guidance: Float[Tensor, " b"]
    reference: Mapping[str, Tensor] = field(default_factory=dict)

    def with_text(self, text: TextEmbeddings) -> Condition:
        """Return the same condition under another text."""
        return replace(self, text=text)

    def rows(self, chosen: slice) -> Condition:
        """Return the condition of some images of the batch."""
        reference = {name: value[chosen] for name, value in self.reference.items()}
        return Condition(self.text.rows(chosen), self.guidance[chosen], reference)


@dataclass(frozen=True)
class PairBatch:
    """A batch of pairs on its way into the module: images or, from a cache, their encodings.

    Exactly one of `target` (with `reference`, unless the task has none) and `encoded` is given; likewise the prompts are
    always there as words, and `text` when they were embedded beforehand.
    """

    keys: Sequence[str]
    epochs: Sequence[int]
    prompts: Sequence[str]
    reference: Float[Tensor, "b 3 h w"] | None = None
    target: Float[Tensor, "b 3 h w"] | None = None
    encoded: Encoded | None = None
    text: TextEmbeddings | None = None
    facts: Sequence[Mapping[str, Any]] = ()
    mask: Float[Tensor, "b 1 m n"] | None = None
    """Where targets show their subjects, in [0, 1], in pixels or latents; 1 everywhere for those without a mask."""

    def __post_init__(self) -> None:
        if (self.target is None) == (self.encoded is None):
            raise ValueError("a PairBatch holds either images (target) or encodings (encoded), and not both")

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device, *, non_blocking: bool = False) -> PairBatch:
        """Return the same batch with its tensors on `device`; `non_blocking` as for tensors."""
        return self._each(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PairBatch:
        """Return the same batch in page-locked memory, from which it is copied while the GPU computes."""
        return self._each(lambda part: part.pin_memory())

    def _each(self, change: Callable[[Any], Any]) -> PairBatch:
        parts = ("reference", "target", "encoded", "text", "mask")
        return replace(self, **{n: change(v) for n in parts if (v := getattr(self, n)) is not None})
