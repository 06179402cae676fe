"""Settings and fixtures of all tests: shapes are checked at each call, no network is used, two CPU cores are shared."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Read when the libraries are first imported, here and in the commands that tests start.
# MKL_CBWR: matrix products round alike on every CPU, and so as in the reference numbers.
os.environ.update(MKL_CBWR="COMPATIBLE")
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", WANDB_MODE="offline", WANDB_SILENT="true")
if "PYTEST_XDIST_WORKER" in os.environ:  # several workers that each used all cores would slow one another down
    os.environ["OMP_NUM_THREADS"] = "1"

import jaxtyping

ARRAY = re.compile(r"\b(B?Float|U?Int|Bool)\d*\[")
"""An annotation that gives the shape of an array."""

check_shapes = jaxtyping.jaxtyped


def jaxtyped(*, typechecker: Any) -> Callable[[Any], Any]:
    """Return the decorator of the hook: it checks the shapes in each call of what gives any in its annotations.

    Plain types are mypy's. With all functions checked, tests/conf/test_choices.py took 1.6 times the CPU time that it takes
    with none: whatever is defined inside a function is decorated again, and compiled twice, at each call of that function.
    """

    def decorate(of: Any) -> Any:
        function = of.__init__ if isinstance(of, type) else getattr(of, "fget", None) or getattr(of, "__func__", of)
        gives_shapes = any(ARRAY.search(str(each)) for each in getattr(function, "__annotations__", {}).values())
        return check_shapes(of, typechecker=typechecker) if gives_shapes else of

    return decorate


jaxtyping.jaxtyped = jaxtyped
jaxtyping.install_import_hook(["dsd_lightning"], "beartype.beartype")

import hypothesis
import pytest
import torch

TINY_FLUX = Path(__file__).parents[1] / "assets" / "tiny-flux"
IMAGE_ENCODER = Path(__file__).parents[1] / "assets" / "tiny-image-encoder"

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))

# The same examples in every run: a failure of CI is due to the change, never to chance or a slow machine.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


TRAINING = ("test_choices.py", "test_every_architecture.py", "test_flux_dev.py", "test_flux_bases.py")
"""Files that build every architecture of `conf/arch/` as it is configured."""


def of_base(item: pytest.Item) -> str:
    """Return the test's parameters, with the architecture first."""
    return item.nodeid[item.nodeid.find("[") :].replace("[arch-", "[")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with slow tests first; skip tests marked `gpu` without a CUDA device, `image_encoder` without that asset.

    A slow test that started last would leave one worker of two waiting for the other.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    reasons = {}
    if not torch.cuda.is_available():
        reasons["gpu"] = "needs a CUDA device"
    if not IMAGE_ENCODER.is_dir():
        reasons["image_encoder"] = f"{IMAGE_ENCODER.name}: python -m dsd_lightning.pretraining.image_encoder makes it"
    for item in items:
        for mark, reason in reasons.items():
            reads_encoder = mark == "image_encoder" and item.path.name in TRAINING and "[ip_adapter" in of_base(item)
            if item.get_closest_marker(mark) or reads_encoder:
                item.add_marker(pytest.mark.skip(reason=reason))


def write_base(folder: Path, guidance_embeds: bool, parts: tuple[str, ...]) -> Path:
    """Write a base in the diffusers layout: the shipped `parts`, and a transformer of two random blocks."""
    from diffusers import FluxTransformer2DModel  # here, because most tests need no base

    folder.mkdir()
    for part in (*parts, "model_index.json"):
        (folder / part).symlink_to(TINY_FLUX / part)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = FluxTransformer2DModel(
            in_channels=24,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=64,
            pooled_projection_dim=64,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(4, 6, 6),
        )
        transformer.save_pretrained(folder / "transformer")
    return folder


ENCODERS = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return FLUX.1-dev's twin: a base with a guidance embedding and a shift by resolution."""
    return write_base(tmp_path_factory.mktemp("base") / "tiny_base", True, (*ENCODERS, "scheduler"))


@pytest.fixture(scope="session")
def tiny_schnell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return FLUX.1-schnell's twin: a base without a guidance embedding and without a shift."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    folder = write_base(tmp_path_factory.mktemp("base") / "tiny_schnell", False, ENCODERS)
    FlowMatchEulerDiscreteScheduler(shift=1.0).save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture(scope="session")
def photograph_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return shards of a few real photographs."""
    from support.data.data_sources import write_photographs  # here, because most tests need no photographs

    return write_photographs(tmp_path_factory.mktemp("photographs") / "shards")
