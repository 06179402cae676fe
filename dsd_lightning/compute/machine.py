"""Chooses what is fast on this machine: precision, compiled blocks, memory that is reused."""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from subprocess import SubprocessError
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

HALF, FULL = "bf16-mixed", "32-true"
"""Values of `trainer.precision`; Lightning's other spellings of them are `_SPELLINGS`."""

_SPELLINGS = (HALF, FULL, "bf16", "32", 32)

AUTO = "auto"
"""Value of `compile`: where compiling works."""


M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Parameters of glibc's `mallopt` (its manual page)."""


def keep_memory(top_pad: int = 256 * 2**20) -> bool:
    """Let the C library keep what PyTorch frees on the CPU, and return whether it does.

    By default large tensors are mapped again each time and faulted in page by page, which on virtual machines can cost more
    than the arithmetic of a small model. Linux with glibc only; elsewhere nothing happens.

    Args:
        top_pad: bytes requested from the system at once.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: top_pad}
    return sum(mallopt(name, value) for name, value in settings.items()) == len(settings)


def fastest_precision() -> str:
    """Return "bf16-mixed" where matrices are multiplied in bfloat16 by hardware built for it, "32-true" elsewhere.

    That is every CUDA device that PyTorch supports bfloat16 on, and CPUs with AMX (Intel Xeon since 2023) or AVX-512 BF16 (AMD
    EPYC since 2022). Other CPUs compute bfloat16 no faster than float32, many of them far slower.
    """
    if torch.cuda.is_available():
        return HALF if torch.cuda.is_bf16_supported(including_emulation=False) else FULL
    return HALF if torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported() else FULL


def require_precision(precision: str | int) -> None:
    """Refuse a `trainer.precision` under which trained values would not be float32, or gradients would be scaled.

    Raises:
        ValueError: naming the value and the remedy.
    """
    if precision not in _SPELLINGS:
        raise ValueError(
            f"trainer.precision={precision}: what is trained stays in float32, and the base in base.model.dtype; choose "
            f"{HALF} (products in bfloat16) or {FULL}"
        )


COMPILED_GRAPHS = 64
"""Graphs kept of one kind of block: one for each input shape, with and without gradients. Beyond PyTorch's own limit of 8,
which buckets of several aspect ratios reach, blocks would run as written."""


def compile_blocks(blocks: Iterable[nn.Module], wanted: bool | str) -> bool:
    """Compile modules one by one, in place, and return whether that was done.

    Args:
        blocks: modules whose input shapes do not change from step to step.
        wanted: true, false, or "auto": if a first small kernel can be built here. On a CPU that takes a C++ compiler and
            Python's headers.

    Raises:
        ValueError: if `wanted` is something else.
    """
    if wanted not in (True, False, AUTO):
        raise ValueError(f"compile={wanted!r} is unknown; choose true, false or {AUTO}")
    if not wanted or (wanted == AUTO and not _works(torch.compile)):
        return False
    torch._dynamo.config.recompile_limit = max(COMPILED_GRAPHS, torch._dynamo.config.recompile_limit)
    for block in blocks:
        block.compile(dynamic=False)
    return True


def _works(compiler: Callable[..., Callable[[Tensor], Tensor]]) -> bool:
    """Return whether a kernel can be built and run; if not, say why, and what that means."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        compiler(lambda values: (values + 1).sin())(torch.zeros(8, device=device))
    except (RuntimeError, OSError, ImportError, SubprocessError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        log.warning(
            "compile=auto: nothing can be compiled here, so that training takes up to twice as long (%s)", reason
        )
        return False
    return True


def uncompiled() -> AbstractContextManager[object]:
    """Return a context in which compiled modules run as written.

    For calls whose shapes differ from those of training: each new shape would be compiled again, which takes longer than
    validation or sampling itself.
    """
    return torch.compiler.set_stance("force_eager")


@contextmanager
def compiled_as_in_steps(model: nn.Module, batch: int) -> Iterator[None]:
    """Have calls of `model` on `batch` samples, without gradients, run what training steps have compiled; others, as written.

    A block that is compiled for a training step keeps activations for the backward pass, and is compiled again for calls
    without gradients. So these calls keep them too; they are freed when the call returns.

    Args:
        model: its first input has the samples along its first axis, and its output is a tensor.
        batch: samples of a training step on this device.
    """

    def begin(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        fits = inputs[0].shape[0] == batch
        torch.compiler.set_stance("default" if fits else "force_eager")
        torch.set_grad_enabled(fits)

    def end(_: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> Any:
        torch.set_grad_enabled(False)
        return output.detach() if isinstance(output, Tensor) else output

    hooks = [model.register_forward_pre_hook(begin), model.register_forward_hook(end, always_call=True)]
    try:
        with torch.no_grad(), uncompiled():
            yield
    finally:
        for hook in hooks:
            hook.remove()
