"""A trained copy of the base's first blocks reads the reference and steers the base by what it adds (ControlNet).

Zhang et al., arXiv 2302.05543; the network is diffusers' `FluxControlNetModel`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from diffusers import FluxControlNetModel, FluxTransformer2DModel
from jaxtyping import Float
from torch import Tensor, nn

from dsd_lightning.architectures.base import State
from dsd_lightning.architectures.latent_reference import LatentReference
from dsd_lightning.flux import tokens
from dsd_lightning.flux.lora import Lora
from dsd_lightning.flux.step_cache import FIRST_BLOCK, StepCache, StepCacheError
from dsd_lightning.pairs import Condition


class ControlNet(LatentReference):
    """The reference's latents are the hint; all of the side network is trained, in float32.

    Args:
        transformer: the base, without factors.
        lora: factors on the base; None leaves the base frozen, as is usual.
        num_layers, num_single_layers: double and single blocks copied; None copies one for every `blocks_per_copy` of
            the base's, rounded up.
        blocks_per_copy: consecutive blocks of the base that one copied block steers, where no number is given.
    """

    name = "controlnet"

    def __init__(
        self,
        transformer: FluxTransformer2DModel,
        lora: Lora | None = None,
        num_layers: int | None = None,
        num_single_layers: int | None = None,
        blocks_per_copy: int = 4,
    ) -> None:
        super().__init__(transformer)
        if blocks_per_copy < 1:
            raise ValueError(f"arch.blocks_per_copy={blocks_per_copy} must be at least 1")
        self.copied = {
            name: _copied(name, chosen, int(transformer.config[name]), blocks_per_copy)
            for name, chosen in (("num_layers", num_layers), ("num_single_layers", num_single_layers))
        }
        self.controlnet = copy_blocks(transformer, **self.copied)
        self._finish(lora)

    def settings(self) -> dict[str, Any]:
        """Return the numbers of copied blocks."""
        return dict(self.copied)

    def trained_whole(self) -> Iterable[nn.Module]:
        """Yield the side network."""
        yield self.controlnet

    def shard_units(self) -> Iterable[nn.Module]:
        """Yield the base's blocks and the copied ones."""
        yield from super().shard_units()
        yield from self.controlnet.transformer_blocks
        yield from self.controlnet.single_transformer_blocks

    def require_step_cache(self, cache: StepCache) -> None:
        """Refuse `first_block`: what it keeps of the skipped blocks holds the side network's outputs, added again.

        Raises:
            StepCacheError: naming the others.
        """
        if cache.kind == FIRST_BLOCK:
            raise StepCacheError(
                f"step_cache={cache}: diffusers' transformer adds the ControlNet's outputs between the blocks, also between "
                "skipped ones, where they would count twice; choose taylor_seer or taylor_seer_lite for arch=controlnet"
            )

    def _predict(
        self,
        packed: Float[Tensor, "b n d"],
        image_ids: Float[Tensor, "n 3"],
        timestep: Float[Tensor, " b"],
        condition: Condition,
        state: State | None,
    ) -> Float[Tensor, "b n d"]:
        """Run the base and what the side network adds to it; the reference must be of the target's size."""
        text = condition.text
        trained = self.controlnet.x_embedder.weight.dtype
        added = self.controlnet(
            hidden_states=packed.to(trained),
            controlnet_cond=tokens.pack(condition.reference["latents"]).to(trained),
            encoder_hidden_states=text.sequence.to(trained),
            pooled_projections=text.pooled.to(trained),
            timestep=timestep,
            img_ids=image_ids,
            txt_ids=tokens.text_ids(text.sequence.shape[1], device=packed.device),
            guidance=condition.guidance if self.controlnet.config.guidance_embeds else None,
            return_dict=False,
        )
        frozen = self.transformer.context_embedder.weight.dtype
        double, single = ([sample.to(frozen) for sample in samples] for samples in added)
        return self._transform(
            packed,
            timestep,
            condition,
            image_ids,
            controlnet_block_samples=double,
            controlnet_single_block_samples=single,
        )


def copy_blocks(transformer: FluxTransformer2DModel, num_layers: int, num_single_layers: int) -> FluxControlNetModel:
    """Return a ControlNet in float32 that starts from the first blocks and the embedders of `transformer`.

    Its own layers (where the hint enters, and where its blocks' outputs leave) start at zero: at first it adds nothing.
    Not `FluxControlNetModel.from_transformer`, which ignores the numbers of blocks on a transformer whose configuration
    is the default one, and leaves layers with LoRA factors randomly initialised without a word.

    Raises:
        KeyError: if layers of `transformer` bear other names, as those with LoRA factors do.
    """
    shared = (
        "in_channels",
        "attention_head_dim",
        "num_attention_heads",
        "joint_attention_dim",
        "pooled_projection_dim",
    )
    config = {key: transformer.config[key] for key in (*shared, "guidance_embeds", "axes_dims_rope")}
    # Without memory first: no time is lost on random numbers, and a layer that got no weights cannot go unnoticed.
    with torch.device("meta"), warnings.catch_warnings():
        # diffusers' ControlNet imports its position embedding from a place that diffusers deprecates.
        warnings.simplefilter("ignore", FutureWarning)
        controlnet = FluxControlNetModel(**config, num_layers=num_layers, num_single_layers=num_single_layers)
    controlnet = controlnet.to(torch.float32).to_empty(device=transformer.device)
    theirs = transformer.state_dict()
    controlnet.load_state_dict(
        {
            name: torch.zeros_like(value) if name.startswith("controlnet_") else theirs[name]
            for name, value in controlnet.state_dict().items()
        }
    )
    processor = transformer.transformer_blocks[0].attn.processor
    for block in (*controlnet.transformer_blocks, *controlnet.single_transformer_blocks):
        block.attn.processor._attention_backend = processor._attention_backend
    return controlnet


def _copied(name: str, chosen: int | None, of_base: int, blocks_per_copy: int) -> int:
    """Return how many blocks to copy, refusing numbers that diffusers would leave partly unread."""
    count = -(-of_base // blocks_per_copy) if chosen is None else int(chosen)
    # diffusers' transformer adds copy i's output after the base's blocks i * interval to (i + 1) * interval - 1. Without a
    # single block, nothing would train the text half of the last double one.
    usable = [k for k in range(1, of_base + 1) if (of_base - 1) // -(-of_base // k) == k - 1]
    if count not in usable:
        raise ValueError(
            f"arch.{name}={count} copied blocks cannot be spread over the base's {of_base}; choose one of "
            f"{', '.join(map(str, usable))}"
        )
    return count
