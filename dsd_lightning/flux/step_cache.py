"""Sets up diffusers' step caches: sampling steps that reuse what earlier steps of the same image computed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

FIRST_BLOCK, TAYLOR_SEER, TAYLOR_SEER_LITE = "first_block", "taylor_seer", "taylor_seer_lite"

DEFAULTS = {FIRST_BLOCK: 0.05, TAYLOR_SEER: 5.0, TAYLOR_SEER_LITE: 5.0}
"""Value of each kind that is named without one: diffusers' own."""

FULL_STEPS = 3
"""Steps at the start that TaylorSeer computes in full, to have something to extrapolate from."""


class StepCacheError(ValueError):
    """A step cache that does not exist or that the model cannot use; the message names the remedy."""


@dataclass(frozen=True)
class StepCache:
    """One of diffusers' step caches; all of them change the image a little, and more where they save more.

    Attributes:
        kind: `first_block` computes a step's first block, and skips the others if that block's residual changed little
            (ParaAttention's First Block Cache). `taylor_seer` extrapolates every block's attention linearly from earlier
            steps, `taylor_seer_lite` the transformer's output alone, for which no block is run (TaylorSeer, arXiv
            2503.06923).
        value: for `first_block` the relative change, > 0, below which blocks are skipped; for the others the steps from one
            full computation to the next, >= 2.
    """

    kind: str
    value: float

    def __post_init__(self) -> None:
        if self.kind not in DEFAULTS:
            raise StepCacheError(f"step_cache={self.kind} is unknown; choose one of {', '.join(DEFAULTS)}")
        if self.kind == FIRST_BLOCK and not (math.isfinite(self.value) and self.value > 0):
            raise StepCacheError(f"step_cache={self}: the threshold must be a number above 0, such as 0.05")
        if self.kind != FIRST_BLOCK and not (self.value >= 2 and self.value.is_integer()):
            raise StepCacheError(f"step_cache={self}: the interval must be a whole number of at least 2 steps")

    @classmethod
    def parse(cls, text: str) -> StepCache:
        """Return the cache that a text such as `first_block` or `first_block:0.1` names.

        Raises:
            StepCacheError: an unknown kind, or a value out of range.
        """
        kind, colon, value = text.partition(":")
        if not colon:
            return cls(kind, DEFAULTS.get(kind, 0.0))
        try:
            return cls(kind, float(value))
        except ValueError as error:
            if isinstance(error, StepCacheError):
                raise
            raise StepCacheError(f"step_cache={text}: {value!r} is no number; give {kind}:NUMBER, or {kind}") from error

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        return f"{self.kind}:{self.value:g}"

    @property
    def decides_by_content(self) -> bool:
        """Whether what is skipped depends on the image, so that the images of a batch must be computed one by one."""
        return self.kind == FIRST_BLOCK

    def require_compilable(self) -> None:
        """Refuse to be used beside compiled blocks where the cache works inside of them.

        Raises:
            StepCacheError: naming the remedy.
        """
        if self.kind == TAYLOR_SEER:
            raise StepCacheError(
                f"step_cache={self} works inside of the blocks, which then cannot be compiled: leave one of the two out, or "
                f"take {FIRST_BLOCK} or {TAYLOR_SEER_LITE}"
            )

    def enable(self, transformer: FluxTransformer2DModel) -> None:
        """Hook the cache into the blocks of `transformer`, which has none."""
        from diffusers.hooks import FirstBlockCacheConfig, TaylorSeerCacheConfig  # here, for --help to be quick

        if self.kind == FIRST_BLOCK:
            transformer.enable_cache(FirstBlockCacheConfig(threshold=self.value))
            return
        config = TaylorSeerCacheConfig(
            cache_interval=int(self.value),
            disable_cache_before_step=FULL_STEPS,
            max_order=1,
            # Not `transformer.dtype`, which is that of factors where there are any.
            taylor_factors_dtype=transformer.context_embedder.weight.dtype,
            use_lite_mode=self.kind == TAYLOR_SEER_LITE,
        )
        transformer.enable_cache(config)


@contextmanager
def forgetting(transformer: FluxTransformer2DModel) -> Iterator[None]:
    """Start with an empty cache, and leave none of its tensors behind, however it ends."""
    try:
        transformer._reset_stateful_cache()
        yield
    finally:
        transformer._reset_stateful_cache()
