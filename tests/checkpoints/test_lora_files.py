"""Several LoRA files with weights are the sum of their updates, over official weights and over a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.exported_run import LORA as RANK
from support.exported_run import make_run
from support.models.golden_pipeline import BASE, LORA, SIDE, TRANSFORMER, draw
from support.models.golden_pipeline import official as golden
from torch import Tensor

from dsd_lightning.checkpoints.lora_files import LoraFile, add_updates
from dsd_lightning.checkpoints.weight_files import OfficialWeightsError
from dsd_lightning.pipeline import TwoFramePipeline
from dsd_lightning.randomness import normal

CLOSE = {"rtol": 0, "atol": 1e-4}


def load(*lora: object, **options: object) -> Tensor:
    pipeline = TwoFramePipeline.load(
        BASE, TRANSFORMER, list(lora), dtype=torch.float32, default_size=SIDE, device="cpu", **options
    )
    pipeline.set_progress_bar_config(disable=True)
    latents: Tensor = draw(pipeline)
    return latents


@pytest.mark.parametrize("merge", [True, False])
def test_weights_share_a_files_update_out(merge: bool) -> None:
    expected = draw(golden("merged"))
    for shares in ((0.25, 0.75), (2.0, -1.0), (0.5, 0.25, 0.25)):
        torch.testing.assert_close(load(*(f"{LORA}:{share}" for share in shares), merge_lora=merge), expected, **CLOSE)
    assert (load(LORA, f"{LORA}:0.5") - expected).abs().max() > 1e-3


def test_a_lora_is_added_to_a_run(tiny_base: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tiny_base, "arch=parallel", *RANK)
    layers = ("x_embedder", "c_embedder", "transformer_blocks.0.attn.to_q")
    transformer = run.architecture.transformer
    tensors = {}
    for name in layers:
        layer = transformer.get_submodule(f"x_embedder.{name}" if name.endswith("_embedder") else name)
        tensors[f"transformer.{name}.lora_A.weight"] = normal((2, layer.in_features), name, "a")
        tensors[f"transformer.{name}.lora_B.weight"] = normal((layer.out_features, 2), name, "b")
    save_file(tensors, tmp_path / "extra.safetensors")

    def weight(name: str, *lora: str) -> Tensor:
        loaded = TwoFramePipeline.from_run(run.folder, lora=list(lora), device="cpu")
        value: Tensor = loaded.transformer.transformer.get_submodule(name).weight
        return value

    for name in layers:
        ours = f"x_embedder.{name}" if name.endswith("_embedder") else name
        update = tensors[f"transformer.{name}.lora_B.weight"] @ tensors[f"transformer.{name}.lora_A.weight"]
        expected = weight(ours) + 0.5 * update
        torch.testing.assert_close(weight(ours, f"{tmp_path / 'extra.safetensors'}:0.5"), expected, rtol=0, atol=1e-5)


def test_a_lora_of_another_model_is_refused_before_anything_is_added(tmp_path: Path) -> None:
    factors = load_file(LORA)
    factors |= {f"transformer.unknown.lora_{side}.weight": torch.zeros(4, 4) for side in "AB"}
    save_file(factors, tmp_path / "other.safetensors")
    transformer = golden("none").transformer.transformer
    before = transformer.proj_out.weight.clone()
    with pytest.raises(OfficialWeightsError, match=r"other\.safetensors has factors for 'unknown'"):
        add_updates(transformer, LoraFile(tmp_path / "other.safetensors"))
    assert torch.equal(transformer.proj_out.weight, before)
