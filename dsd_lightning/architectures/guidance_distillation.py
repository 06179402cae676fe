"""Distils guidance by a weaker model into the guidance embedding, so that one pass a step generates guided images.

Autoguidance (Karras et al. 2024, arXiv 2406.02507) extrapolates from what a weaker version of a model predicts to what the
model predicts. Guidance distillation (Meng et al. 2023, arXiv 2210.03142) trains a model to predict the result under an
embedding of the guidance scale; FLUX.1-dev was trained so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from jaxtyping import Float
from torch import Tensor, nn

from dsd_lightning.architectures.text_only import TextOnly
from dsd_lightning.files.checkout import in_checkout
from dsd_lightning.flux.lora import Lora
from dsd_lightning.pairs import Condition


class GuidanceDistillation(TextOnly):
    """A text-to-image model that is trained on what it predicted at the start, guided by a weaker model.

    At the guidance scale g the target is `weaker + g (stronger - weaker)`: at g = 1, what the model predicted before.
    Checkpoints are those of `text_only`.

    Args:
        transformer: the model to train; it must have a guidance embedding.
        weaker: folder of a transformer in the diffusers layout, of the same shapes and less trained.
        trained_guidance: the one guidance scale at which both models were trained; they go on predicting at it.
        guidance_range: lowest and highest guidance scale that training draws.
        interval: timesteps (1 is noise) in which guidance applies; outside, the target is what the model predicted. Guidance
            at low noise saturates colours (Kynkäänniemi et al. 2024, arXiv 2404.07724).
        lora, train_base: what is trained, as for `TextOnly`.

    Raises:
        ValueError: a transformer without a guidance embedding, or a weaker one of other shapes, or none at its place.
    """

    def __init__(
        self,
        transformer: FluxTransformer2DModel,
        weaker: str,
        trained_guidance: float,
        guidance_range: Sequence[float],
        interval: Sequence[float],
        lora: Lora | None = None,
        train_base: bool = False,
    ) -> None:
        if not transformer.config.guidance_embeds:
            raise ValueError("guidance is distilled into a guidance embedding, and the base's transformer has none")
        stronger, other = deepcopy(transformer), deepcopy(transformer)
        super().__init__(transformer, lora, train_base)
        self.stronger = TextOnly(stronger)
        self.weaker = TextOnly(other if transformer.device.type == "meta" else _loaded(weaker, other))
        self.trained_guidance = trained_guidance
        self.guidance_range = (float(guidance_range[0]), float(guidance_range[1]))
        self.interval = (float(interval[0]), float(interval[1]))

    def target_velocity(
        self,
        clean: Float[Tensor, "b c h w"],
        noise: Float[Tensor, "b c h w"],
        noisy: Float[Tensor, "b c h w"],
        timestep: Float[Tensor, " b"],
        condition: Condition,
    ) -> Float[Tensor, "b c h w"]:
        """Return the guided prediction at each sample's guidance scale."""
        unguided = replace(condition, guidance=torch.full_like(condition.guidance, self.trained_guidance))
        with torch.no_grad():
            stronger = self.stronger(noisy, timestep, unguided).float()
            weaker = self.weaker(noisy, timestep, unguided).float()
        applies = (timestep >= self.interval[0]) & (timestep <= self.interval[1])
        scale = torch.where(applies, condition.guidance, 1.0).view(-1, 1, 1, 1)
        return weaker + scale * (stronger - weaker)

    def shard_units(self) -> Iterable[nn.Module]:
        """Yield the blocks of all three transformers."""
        yield from super().shard_units()
        yield from self.stronger.shard_units()
        yield from self.weaker.shard_units()


def _loaded(folder: str, transformer: FluxTransformer2DModel) -> FluxTransformer2DModel:
    """Return `transformer` with the weights in `folder`."""
    place = in_checkout(folder)
    if not Path(place).is_dir():
        raise ValueError(f"arch.weaker={folder} is no folder; docs/miniature.md has the command that makes it")
    weights = FluxTransformer2DModel.from_pretrained(place).state_dict()
    shapes = {name: value.shape for name, value in transformer.state_dict().items()}
    if {name: value.shape for name, value in weights.items()} != shapes:
        raise ValueError(f"arch.weaker={folder}: its shapes differ from those of the base's transformer")
    transformer.load_state_dict(weights)
    return transformer
