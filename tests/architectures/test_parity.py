"""The parallel architecture computes what the official inference code computes, from the files its users download."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsd_lightning.architectures.parallel import Parallel
from dsd_lightning.checkpoints.adapter import load_adapter, save_adapter
from dsd_lightning.checkpoints.official import LORA_FILE, OfficialWeightsError, load_official
from dsd_lightning.flux import tokens
from dsd_lightning.flux.lora import Lora
from dsd_lightning.pairs import Condition, TextEmbeddings

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
FOLDER, LORA = GOLDEN / "tiny_official" / "transformer", GOLDEN / "tiny_official" / LORA_FILE
WEIGHTS = "diffusion_pytorch_model.safetensors"
# Cloned, because the alignment of memory-mapped tensors alone shifts results by 2e-6.
CASE = {name: value.clone() for name, value in load_file(GOLDEN / "transformer_case.safetensors").items()}
FACTS = json.loads((GOLDEN / "transformer_case.json").read_text())
INPUT = {name.removeprefix("input/"): value for name, value in CASE.items() if name.startswith("input/")}
CONDITION = Condition(
    TextEmbeddings(INPUT["encoder_hidden_states"], INPUT["pooled_projections"]), INPUT["guidance"], reference={}
)


def build(dtype: torch.dtype = torch.float32, lora: Lora | None = None) -> Parallel:
    config = json.loads((FOLDER / "config.json").read_text())
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    return Parallel(FluxTransformer2DModel(**config).to(dtype), lora)


def official(lora: Path | None = None, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Parallel:
    architecture = build(dtype)
    load_official(architecture, FOLDER, lora, scale)
    return architecture


@torch.no_grad()
def predict(architecture: Parallel, reference: Tensor = INPUT["condition_hidden_states"]) -> Tensor:
    return architecture.predict_tokens(
        INPUT["hidden_states"], reference, INPUT["timestep"], CONDITION, INPUT["img_ids"]
    ).float()


def assert_equals(output: Tensor, name: str) -> None:
    torch.testing.assert_close(output, CASE[f"expected/{name}"], rtol=0, atol=2e-5)


def test_the_golden_files_are_those_that_their_provenance_names() -> None:
    listed = [line.split() for line in (GOLDEN / "PROVENANCE.md").read_text().splitlines() if line.startswith("    ")]
    files = [file for file in GOLDEN.rglob("*") if file.is_file() and file.name != "PROVENANCE.md"]
    sums = {file.relative_to(GOLDEN).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert {name: digest for digest, name in listed} == sums


# --- The metrics.


def test_output() -> None:
    assert_equals(predict(official()), "output")


def test_zero_condition_still_adds_the_bias() -> None:
    assert_equals(predict(official(), torch.zeros_like(INPUT["condition_hidden_states"])), "output_zero_condition")


@torch.no_grad()
def test_other_position_ids() -> None:
    # Text ids other than zero are for the transformer alone to take: no canvas of ours asks for them.
    output = official().transformer(
        hidden_states=torch.cat([INPUT["hidden_states"], INPUT["condition_hidden_states"]], dim=-1),
        img_ids=INPUT["alt_img_ids"],
        txt_ids=INPUT["alt_txt_ids"],
        return_dict=False,
        **{name: INPUT[name] for name in ("encoder_hidden_states", "pooled_projections", "timestep", "guidance")},
    )[0]
    assert_equals(output, "output_alt_ids")


@pytest.mark.parametrize(("scale", "name"), [(1.0, "output_lora"), (0.5, "output_lora_scale_0.5")])
def test_lora(scale: float, name: str) -> None:
    assert_equals(predict(official(LORA, scale)), name)


@torch.no_grad()
def test_a_canvas_of_latents() -> None:
    # The same through the path that training and sampling take: latents packed to tokens, ids from the canvas's size.
    height, width = (2 * side for side in FACTS["token_grid"])
    noisy, reference = (tokens.unpack(INPUT[f"{kind}hidden_states"], height, width) for kind in ("", "condition_"))
    condition = Condition(CONDITION.text, CONDITION.guidance, {"canvas": reference})
    output = official()(noisy, INPUT["timestep"], condition)
    assert_equals(tokens.pack(output), "output")


def test_bfloat16() -> None:
    """A bfloat16 base under a float32 `c_embedder` (official: bfloat16 too) stays within bfloat16's own resolution.

    Measured: 0.047 at most and 0.0086 in the mean, for outputs up to 5.9; between 4 and 8 bfloat16 moves in steps of 0.031.
    Four steps are allowed, for CPUs differ in how they accumulate. Float32 is 2.4 away, and so out of reach: diffusers rounds
    the timestep and guidance to bfloat16 *after* multiplying them by 1000.
    """
    expected = CASE["expected/output_bf16"].float()
    difference = (predict(official(dtype=torch.bfloat16)) - expected).abs()
    assert difference.max() <= 0.125
    assert difference.mean() <= 0.02
    assert (predict(official()) - expected).abs().max() > 1


# --- What was loaded, and where to.


def test_factors_stand_on_exactly_the_layers_that_the_file_names() -> None:
    architecture = official(LORA)
    named = {name for name, layer in architecture.transformer.named_modules() if hasattr(layer, "lora_A")}
    assert named == set(FACTS["lora"]["tuned_modules"])
    assert architecture.lora is not None
    assert architecture.lora.rank == FACTS["lora"]["rank"]
    trained = [name for name, _ in architecture.trainable()]
    assert len(trained) == FACTS["lora"]["n_file_keys"] + 2  # and c_embedder's weight and bias
    assert all(".lora_" in name or "c_embedder" in name for name in trained)


def test_loaded_factors_make_a_checkpoint_of_ours(tmp_path: Path) -> None:
    loaded = official(LORA)
    save_adapter(tmp_path, loaded)
    ours = build(lora=loaded.lora)
    load_official(ours, FOLDER)  # the base below factors of its own
    load_adapter(tmp_path, ours)
    assert_equals(predict(ours), "output_lora")


def test_stray_factors_of_the_released_transformer_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stray = {"single_transformer_blocks.0.attn.to_q.lora_A.default.weight": torch.ones(4, 32)}
    architecture = build()
    with caplog.at_level(logging.INFO):
        load_official(architecture, changed_transformer(tmp_path, lambda tensors: tensors | stray))
    assert "1 stray" in caplog.text
    assert_equals(predict(architecture), "output")


# --- What is refused.


def changed_transformer(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    shutil.copy(FOLDER / "config.json", folder)
    save_file(change(dict(load_file(FOLDER / WEIGHTS))), folder / WEIGHTS)
    return folder


def without(*names: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {name: value for name, value in tensors.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("c_embedder.weight", "c_embedder.bias"), "'c_embedder.weight'.*plain FLUX"),
        (without("proj_out.bias"), "lacks 1 .*'proj_out.bias'"),
        (lambda tensors: tensors | {"pulid.weight": torch.zeros(1)}, "'pulid.weight'.*does not have"),
        (lambda tensors: tensors | {"proj_out.bias": torch.zeros(3)}, r"'proj_out.bias' is \(3,\)"),
    ],
)
def test_transformers_that_do_not_fit_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str
) -> None:
    with pytest.raises(OfficialWeightsError, match=message):
        load_official(build(), changed_transformer(tmp_path, change))


def test_another_configuration_is_refused_although_its_shapes_agree(tmp_path: Path) -> None:
    config = json.loads((FOLDER / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"axes_dims_rope": [6, 6, 4]}))
    shutil.copy(FOLDER / WEIGHTS, tmp_path)
    with pytest.raises(OfficialWeightsError, match=r"axes_dims_rope=\[6, 6, 4\].*\[4, 6, 6\]"):
        load_official(build(), tmp_path)


def renamed(old: str, new: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {name.replace(old, new): value for name, value in tensors.items()}


HEAD_A, HEAD_B = (f"transformer.proj_out.lora_{side}.weight" for side in "AB")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed("transformer.", ""), "must begin with 'transformer.'"),
        (
            lambda tensors: tensors | {"transformer.proj_out.alpha": torch.tensor(4.0)},
            "'transformer.proj_out.alpha'.*no alpha",
        ),
        (renamed(".lora_A.weight", ".lora_down.weight"), "lora_down.weight'; the official layout"),
        (renamed(".to_q.", ".to_queries."), "to_queries'.*does not have"),
        (without(HEAD_B), "only one of lora_A and lora_B for 'proj_out'"),
        (
            lambda tensors: tensors | {HEAD_A: torch.zeros(4, 33)},
            r"'proj_out' make \(16, 33\), but the layer has \(16, 32\)",
        ),
        (lambda tensors: tensors | {HEAD_A: torch.zeros(5, 32), HEAD_B: torch.zeros(16, 5)}, r"one rank.*\[4, 5\]"),
        (lambda tensors: {}, "none"),
    ],
)
def test_factors_that_do_not_fit_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str
) -> None:
    save_file(change(dict(load_file(LORA))), tmp_path / LORA_FILE)
    architecture = build()
    with pytest.raises(OfficialWeightsError, match=message):
        load_official(architecture, lora=tmp_path / LORA_FILE)
    assert architecture.lora is None


def test_factors_beside_others_are_refused() -> None:
    with pytest.raises(OfficialWeightsError, match=r"arch\.lora=null"):
        load_official(build(lora=Lora(rank=2, targets=r".*\.to_q")), lora=LORA)


def test_missing_and_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OfficialWeightsError, match=r"config\.json"):
        load_official(build(), transformer=tmp_path)
    with pytest.raises(OfficialWeightsError, match="is no file"):
        load_official(build(), lora=tmp_path / LORA_FILE)
    (tmp_path / LORA_FILE).write_bytes(LORA.read_bytes()[:1000])
    with pytest.raises(OfficialWeightsError, match="cannot be read"):
        load_official(build(), lora=tmp_path / LORA_FILE)
