"""Appends clean reference tokens to the image sequence, which every block attends to.

Appended to the noisy tokens with shifted position ids, as FLUX.1 Kontext (arXiv 2506.15742) and OminiControl (arXiv
2411.15098) do; or in a pass of their own, whose keys and values the noisy tokens' pass attends to. The second is computed
once an image, because nothing in it changes from step to step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from jaxtyping import Float
from torch import Tensor

from dsd_lightning.architectures.base import State
from dsd_lightning.architectures.latent_reference import LatentReference
from dsd_lightning.flux import tokens
from dsd_lightning.flux.lora import Lora
from dsd_lightning.flux.reference_attention import KeysAndValues, attach_reference_attention
from dsd_lightning.pairs import Condition, TextEmbeddings


class ReferenceTokens(LatentReference):
    """The reference's tokens are embedded as the noisy ones are. Adds no weights: what it trains is LoRA on the base.

    Args:
        transformer: the base.
        lora: factors on the base, at work on all tokens.
        id_shift: added to the reference tokens' position ids [frame, row, column], in tokens. The reference may be of
            another size than the target.
        separate_pass: run the reference's tokens through the transformer alone, and let the noisy tokens attend to their
            keys and values. That pass sees neither the noisy tokens nor the text, and its timestep is fixed.
        reference_timestep: of the separate pass, in [0, 1]; 0 is clean. (Appended tokens have the noisy ones' timestep.)
    """

    name = "reference_tokens"

    def __init__(
        self,
        transformer: FluxTransformer2DModel,
        lora: Lora | None = None,
        id_shift: Sequence[int] = (1, 0, 0),
        separate_pass: bool = False,
        reference_timestep: float = 0.0,
    ) -> None:
        super().__init__(transformer)
        if len(id_shift) != 3:
            raise ValueError(f"arch.id_shift={list(id_shift)}: give three numbers of tokens, [frame, row, column]")
        if not 0 <= reference_timestep <= 1:
            raise ValueError(f"arch.reference_timestep={reference_timestep}: give a timestep in [0, 1]; 0 is clean")
        self.id_shift = [int(each) for each in id_shift]
        self.separate_pass, self.reference_timestep = separate_pass, reference_timestep
        if self.id_shift == [1, 0, 0] and not separate_pass:
            self.stock_pipeline = "FluxKontextPipeline"
        if separate_pass:
            attach_reference_attention(transformer)
        self._finish(lora)

    def settings(self) -> dict[str, Any]:
        """Return the shift of the reference's position ids, and whether the reference has a separate pass."""
        own_pass = {"reference_timestep": float(self.reference_timestep)} if self.separate_pass else {}
        return {"id_shift": self.id_shift, "separate_pass": self.separate_pass} | own_pass

    def require_shardable(self) -> None:
        """Refuse a pass of its own: its gradients enter the blocks by their keys and values, past the blocks' outputs.

        Raises:
            ValueError: naming the remedy.
        """
        if self.separate_pass:
            raise ValueError(
                "arch.separate_pass=true cannot be trained on a sharded model: choose trainer/strategy=ddp, or "
                "arch.separate_pass=false"
            )

    def prepare(self, condition: Condition) -> State:
        """Return the reference's keys and values, where it has a pass of its own; gradients flow through them."""
        return {"kept": self._reference_pass(condition)} if self.separate_pass else {}

    def _predict(
        self,
        packed: Float[Tensor, "b n d"],
        image_ids: Float[Tensor, "n 3"],
        timestep: Float[Tensor, " b"],
        condition: Condition,
        state: State | None,
    ) -> Float[Tensor, "b n d"]:
        """Run the base on the noisy tokens, which attend to the reference's."""
        if self.separate_pass:
            kept = state["kept"] if state else self._reference_pass(condition)
            return self._transform(packed, timestep, condition, image_ids, joint_attention_kwargs={"kept": kept})
        reference, reference_ids = self._reference(condition)
        sequence = torch.cat([packed, reference.to(packed.dtype)], dim=1)
        predicted = self._transform(sequence, timestep, condition, torch.cat([image_ids, reference_ids]))
        return predicted[:, : packed.shape[1]]

    def _reference(self, condition: Condition) -> tuple[Float[Tensor, "b m d"], Float[Tensor, "m 3"]]:
        latents = condition.reference["latents"]
        ids = tokens.image_ids(*latents.shape[-2:], device=latents.device)
        return tokens.pack(latents), ids + torch.tensor(self.id_shift, device=latents.device, dtype=ids.dtype)

    def _reference_pass(self, condition: Condition) -> KeysAndValues:
        """Return the keys and values of every attention module over the reference's tokens alone.

        The pass has no text: a sequence of no tokens, and zeros for the pooled vector. Of the condition it sees the
        reference, and the guidance value that all steps have in common.
        """
        packed, ids = self._reference(condition)
        text = condition.text
        no_text = TextEmbeddings(text.sequence[:, :0], torch.zeros_like(text.pooled))
        timestep = torch.full_like(condition.guidance, self.reference_timestep)
        recorded: dict[int, tuple[Tensor, Tensor]] = {}
        self._transform(
            packed, timestep, replace(condition, text=no_text), ids, joint_attention_kwargs={"record": recorded}
        )
        return recorded
