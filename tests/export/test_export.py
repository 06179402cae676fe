"""Exports load in other programs, each in its own layout, and compute the same there."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import FluxControlPipeline, FluxKontextPipeline, FluxPipeline, FluxTransformer2DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.commands import compose_train
from support.exported_run import LORA, TIMES, MadeRun, export, inputs, make_run, predict
from support.models.golden_pipeline import IMAGE
from torch import Tensor

from dsd_lightning.architectures.parallel import Parallel
from dsd_lightning.checkpoints.official import LORA_FILE, OfficialWeightsError, load_official
from dsd_lightning.export.layouts import possible_formats
from dsd_lightning.files import folders
from dsd_lightning.flux import tokens
from dsd_lightning.flux.base import FluxBase
from dsd_lightning.models.build import build_architecture
from dsd_lightning.pipeline import TwoFramePipeline
from dsd_lightning.pipeline.inputs import fit, to_pixels
from dsd_lightning.randomness import normal
from dsd_lightning.sampler import SamplerSettings, sample

WEIGHTS = "diffusion_pytorch_model.safetensors"


def copied(file: Path) -> dict[str, Tensor]:
    """Return tensors that are not mapped to the file, which may then be replaced."""
    return {name: value.clone() for name, value in load_file(file).items()}


def assert_same(output: Tensor, expected: Tensor, atol: float = 2e-5) -> None:
    torch.testing.assert_close(output, expected, rtol=0, atol=atol)


def fresh(run: MadeRun, lora: str = "arch.lora=null") -> Parallel:
    """Return the architecture on an untrained base, without factors."""
    config = compose_train(run.folder, "base=tiny_untrained", "arch=parallel", lora)
    with torch.random.fork_rng():
        transformer = FluxTransformer2DModel.from_config(dict(run.architecture.transformer.config))
    architecture = build_architecture(config, _Given(transformer))
    assert isinstance(architecture, Parallel)
    return architecture.eval()


class _Given(FluxBase):
    """A base whose transformer is given."""

    def __init__(self, transformer: FluxTransformer2DModel) -> None:
        super().__init__(path="assets/tiny-flux")
        object.__setattr__(self, "_transformer", transformer)

    def transformer(self) -> FluxTransformer2DModel:
        given: FluxTransformer2DModel = object.__getattribute__(self, "_transformer")
        return given.requires_grad_(False)


@torch.no_grad()
def stock_prediction(transformer: FluxTransformer2DModel, run: MadeRun) -> Tensor:
    """Return what diffusers' transformer predicts for `inputs`, the reference along the channels if there is one."""
    noisy, condition = inputs(run.architecture)
    packed = torch.cat([tokens.pack(noisy), *(tokens.pack(each) for each in condition.reference.values())], dim=-1)
    height, width = noisy.shape[-2:]
    output = transformer(
        hidden_states=packed,
        encoder_hidden_states=condition.text.sequence,
        pooled_projections=condition.text.pooled,
        timestep=TIMES,
        guidance=condition.guidance,
        img_ids=tokens.image_ids(height, width, device=noisy.device),
        txt_ids=tokens.text_ids(condition.text.sequence.shape[1], device=noisy.device),
        return_dict=False,
    )[0]
    return tokens.unpack(output, height, width)


# --- Back through the official layout.


@pytest.mark.parametrize("options", [(), ("--merged",)], ids=["factors", "merged"])
def test_the_official_layout_computes_the_same(parallel: MadeRun, tmp_path: Path, options: tuple[str, ...]) -> None:
    out = export(parallel, tmp_path / "out", "--format", "official", *options)
    loaded = fresh(parallel)
    load_official(loaded, out / "transformer", out / LORA_FILE)
    assert_same(predict(loaded), predict(parallel.architecture))
    folders.verify(out)


def test_an_export_has_what_comfyui_dsd_needs(parallel: MadeRun, tmp_path: Path) -> None:
    """One transformer file with every key, its configuration, and always factors: of full names, without alpha."""
    for name, options in {"factors": (), "merged": ("--merged",)}.items():
        out = export(parallel, tmp_path / name, "--format", "comfyui", *options)
        assert [file.name for file in sorted((out / "transformer").iterdir())] == ["config.json", WEIGHTS]
        keys = set(load_file(out / "transformer" / WEIGHTS))
        plain = set(FluxTransformer2DModel.from_config(dict(parallel.architecture.transformer.config)).state_dict())
        assert keys == plain | {"c_embedder.weight", "c_embedder.bias"}
        config = json.loads((out / "transformer" / "config.json").read_text())
        assert config["guidance_embeds"] is True
        factors = load_file(out / LORA_FILE)
        assert factors
        for key in factors:
            assert key.startswith("transformer.")
            assert key.endswith((".lora_A.weight", ".lora_B.weight"))
        assert any(bool(value.any()) for value in factors.values()) == (name == "factors")
        with safe_open(out / LORA_FILE, framework="pt") as file:
            header = file.metadata()
        assert header["format"] == "pt"
        settings = json.loads(header["lora_adapter_metadata"])
        assert settings["transformer.lora_alpha"] == settings["transformer.r"]


def test_factors_load_into_stock_diffusers(
    text_only: MadeRun, tiny_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = export(text_only, tmp_path / "out", "--format", "comfyui")
    assert not (out / "transformer").exists()
    for without_header in (False, True):
        transformer = FluxTransformer2DModel.from_pretrained(tiny_base / "transformer")
        before = set(transformer.state_dict())
        pipeline = FluxPipeline(*[None] * 6, transformer=transformer)
        if without_header:  # as it is for those who do not read diffusers' metadata
            save_file(copied(out / LORA_FILE), out / LORA_FILE)
        diffusers.utils.logging.enable_propagation()
        pipeline.load_lora_weights(out, weight_name=LORA_FILE)
        messages = [record.getMessage() for record in caplog.records]
        # What diffusers logs of a text encoder without factors is no matter.
        assert not [each for each in messages if "keys found in the model" in each or "FluxTransformer2DModel" in each]
        assert_same(stock_prediction(transformer.eval(), text_only), predict(text_only.architecture))
        factors = {key for key in transformer.state_dict() if ".lora_" in key}
        assert len(factors) == len(load_file(out / LORA_FILE))
        assert {key.replace(".base_layer.", ".") for key in transformer.state_dict()} - factors == before


def test_the_official_factors_load_into_stock_diffusers(parallel: MadeRun, tiny_base: Path, tmp_path: Path) -> None:
    out = export(parallel, tmp_path / "out", "--format", "official")
    transformer = FluxTransformer2DModel.from_pretrained(tiny_base / "transformer")
    FluxPipeline(*[None] * 6, transformer=transformer).load_lora_weights(out, weight_name=LORA_FILE)
    written = load_file(out / LORA_FILE)
    loaded = {
        f"transformer.{name.replace('.default_0.', '.')}": value
        for name, value in transformer.state_dict().items()
        if ".lora_" in name
    }
    assert loaded.keys() == written.keys()
    for name, value in loaded.items():
        assert torch.equal(value, written[name]), name


# --- Stock diffusers.


@pytest.mark.parametrize("kind", ["parallel", "concat", "text_only"])
def test_the_merged_transformer_is_a_stock_one(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run: MadeRun = request.getfixturevalue(kind)
    out = export(run, tmp_path / "out", "--format", "transformer")
    transformer, problems = FluxTransformer2DModel.from_pretrained(out, output_loading_info=True)
    assert not any(problems.values()), problems
    assert transformer.config.out_channels == 24
    assert_same(stock_prediction(transformer.eval(), run), predict(run.architecture))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["parallel", "concat"])
def test_a_stock_control_pipeline_generates_what_our_sampler_does(
    kind: str, request: pytest.FixtureRequest, tiny_base: Path, tmp_path: Path
) -> None:
    run: MadeRun = request.getfixturevalue(kind)
    out = export(run, tmp_path / "out", "--format", "diffusers")
    pipeline = FluxControlPipeline.from_pretrained(out)
    pipeline.set_progress_bar_config(disable=True)
    noisy, condition = inputs(run.architecture)
    (reference,) = condition.reference.values()
    height, width = noisy.shape[-2:]
    latents = pipeline(
        prompt_embeds=condition.text.sequence,
        pooled_prompt_embeds=condition.text.pooled,
        control_image=tokens.pack(reference),
        latents=tokens.pack(noisy),
        height=height * pipeline.vae_scale_factor,
        width=width * pipeline.vae_scale_factor,
        num_inference_steps=3,
        guidance_scale=3.5,
        output_type="latent",
    ).images
    shift = FluxBase(path=str(tiny_base)).shift()
    ours = sample(run.architecture, condition, condition.text, noisy, SamplerSettings(3), shift)
    assert_same(tokens.unpack(latents, height, width), ours, atol=1e-4)


@torch.no_grad()
def test_a_stock_kontext_pipeline_generates_what_our_pipeline_does(reference_tokens: MadeRun, tmp_path: Path) -> None:
    stock = FluxKontextPipeline.from_pretrained(export(reference_tokens, tmp_path / "out", "--format", "diffusers"))
    ours = TwoFramePipeline.from_run(reference_tokens.folder, device="cpu")
    for pipeline in (stock, ours):
        pipeline.set_progress_bar_config(disable=True)
    noise = tokens.pack(normal((1, 6, 16, 16), "noise"))
    settings = {"num_inference_steps": 3, "guidance_scale": 2.5, "latents": noise, "output_type": "latent"}
    size = {"height": 64, "width": 64}
    pixels = (to_pixels(fit(IMAGE, 64, 64), 64, 64)[None] + 1) / 2
    text = {"max_sequence_length": 24, "max_area": 64 * 64, "_auto_resize": False}
    expected = stock(pixels, "a hat", **settings, **size, **text).images
    latents = ours(IMAGE, "a hat", image_guidance=1.0, text_guidance=1.0, **settings, **size).images
    assert_same(latents, expected, atol=1e-4)


def test_reference_tokens_that_kontext_does_not_have_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tiny_base, "arch=reference_tokens", "arch.id_shift=[0,0,16]", *LORA)
    assert possible_formats(run.architecture) == ["adapter"]


@pytest.mark.parametrize("layout", ["adapter", "official", "diffusers"])
def test_other_users_can_read_an_export(parallel: MadeRun, tmp_path: Path, layout: str) -> None:
    out = export(parallel, tmp_path / "out", "--format", layout)
    files = [file for file in out.rglob("*") if file.is_file()]
    assert {oct(file.stat().st_mode & 0o777) for file in files} == {"0o644"}


def test_a_pipeline_folder_of_a_model_without_reference(text_only: MadeRun, tmp_path: Path) -> None:
    pipeline = FluxPipeline.from_pretrained(export(text_only, tmp_path / "out", "--format", "diffusers"))
    assert_same(stock_prediction(pipeline.transformer.eval(), text_only), predict(text_only.architecture))


# --- Precision.


def test_eight_bits_come_back_as_they_were_written(parallel: MadeRun, tmp_path: Path) -> None:
    """The blocks' matrices in float8_e4m3fn: relative steps of 1/8, so an error of at most 1/16, or half of 2^-9."""
    out = export(parallel, tmp_path / "out", "--format", "transformer", "--dtype", "fp8")
    stored = load_file(out / WEIGHTS)
    exact = load_file(export(parallel, tmp_path / "exact", "--format", "transformer") / WEIGHTS)
    assert stored.keys() == exact.keys()
    eight = {name for name, value in stored.items() if value.dtype == torch.float8_e4m3fn}
    assert eight == {n for n, v in exact.items() if v.ndim == 2 and "transformer_blocks." in n}
    assert {stored[name].dtype for name in stored.keys() - eight} == {torch.bfloat16}
    for name in eight:
        error = (stored[name].float() - exact[name]).abs()
        assert bool((error <= (exact[name].abs() / 16).clamp(min=2.0**-10)).all()), name
    loaded = FluxTransformer2DModel.from_pretrained(out, torch_dtype=torch.float32)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, stored[name].float()), name
    expected = predict(parallel.architecture)
    error = (stock_prediction(loaded.eval(), parallel) - expected).norm() / expected.norm()
    assert 1e-4 < error < 0.2


def test_eight_bits_in_the_official_layout_load_back(parallel: MadeRun, tmp_path: Path) -> None:
    out = export(parallel, tmp_path / "out", "--format", "official", "--dtype", "fp8")
    assert {value.dtype for value in load_file(out / LORA_FILE).values()} == {torch.bfloat16}
    loaded = fresh(parallel)
    load_official(loaded, out / "transformer", out / LORA_FILE)
    expected = predict(parallel.architecture)
    assert (predict(loaded) - expected).norm() / expected.norm() < 0.2


def test_bfloat16(parallel: MadeRun, tmp_path: Path) -> None:
    out = export(parallel, tmp_path / "out", "--format", "official", "--dtype", "bfloat16")
    for file in (out / "transformer" / WEIGHTS, out / LORA_FILE):
        assert {value.dtype for value in load_file(file).values()} == {torch.bfloat16}


# --- Official weights as a starting point.


def test_training_starts_from_official_weights(parallel: MadeRun, tiny_base: Path, tmp_path: Path) -> None:
    out = export(parallel, tmp_path / "out", "--format", "official")
    stray = {"single_transformer_blocks.0.attn.to_q.lora_A.default.weight": torch.ones(4, 32)}
    save_file(copied(out / "transformer" / WEIGHTS) | stray, out / "transformer" / WEIGHTS)
    for lora in (("arch.lora=null",), ("arch.lora.rank=2", "arch.lora.alpha=8")):
        choices = (f"base.model.path={tiny_base}", "arch=parallel", f"init_from={out}", *lora)
        started = build_architecture(compose_train(tmp_path, *choices)).eval()
        assert_same(predict(started), predict(parallel.architecture))
        assert any(".lora_B." in name for name, _ in started.trainable())


def test_other_factors_than_the_files_are_refused(parallel: MadeRun, tiny_base: Path, tmp_path: Path) -> None:
    out = export(parallel, tmp_path / "out", "--format", "official")
    choices = (f"base.model.path={tiny_base}", f"init_from={out}", "arch.lora.rank=4")
    with pytest.raises(OfficialWeightsError, match=r"rank 2 on .* has rank 4 .*arch\.lora=null"):
        build_architecture(compose_train(tmp_path, *choices))
    with pytest.raises(OfficialWeightsError, match="belong to arch=parallel; this run has arch=text_only"):
        build_architecture(compose_train(tmp_path, *choices, "arch=text_only"))


def test_the_zero_factors_of_a_merged_export_are_no_factors(parallel: MadeRun, tiny_base: Path, tmp_path: Path) -> None:
    out = export(parallel, tmp_path / "out", "--format", "official", "--merged")
    choices = (f"base.model.path={tiny_base}", f"init_from={out}", "arch.lora.rank=4")
    started = build_architecture(compose_train(tmp_path, *choices)).eval()
    assert_same(predict(started), predict(parallel.architecture))


def test_what_was_trained_from_official_weights_is_exported(parallel: MadeRun, tiny_base: Path, tmp_path: Path) -> None:
    """The base's own weights came from there, and so did the factors' layers."""
    first = export(parallel, tmp_path / "first", "--format", "official", "--merged")
    run = make_run(tmp_path / "run", tiny_base, "arch=parallel", f"init_from={first}", *LORA)
    out = export(run, tmp_path / "out", "--format", "official")
    loaded = fresh(run)
    load_official(loaded, out / "transformer", out / LORA_FILE)
    assert_same(predict(loaded), predict(run.architecture))
