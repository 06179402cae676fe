"""Scores how faithful a generated image is to the identity and to the prompt: exactly, since the truth can be enumerated.

The distance is the root mean squared RGB difference over the whole image after 2 x 2 average pooling, on the [-1, 1]
scale (`candidates.distances`). Measured on true images put out of order, nearest of 16 identities: pooling makes it
more tolerant than single pixels of what does not matter (right in 0.92 instead of 0.89 of images moved by 1.5 pixels
both ways, 0.99 instead of 0.97 after a blur of 1.5 pixels) and hardly less sensitive to what does (0.97 instead of 0.985
with 0.6 of the contrast). Pooling 4 x 4 gains more on moved images and loses on colours (0.90 with 0.6 of the
contrast); restricting it to the character's mask changes nothing, because what all candidates share (here the
background) adds the same to every squared distance.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics.image import PeakSignalNoiseRatio

from dsd_lightning.miniature import candidates
from dsd_lightning.miniature.metrics.base import SampleMetric
from dsd_lightning.miniature.renderer import RESOLUTION
from dsd_lightning.miniature.world import Context, Identity, Scene
from dsd_lightning.pairs import REFERENCE, TARGET, PairBatch

Facts = Mapping[str, Any]
"""What the miniature tells of a sample: lists of indices, "identity" [6], "reference" [8] and "target" [8] (contexts)."""


def tells_scene(facts: Facts) -> bool:
    """Return whether `facts` tell the scene of the target: who is in it, and in which context."""
    return len(facts.get("identity", ())) == len(Identity.vocabulary) and len(facts.get("target", ())) == len(
        Context.vocabulary
    )


def target_scene(facts: Facts) -> Scene:
    """Return the scene that the target shows."""
    return Scene(Identity(*facts["identity"]), Context(*facts["target"]))


def require_size(images: Float[Tensor, "b 3 h w"]) -> None:
    """Refuse images that are not of the world's size.

    Raises:
        ValueError: naming both sizes.
    """
    if tuple(images.shape[-2:]) != (RESOLUTION, RESOLUTION):
        raise ValueError(
            f"images of {images.shape[-2]} x {images.shape[-1]} cannot be compared with the miniature's renderings "
            f"of {RESOLUTION} x {RESOLUTION}; sample at data.resolution={RESOLUTION}"
        )


def features(images: Float[Tensor, "b 3 h w"]) -> candidates.Features:
    """Return images [b, 3, 64, 64] in [-1, 1] as the distance sees them.

    Raises:
        ValueError: images of another size than the world's.
    """
    require_size(images)
    return candidates.pooled(images.detach().float().cpu().numpy())


class MiniatureMetric(SampleMetric):
    """A metric that needs the miniature world, where the truth can be rendered; other images it cannot score."""

    def can_score(self, batch: PairBatch, frames: Collection[str]) -> bool:
        """Return whether the samples are images of the world's size that tell the target's scene."""
        pictured = batch.target is not None and tuple(batch.target.shape[-2:]) == (RESOLUTION, RESOLUTION)
        return pictured and len(batch.facts) == len(batch) and all(tells_scene(facts) for facts in batch.facts)


class NearestCandidate(MiniatureMetric):
    """Share of images whose nearest candidate is the truth; in [0, 1], higher is better, chance 0.0625."""

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    attributes: ClassVar[tuple[str, ...]]
    correct: Tensor
    total: Tensor
    mistaken: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("correct", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("mistaken", torch.zeros(len(self.attributes), dtype=torch.long), dist_reduce_fx="sum")

    @abstractmethod
    def candidates(self, scene: Scene, key: str) -> list[Scene]:
        """Return the scenes that the image of `scene` is held against, the truth first."""

    def update(self, images: Float[Tensor, "b 3 h w"], facts: Sequence[Facts], keys: Sequence[str]) -> None:
        """Count hits.

        Args:
            images: drawn targets [b, 3, 64, 64] in [-1, 1].
            facts: of each sample, telling its scene.
            keys: of each sample; a sample meets the same distractors every time.
        """
        for drawn, fact, key in zip(features(images), facts, keys, strict=True):
            scene = target_scene(fact)
            options = self.candidates(scene, key)
            renderings = np.stack([candidates.rendered(option) for option in options])
            nearest = int(np.argmin(candidates.distances(drawn, renderings)))
            self.total += 1
            self.correct += nearest == 0
            for name in candidates.differing(scene, options[nearest]):
                self.mistaken[self.attributes.index(name)] += 1

    def score(self, drawn: Mapping[str, Tensor], batch: PairBatch) -> None:
        """Count hits among the drawn targets."""
        self.update(drawn[TARGET], batch.facts, batch.keys)

    def compute(self) -> Tensor:
        """Return the share of hits; NaN before the first image."""
        return self.correct / self.total

    def details(self) -> Mapping[str, int]:
        """Return the attributes that were mistaken, and how often."""
        return {name: count for name, count in self.errors_by_attribute().items() if count}

    def errors_by_attribute(self) -> dict[str, int]:
        """Return how often each attribute differed between the truth and the nearest candidate (of this process)."""
        return {name: int(count) for name, count in zip(self.attributes, self.mistaken, strict=True)}


class IdentityAccuracy(NearestCandidate):
    """Whether the drawn character is the reference's: nearest among the true identity and 15 other ones.

    All are rendered in the requested context; five of them differ from the truth in exactly one attribute.
    """

    attributes = tuple(Identity.vocabulary)

    def candidates(self, scene: Scene, key: str) -> list[Scene]:
        """Return 16 identities in the requested context."""
        return candidates.identity_candidates(scene.identity, scene.context, key)


class PromptAccuracy(NearestCandidate):
    """Whether the drawn context is the prompt's: nearest among the requested context and 15 other ones.

    All are rendered with the true identity; five of them differ from the request in exactly one attribute.
    """

    attributes = tuple(Context.vocabulary)

    def candidates(self, scene: Scene, key: str) -> list[Scene]:
        """Return 16 contexts of the true identity."""
        return candidates.context_candidates(scene.identity, scene.context, key)


class CopyPaste(MiniatureMetric):
    """How much closer the result is to the reference image than the truth is.

    Mean of d(truth, reference) - d(result, reference), RMS RGB difference on the [-1, 1] scale: 0 for results like the
    truth, positive for copies (a result that is the reference gives d(truth, reference), about 0.5), negative for results
    farther from the reference than the truth.
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False
    excess: Tensor
    total: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("excess", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(
        self,
        images: Float[Tensor, "b 3 h w"],
        truths: Float[Tensor, "b 3 h w"],
        references: Float[Tensor, "b 3 h w"],
    ) -> None:
        """Add images, their truths and their references, each [b, 3, 64, 64] in [-1, 1]."""
        for drawn, truth, reference in zip(features(images), features(truths), features(references), strict=True):
            of_result, of_truth = candidates.distances(reference, np.stack([drawn, truth]))
            self.excess += float(of_truth - of_result)
            self.total += 1

    def can_score(self, batch: PairBatch, frames: Collection[str]) -> bool:
        """Return whether there are references to copy from, too."""
        return super().can_score(batch, frames) and batch.reference is not None

    def score(self, drawn: Mapping[str, Tensor], batch: PairBatch) -> None:
        """Add the drawn targets."""
        assert batch.target is not None
        assert batch.reference is not None
        self.update(drawn[TARGET], batch.target, batch.reference)

    def compute(self) -> Tensor:
        """Return the mean excess; NaN before the first image."""
        return self.excess / self.total


class ReferencePSNR(SampleMetric, PeakSignalNoiseRatio):
    """Peak signal-to-noise ratio of the reconstructed reference frame, dB, from the squared error of all images together.

    `update(reconstructed, references)` with images [b, 3, h, w] in [-1, 1] of any size; higher is better. The VAE's own loss
    bounds it from above.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(data_range=(-1.0, 1.0), **options)

    def can_score(self, batch: PairBatch, frames: Collection[str]) -> bool:
        """Return whether there is a reference, and it is reconstructed."""
        return batch.reference is not None and REFERENCE in frames

    def score(self, drawn: Mapping[str, Tensor], batch: PairBatch) -> None:
        """Add the reconstructed references."""
        assert batch.reference is not None
        self.update(drawn[REFERENCE], batch.reference)
