"""LoRA factors on FLUX's linear layers, by peft."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass

import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig

from dsd_lightning.flux.fused_lora import fuse_

log = logging.getLogger(__name__)


class LoraError(ValueError):
    """LoRA settings that fit no layer or make no sense; the message names the setting and the remedy."""


@dataclass(frozen=True)
class Lora:
    """Which linear layers get factors, and of which rank.

    Attributes:
        rank: width of the factors (the paper's run: 512).
        alpha: the update is scaled by alpha / rank; null means alpha = rank, a scale of 1.
        targets: regular expression that must match a module's full name. A bare `proj_out` would also match the
            output head, so block layers are named with their block.
        dropout: of the factors' input.
        adapter_name: peft's name of the adapter.
    """

    rank: int
    targets: str
    alpha: int | None = None
    dropout: float = 0.0
    adapter_name: str = "default"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise LoraError(f"arch.lora.rank={self.rank} must be at least 1; to train without LoRA set arch.lora=null")
        try:
            re.compile(self.targets)
        except re.error as error:
            raise LoraError(f"arch.lora.targets={self.targets!r} is not a regular expression: {error}") from error

    def attach(self, transformer: FluxTransformer2DModel) -> list[str]:
        """Add trainable float32 factors to `transformer` and return the names of the layers that got them.

        Raises:
            LoraError: if the pattern matches no linear layer.
        """
        matched = [
            name
            for name, layer in transformer.named_modules()
            if isinstance(layer, torch.nn.Linear) and re.fullmatch(self.targets, name)
        ]
        if not matched:
            raise LoraError(
                f"arch.lora.targets={self.targets!r} matches no linear layer of the transformer; its layers are named like "
                "'transformer_blocks.0.attn.to_q' and 'single_transformer_blocks.0.proj_mlp'"
            )
        transformer.add_adapter(
            LoraConfig(
                r=self.rank,
                lora_alpha=self.alpha if self.alpha is not None else self.rank,
                lora_dropout=self.dropout,
                init_lora_weights=True,
                target_modules=self.targets,
            ),
            adapter_name=self.adapter_name,
        )
        for name, parameter in transformer.named_parameters():
            if ".lora_" in name:
                parameter.requires_grad_(True)
                parameter.data = parameter.data.float()
        fuse_(transformer)
        log.info("LoRA of rank %d on %d layers", self.rank, len(matched))
        return matched


def merge(transformer: FluxTransformer2DModel) -> None:
    """Add the factors' updates to the weights below them, for good, and take the factors away; for inference.

    The sum is formed in the base weights' dtype, so merge before any quantisation. Without factors nothing happens.
    """
    if getattr(transformer, "peft_config", None):
        transformer.fuse_lora()
        transformer.unload_lora()
