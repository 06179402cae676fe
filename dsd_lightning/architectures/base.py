"""The contract that every architecture keeps, and what all of them share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, ClassVar

import torch
from diffusers import ConfigMixin, FluxTransformer2DModel, ModelMixin
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dsd_lightning.flux import tokens
from dsd_lightning.flux.codec import Codec
from dsd_lightning.flux.lora import Lora
from dsd_lightning.flux.norms import keep_dtype_
from dsd_lightning.flux.step_cache import StepCache, forgetting
from dsd_lightning.pairs import TARGET, Condition, Encoded
from dsd_lightning.rectified_flow import velocity

State = Mapping[str, Any]
"""What `prepare` computes once an image: image tokens, reference keys and values, or nothing."""


class Architecture(ModelMixin, ConfigMixin):
    """Where does the reference enter the transformer?

    A subclass sets `name` and `frames` (the target last), builds its parts in `__init__` after `super().__init__` and
    ends it with `self._finish(lora)`, so that factors are attached after any copy of the base's blocks was taken.
    """

    name: ClassVar[str]
    frames: ClassVar[tuple[str, ...]]
    config_name = "config.json"
    guidance_range: tuple[float, float] | None = None
    """Lowest and highest guidance scale that training draws; None: it has one scale."""
    stock_pipeline: str | None = None
    """diffusers' pipeline that computes the same from the transformer alone, once what was trained is merged into it."""
    transformer: FluxTransformer2DModel
    step_cache: StepCache | None = None
    """What sampling reuses from step to step; see `use_step_cache`."""

    def __init__(self, transformer: FluxTransformer2DModel, train_base: bool = False) -> None:
        super().__init__()
        self.transformer = transformer.requires_grad_(False)
        self.train_base = train_base
        self.lora: Lora | None = None
        self.official_base = False  # whether official weights took the place of the base's own

    def _finish(self, lora: Lora | None) -> None:
        if lora is not None and self.train_base:
            raise ValueError("train_base=true trains the base itself; set arch.lora=null, or train_base=false for LoRA")
        if self.train_base:
            self.transformer.requires_grad_(True)
        if lora is not None:
            lora.attach(self.transformer)
            self.lora = lora
        keep_dtype_(self.transformer)
        for module in self.trained_whole():
            module.requires_grad_(True)

    def trained_whole(self) -> Iterable[nn.Module]:
        """Yield the modules that this architecture adds and trains in full; none by default."""
        return ()

    def settings(self) -> Mapping[str, Any]:
        """Return the settings, by their names in `arch`, under which trained weights mean something; none by default.

        Plain types only. Checkpoints hold them, and weights that were trained with other ones are refused.
        """
        return {}

    # --- Encoding: pixels to latents, once a pair.

    def required(self, reference: Float[Tensor, "b 3 h w"] | None) -> Float[Tensor, "b 3 h w"]:
        """Return `reference`, for architectures that cannot do without one.

        Raises:
            ValueError: if it is None, naming the remedy.
        """
        if reference is None:
            raise ValueError(
                f"arch={self.name} needs a reference image in every pair; data without one trains arch=text_only"
            )
        return reference

    @abstractmethod
    def encode_reference(self, reference: Float[Tensor, "b 3 h w"] | None, codec: Codec) -> Mapping[str, Tensor]:
        """Return the reference inputs by name; all that sampling needs of the reference image."""

    @abstractmethod
    def encode_clean(
        self, reference: Float[Tensor, "b 3 h w"] | None, target: Float[Tensor, "b 3 h w"], codec: Codec
    ) -> Float[Tensor, "b c lh lw"]:
        """Return the clean canvas: the latents of what the architecture learns to generate."""

    def encode(
        self, reference: Float[Tensor, "b 3 h w"] | None, target: Float[Tensor, "b 3 h w"], codec: Codec
    ) -> Encoded:
        """Return the clean canvas and the reference inputs of a batch of pairs (cacheable)."""
        return Encoded(self.encode_clean(reference, target, codec), self.encode_reference(reference, codec))

    def encoding_key(self, codec: Codec) -> str:
        """Return what this architecture's cached encodings depend on; caches under another key are stale."""
        return f"{self.name}-{codec.fingerprint()}"

    # --- The canvas: which frames it holds, and how.

    @abstractmethod
    def join(self, frames: Mapping[str, Float[Tensor, "b c h w"]]) -> Float[Tensor, "b c ch cw"]:
        """Return the canvas of the named frames (each of one frame's latent size)."""

    @abstractmethod
    def split(self, canvas: Float[Tensor, "b c h w"]) -> dict[str, Float[Tensor, "b c fh fw"]]:
        """Return the named frames of a canvas; the inverse of `join`."""

    def image_tokens(self, canvas: Float[Tensor, "b c h w"]) -> int:
        """Return the number of image tokens of the full canvas; the resolution shift depends on it."""
        return canvas.shape[-1] * canvas.shape[-2] // 4

    # --- Conditioning.

    @abstractmethod
    def null_reference(self, reference: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return reference inputs of the same shapes for "no reference": the one definition of it."""

    def drop_reference(self, condition: Condition, keep: Bool[Tensor, " b"]) -> Condition:
        """Return `condition` with the null reference where `keep` is False."""
        null = self.null_reference(condition.reference)
        kept = {
            name: torch.where(keep.view(-1, *[1] * (value.ndim - 1)), value, null[name])
            for name, value in condition.reference.items()
        }
        return replace(condition, reference=kept)

    def prepare(self, condition: Condition) -> State:
        """Return what can be computed once an image rather than at every step; nothing by default."""
        return {}

    # --- Prediction.

    def forward(
        self,
        noisy: Float[Tensor, "b c h w"],
        timestep: Float[Tensor, " b"],
        condition: Condition,
        state: State | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Return the predicted velocity of the canvas."""
        height, width = noisy.shape[-2:]
        ids = tokens.image_ids(height, width, device=noisy.device)
        return tokens.unpack(self._predict(tokens.pack(noisy), ids, timestep, condition, state), height, width)

    @abstractmethod
    def _predict(
        self,
        packed: Float[Tensor, "b n d"],
        image_ids: Float[Tensor, "n 3"],
        timestep: Float[Tensor, " b"],
        condition: Condition,
        state: State | None,
    ) -> Float[Tensor, "b n d"]:
        """Return the predicted velocity of the canvas's tokens.

        Args:
            packed: the noisy canvas, a token for each 2 x 2 latents.
            image_ids: the tokens' position ids [frame, row, column].
            timestep: in [0, 1]; 1 is noise.
            condition: text, guidance and the reference inputs.
            state: what `prepare` returned; None where it was not called.
        """

    def _transform(
        self,
        image_tokens: Float[Tensor, "b n d"],
        timestep: Float[Tensor, " b"],
        condition: Condition,
        image_ids: Float[Tensor, "n 3"],
        **extra: Any,
    ) -> Float[Tensor, "b n e"]:
        """Run the transformer on packed tokens under the condition's text and guidance."""
        # Not `transformer.dtype`: float32 factors would answer for a bfloat16 base.
        dtype = self.transformer.context_embedder.weight.dtype
        text = condition.text
        with_guidance = bool(self.transformer.config.guidance_embeds)
        output: Tensor = self.transformer(
            hidden_states=image_tokens.to(dtype),
            encoder_hidden_states=text.sequence.to(dtype),
            pooled_projections=text.pooled.to(dtype),
            timestep=timestep,
            img_ids=image_ids,
            txt_ids=tokens.text_ids(text.sequence.shape[1], device=image_tokens.device),
            guidance=condition.guidance if with_guidance else None,
            return_dict=False,
            **extra,
        )[0]
        return output

    def target_velocity(
        self,
        clean: Float[Tensor, "b c h w"],
        noise: Float[Tensor, "b c h w"],
        noisy: Float[Tensor, "b c h w"],
        timestep: Float[Tensor, " b"],
        condition: Condition,
    ) -> Float[Tensor, "b c h w"]:
        """Return the velocity that training asks for: the straight path's from `clean` to `noise`."""
        return velocity(clean, noise)

    # --- Reuse from step to step, in sampling.

    def require_step_cache(self, cache: StepCache) -> None:
        """Refuse, with a StepCacheError that names the remedy, a cache under which the prediction would be wrong."""

    def use_step_cache(self, cache: StepCache | None) -> None:
        """Let later calls of `sample` skip what `cache` can tell from earlier steps; with None, compute everything again.

        Raises:
            StepCacheError: a cache that this architecture cannot use.
        """
        if cache is not None:
            self.require_step_cache(cache)
        if self.transformer.is_cache_enabled:
            self.transformer.disable_cache()
        if cache is not None:
            cache.enable(self.transformer)
        self.step_cache = cache

    def one_call(self) -> AbstractContextManager[None]:
        """Return a context for one call of `sample`: the step cache, where there is one, is empty before and after."""
        return nullcontext() if self.step_cache is None else forgetting(self.transformer)

    def one_pass(self, *name: object) -> AbstractContextManager[None]:
        """Return a context for a pass that reuses what earlier ones of the same name have left in the step cache."""
        if self.step_cache is None:
            return nullcontext()
        context: AbstractContextManager[None] = self.transformer.cache_context(repr(name))
        return context

    # --- What is trained, and how the work may be sharded.

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters that a checkpoint holds, by name."""
        return ((name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad)

    def shard_units(self) -> Iterable[nn.Module]:
        """Yield the modules that are sharded, recomputed and compiled one by one: the transformer's blocks."""
        yield from self.transformer.transformer_blocks
        yield from self.transformer.single_transformer_blocks

    def require_shardable(self) -> None:
        """Refuse, with a ValueError that names the remedy, what the blocks cannot compute when all-gathered one by one."""


class OneFrame(Architecture):
    """An architecture whose canvas is the target alone."""

    frames = (TARGET,)

    def encode_clean(
        self, reference: Float[Tensor, "b 3 h w"] | None, target: Float[Tensor, "b 3 h w"], codec: Codec
    ) -> Float[Tensor, "b c lh lw"]:
        """Return the target's latents."""
        return codec.encode(target)

    def join(self, frames: Mapping[str, Float[Tensor, "b c h w"]]) -> Float[Tensor, "b c ch cw"]:
        """Return the target frame."""
        return frames[TARGET]

    def split(self, canvas: Float[Tensor, "b c h w"]) -> dict[str, Float[Tensor, "b c fh fw"]]:
        """Return the canvas as the target frame."""
        return {TARGET: canvas}
