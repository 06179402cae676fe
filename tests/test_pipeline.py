"""Does the pipeline compute what the official one does, take what diffusers' users give, and say what it cannot do?"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from verbs import compose_train

from dsd_lightning.checkpoints.adapter import header_of
from dsd_lightning.checkpoints.folder_io import FolderCheckpointIO
from dsd_lightning.checkpoints.official import LORA_FILE
from dsd_lightning.flux.base import FluxBase
from dsd_lightning.flux.quantize import QuantizationError
from dsd_lightning.pipeline import TwoFramePipeline
from dsd_lightning.pipeline.inputs import fit
from dsd_lightning.pipeline.loading import LoadingError
from dsd_lightning.pipeline.schedule import scheduler_of, shift_of
from dsd_lightning.randomness import normal
from dsd_lightning.rectified_flow import FixedShift, NoShift, ResolutionShift
from dsd_lightning.sampler import SamplerSettings, evaluations

GOLDEN = Path(__file__).parent / "data" / "golden"
BASE, TRANSFORMER, LORA = (
    GOLDEN / "tiny_flux_dev",
    GOLDEN / "tiny_official" / "transformer",
    GOLDEN / "tiny_official" / LORA_FILE,
)
SIDE, STEPS, PROMPT = 64, 4, "this character, reading  a book at the beach"

values = np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)
PICTURE = Image.fromarray(values).resize((155, 100), Image.Resampling.BICUBIC)


@cache
def official(lora: str = "none") -> TwoFramePipeline:
    pipeline = TwoFramePipeline.load(
        BASE,
        TRANSFORMER,
        None if lora == "none" else LORA,
        dtype=torch.float32,
        default_size=SIDE,
        merge_lora=lora != "unmerged",
        device="cpu",
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise(seed: int = 0, batch: int = 1, side: int = SIDE) -> Tensor:
    return FluxPipeline._pack_latents(normal((batch, 4, side // 8, side // 4), seed), batch, 4, side // 8, side // 4)


def draw(pipeline: TwoFramePipeline, **given: Any) -> Any:
    given = {"image": PICTURE, "prompt": PROMPT, "num_inference_steps": STEPS, "output_type": "latent", **given}
    if "generator" not in given and "latents" not in given:
        given["latents"] = noise()
    return pipeline(**given).images


# --- Parity, with the official pipeline written down a second time from diffusers' own parts.


class Embedder(nn.Module):
    """The official sum of two embeddings, with the condition held rather than passed."""

    def __init__(self, x_embedder: nn.Module, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.x_embedder, self.condition = x_embedder, torch.zeros(0)
        self.c_embedder = nn.Linear(x_embedder.in_features, x_embedder.out_features)
        self.c_embedder.load_state_dict(
            {name.split(".")[1]: value for name, value in weights.items() if name.startswith("c_embedder")}
        )

    def forward(self, noisy: Tensor) -> Tensor:
        return self.x_embedder(noisy) + self.c_embedder(self.condition)


@torch.no_grad()
def reference_pipeline(
    lora: bool, image_guidance: float, text_guidance: float, side: int = SIDE
) -> tuple[Tensor, Image.Image]:
    """Return the official final latents and picture for PICTURE and PROMPT (docs/architecture.md lists the facts)."""
    weights = {name: value.clone() for name, value in load_file(next(TRANSFORMER.glob("*.safetensors"))).items()}
    if lora:
        factors = load_file(LORA)
        for name in {key.split(".lora_")[0] for key in factors}:
            update = factors[f"{name}.lora_B.weight"] @ factors[f"{name}.lora_A.weight"]
            weights[name.removeprefix("transformer.") + ".weight"] += update
    config = FluxTransformer2DModel.load_config(TRANSFORMER)
    transformer = FluxTransformer2DModel(**{k: v for k, v in config.items() if not k.startswith("_")})
    transformer.load_state_dict({name: value for name, value in weights.items() if not name.startswith("c_embedder")})
    embedder = transformer.x_embedder = Embedder(transformer.x_embedder, weights)
    base = FluxBase(str(BASE), initialise="meta", transformer_config={}, text_length=512)
    parts = base.text_encoder()
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(BASE, subfolder="scheduler"),
        vae=base.codec().vae,
        text_encoder=parts.clip,
        tokenizer=parts.clip_tokenizer,
        text_encoder_2=parts.t5,
        tokenizer_2=parts.t5_tokenizer,
        transformer=transformer,
    )
    text, pooled, text_ids = pipe.encode_prompt(PROMPT, None)
    null, null_pooled, _ = pipe.encode_prompt("", None)
    short = min(PICTURE.size)
    left, top = (PICTURE.width - short) // 2, (PICTURE.height - short) // 2
    square = PICTURE.crop((left, top, left + short, top + short)).resize((side, side))
    # contiguous: torch's GroupNorm on the CPU is inaccurate by up to 6e-4 on the channels-last pixels that come out of numpy
    pixels = VaeImageProcessor().preprocess(square, height=side, width=side).contiguous()
    canvas = torch.cat([pixels, torch.full_like(pixels, -1)], dim=-1)
    clean = (pipe.vae.encode(canvas).latent_dist.mode() - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
    size = (side // 8, side // 4)
    condition = pipe._pack_latents(clean, 1, 4, *size)
    ids = pipe._prepare_latent_image_ids(1, size[0] // 2, size[1] // 2, "cpu", torch.float32)
    latents = noise(side=side)
    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    mu = calculate_shift(latents.shape[1], *(pipe.scheduler.config[name] for name in names))
    pipe.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / STEPS, STEPS), mu=mu)

    def predict(time: Tensor, words: Tensor, pool: Tensor, shown: Tensor) -> Tensor:
        embedder.condition = shown
        return transformer(
            hidden_states=latents,
            encoder_hidden_states=words,
            pooled_projections=pool,
            timestep=time.expand(1) / 1000,
            guidance=torch.tensor([3.5]),
            img_ids=ids,
            txt_ids=text_ids,
            return_dict=False,
        )[0]

    for index, time in enumerate(pipe.scheduler.timesteps):
        velocity = predict(time, text, pooled, condition)
        if index >= 2 and image_guidance > 1:
            nothing = predict(time, null, null_pooled, torch.zeros_like(condition))
            image = predict(time, null, null_pooled, condition)
            velocity = nothing + image_guidance * (image - nothing) + text_guidance * (velocity - image)
        latents = pipe.scheduler.step(velocity, time, latents, return_dict=False)[0]
    unpacked = pipe._unpack_latents(latents, side, 2 * side, 8)
    decoded = pipe.vae.decode(unpacked / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor).sample
    picture = VaeImageProcessor().postprocess(decoded, output_type="pil")[0]
    return latents, picture.crop((side, 0, 2 * side, side))


@pytest.mark.parametrize("lora", ["none", "merged", "unmerged"])
@pytest.mark.parametrize(("image", "text"), [(1.0, 1.0), (1.3, 2.0), (1.5, 1.5)])
def test_latents_and_pixels_are_the_official_ones(lora: str, image: float, text: float) -> None:
    latents, picture = reference_pipeline(lora != "none", image, text)
    for batched in (False, True):
        guidance = {"image_guidance": image, "text_guidance": text, "batch_passes": batched}
        torch.testing.assert_close(draw(official(lora), **guidance), latents, rtol=0, atol=1e-4)
    drawn = draw(official(lora), image_guidance=image, text_guidance=text, output_type="pil")[0]
    difference = np.asarray(drawn, dtype=int) - np.asarray(picture, dtype=int)
    assert np.abs(difference).max() <= 1


@pytest.mark.slow
def test_the_same_at_the_official_size() -> None:
    latents, _ = reference_pipeline(True, 1.3, 2.0, side=512)
    drawn = draw(
        official("merged"), image_guidance=1.3, text_guidance=2.0, height=512, width=512, latents=noise(side=512)
    )
    torch.testing.assert_close(drawn, latents, rtol=0, atol=1e-4)


def test_lora_and_guidance_matter_here() -> None:
    plain = draw(official())
    assert (draw(official("merged")) - plain).abs().max() > 0.01
    assert (draw(official(), image_guidance=1.3, text_guidance=2.0) - plain).abs().max() > 0.01
    assert (draw(official(), image=PICTURE.rotate(180)) - plain).abs().max() > 0.01
    assert (draw(official(), prompt="something else") - plain).abs().max() > 1e-3


def test_t5_reads_what_its_published_tokenizer_says() -> None:
    published = Tokenizer.from_file(str(BASE / "tokenizer_2" / "tokenizer.json"))
    ids = official().tokenizer_2(PROMPT).input_ids
    assert ids == published.encode(PROMPT).ids, "two spaces are two tokens here"


def test_the_middle_is_cropped_before_resizing() -> None:
    assert fit(PICTURE, 40, 40).size == (40, 40)
    expected = PICTURE.crop((27, 0, 127, 100)).resize((40, 40), Image.Resampling.BICUBIC)
    assert np.array_equal(fit(PICTURE, 40, 40), expected)
    assert fit(PICTURE, 64, 32).size == (32, 64)
    assert fit(PICTURE, 300, 900).size == (900, 300)


# --- Passes.


@pytest.mark.parametrize(
    ("image", "text", "start", "expected"),
    [
        (1.0, 1.0, 2, 4),
        (1.3, 1.0, 2, 2 + 2 * 3),
        (1.0, 2.0, 2, 2 + 2 * 2),  # the null pass has no part in it
        (1.5, 1.5, 2, 2 + 2 * 2),  # the middle one cancels
        (1.3, 2.0, 2, 2 + 2 * 3),
        (1.3, 2.0, 0, 4 * 3),
        (1.3, 2.0, 9, 4),
        (0.0, 0.0, 0, 4),
    ],
)
@pytest.mark.parametrize("batched", [False, True])
def test_predictions_are_the_fewest_possible(
    image: float, text: float, start: int, expected: int, batched: bool
) -> None:
    rows: list[int] = []
    network = official().transformer.transformer
    hook = network.register_forward_pre_hook(
        lambda _, __, given: rows.append(given["hidden_states"].shape[0]), with_kwargs=True
    )
    guidance = {"image_guidance": image, "text_guidance": text, "guidance_start": start, "batch_passes": batched}
    draw(official(), **guidance)
    hook.remove()
    assert sum(rows) == expected == evaluations(SamplerSettings(STEPS, **guidance))
    assert len(rows) == (STEPS if batched else expected)


# --- What a user gives and gets.


def test_a_batch_is_its_pictures_one_by_one() -> None:
    images, prompts = [PICTURE, PICTURE.rotate(90, expand=True)], ["a hat", "a very large hat"]
    guidance = {"image_guidance": 1.3, "text_guidance": 2.0}
    both = draw(official(), image=images, prompt=prompts, latents=noise(0, 2), **guidance)
    for index in range(2):
        one = draw(
            official(), image=images[index], prompt=prompts[index], latents=noise(0, 2)[index : index + 1], **guidance
        )
        torch.testing.assert_close(both[index : index + 1], one, rtol=0, atol=1e-4)


def test_one_image_serves_several_prompts_and_each_may_be_drawn_several_times() -> None:
    drawn = draw(
        official(),
        prompt=["a hat", "a coat"],
        num_images_per_prompt=2,
        generator=[torch.Generator().manual_seed(seed) for seed in (5, 6, 5, 6)],
    )
    assert drawn.shape[0] == 4
    again = draw(official(), prompt="a coat", generator=torch.Generator().manual_seed(6))
    torch.testing.assert_close(drawn[3:], again, rtol=0, atol=1e-4)


def test_embeddings_stand_for_prompts() -> None:
    text, null = official().encode_prompt([PROMPT]), official().encode_prompt(["blurred"])
    guidance = {"image_guidance": 1.3, "text_guidance": 2.0}
    drawn = draw(
        official(),
        prompt=None,
        prompt_embeds=text.sequence,
        pooled_prompt_embeds=text.pooled,
        negative_prompt_embeds=null.sequence,
        negative_pooled_prompt_embeds=null.pooled,
        **guidance,
    )
    expected = draw(official(), negative_prompt="blurred", **guidance)
    torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-5)


def test_the_generator_draws_noise_and_before_it_the_condition_if_that_is_asked_for() -> None:
    mode = draw(official(), generator=torch.Generator().manual_seed(3))
    given = draw(official(), latents=official().draw_latents(1, None, None, torch.Generator().manual_seed(3)))
    assert torch.equal(mode, given)
    generator = torch.Generator().manual_seed(3)
    sampled = draw(official(), generator=generator, condition_sample="sample")
    order = torch.Generator().manual_seed(3)
    for _ in range(2):
        torch.randn((1, 4, SIDE // 8, SIDE // 4), generator=order)
    assert torch.equal(generator.get_state(), order.get_state()), "two canvases are drawn, and nothing else"
    assert (sampled - mode).abs().max() > 0.01
    torch.manual_seed(3)  # as the official code, which knows the global generator only
    assert torch.equal(draw(official(), generator=None, condition_sample="sample"), sampled)


def test_sizes_outputs_and_the_redrawn_reference() -> None:
    given = {"image": PICTURE, "prompt": PROMPT, "num_inference_steps": 1, "height": 32, "width": 96}
    result = official()(**given, return_reference=True)
    assert [result.images[0].size, result.references[0].size] == [(96, 32), (96, 32)]
    array = official()(**given, output_type="np", generator=torch.Generator().manual_seed(0)).images
    assert array.shape == (1, 32, 96, 3)
    assert 0 <= array.min() < array.max() <= 1


def test_sizes_far_beyond_training_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    official().frame_size(96, 96)
    assert not caplog.text
    official().frame_size(112, 64)
    assert "distort" in caplog.text


def test_strength_of_the_reference_by_step() -> None:
    plain = draw(official())
    assert torch.equal(draw(official(), reference_strength=[(0, STEPS, 1.0)]), plain)
    # Without reference and with text: what image guidance 0 makes of the null reference under the same text.
    assert torch.equal(
        draw(official(), reference_strength=0.0), draw(official(), image=PICTURE.rotate(90), reference_strength=0.0)
    )
    late = draw(official(), reference_strength=[(2, 4, 0.5)])
    assert (late - plain).abs().max() > 1e-3


def test_a_callback_sees_each_step_may_change_it_and_may_stop() -> None:
    seen: list[tuple[int, float]] = []

    def callback(pipe: TwoFramePipeline, step: int, time: float, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append((step, time))
        pipe._interrupt = step == 2
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 2 else tensors

    drawn = draw(official(), callback_on_step_end=callback)
    assert [step for step, _ in seen] == [0, 1, 2]
    assert seen[0][1] == pytest.approx(1000)
    assert not drawn.any()
    assert torch.equal(draw(official(), callback_on_step_end=lambda *_: {}), draw(official()))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": None}, "give either a prompt"),
        ({"prompt_embeds": torch.zeros(1, 2, 32)}, "go together"),
        ({"latents": torch.zeros(1, 3, 16)}, r"latents are \[1, 3, 16\].*\[1, 32, 16\]"),
        ({"image": [PICTURE] * 2, "prompt": ["a"] * 3}, "2 given for a batch of 3"),
        ({"image": torch.zeros(3, 8, 8)}, r"\[3, 64, 64\]"),
        ({"height": 60}, "nearest is 64 x 64"),
        ({"image": None}, "reference picture"),
        ({"num_inference_steps": 0}, "num_inference_steps=0"),
        ({"reference_strength": [(0, 9, 0.5)]}, "steps 0 to 9"),
        ({"generator": [torch.Generator()] * 2}, "a list of 2 for 1"),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(official(), **given)


# --- Saving, loading, placing.


@pytest.mark.parametrize("lora", ["merged", "unmerged"])
def test_saved_and_loaded_it_draws_the_same(tmp_path: Path, lora: str) -> None:
    official(lora).save_pretrained(tmp_path)
    loaded = TwoFramePipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    torch.testing.assert_close(draw(loaded), draw(official(lora)), rtol=0, atol=1e-4)
    assert loaded.config.default_size == SIDE


def test_a_folder_of_another_kind_is_no_saved_pipeline() -> None:
    with pytest.raises(LoadingError, match="was not saved by"):
        TwoFramePipeline.from_pretrained(BASE)


@pytest.mark.parametrize("shift", [NoShift(), FixedShift(3.0), ResolutionShift(16, 64, 0.95, 1.4)])
def test_a_scheduler_holds_every_shift(shift: NoShift | FixedShift | ResolutionShift) -> None:
    assert shift_of(scheduler_of(shift)) == shift


@pytest.fixture
def make_run(tiny_base: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that makes the folder of a run of an architecture, its averages unlike its last weights."""

    def make(arch: str) -> Path:
        task = "text_to_image" if arch == "text_only" else "identity"
        run = tmp_path / arch
        config = compose_train(run, f"arch={arch}", f"task={task}", f"base.model.path={tiny_base}", "shift=fixed")
        (run / ".hydra").mkdir(parents=True)
        plain = OmegaConf.create({key: value for key, value in config.items() if key != "hydra"})
        OmegaConf.save(plain, run / ".hydra" / "config.yaml")
        architecture = instantiate(config.arch)(transformer=instantiate(config.base.model).transformer())
        weights, averages = (
            {name: 0.05 * normal(value.shape, kind, name) for name, value in architecture.trainable()}
            for kind in ("weights", "averages")
        )
        checkpoint = {"state_dict": weights, "ema": averages, "adapter": header_of(architecture)}
        FolderCheckpointIO().save_checkpoint(checkpoint, run / "checkpoints" / "step_00000004")
        return run

    return make


@pytest.mark.parametrize("arch", ["parallel", "text_only"])
def test_a_run_of_any_architecture(make_run: Callable[[str], Path], arch: str) -> None:
    run = make_run(arch)
    pipelines = [
        TwoFramePipeline.from_run(run, device="cpu"),
        TwoFramePipeline.from_run(run / "checkpoints" / "step_00000004", merge_lora=False, device="cpu"),
        TwoFramePipeline.from_run(run, ema=False, device="cpu"),
    ]
    drawn = []
    for pipeline in pipelines:
        pipeline.set_progress_bar_config(disable=True)
        assert pipeline.config.default_size == 64
        assert shift_of(pipeline.scheduler) == FixedShift(3.0)
        latents = pipeline.draw_latents(1, 32, 32, torch.Generator().manual_seed(0))
        assert latents.shape == ((1, 8, 64) if arch == "parallel" else (1, 4, 64))
        drawn.append(draw(pipeline, latents=latents, height=32, width=32))
    torch.testing.assert_close(drawn[0], drawn[1], rtol=0, atol=1e-4)
    assert (drawn[0] - drawn[2]).abs().max() > 1e-3, "averages by default"


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadingError, match=r"is no run folder.*\.hydra"):
        TwoFramePipeline.from_run(tmp_path)


# accelerate's hooks layer by layer want a device other than the one that keeps the weights.
@pytest.mark.parametrize("kind", ["model", pytest.param("sequential", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("factors", [None, "merged", "unmerged"])
def test_offload_hooks_change_nothing(kind: str, factors: str | None) -> None:
    choices: dict[str, Any] = {} if factors is None else {"lora": LORA, "merge_lora": factors == "merged"}
    pipeline = TwoFramePipeline.load(BASE, TRANSFORMER, dtype=torch.float32, default_size=SIDE, device="cpu", **choices)
    expected = draw(pipeline, output_type="np")
    pipeline.set_progress_bar_config(disable=True)
    # accelerate's hooks on the CPU: the same paths as on a GPU, where they move weights.
    if kind == "model":
        pipeline.enable_model_cpu_offload(device="cpu")
    else:
        pipeline.enable_sequential_cpu_offload(device="cuda")
    np.testing.assert_allclose(draw(pipeline, output_type="np"), expected, rtol=0, atol=1e-4)


def test_offload_without_a_gpu_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        official().ready(offload="model", device="cpu")
    assert "offload=model needs a GPU" in caplog.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no GPU here"):
        official().ready(device="cuda")


@pytest.mark.parametrize(("kind", "library"), [("fp8", "torchao"), ("int8", "torchao"), ("nf4", "bitsandbytes")])
def test_quantisation_says_what_it_needs(kind: Any, library: str) -> None:
    if importlib.util.find_spec(library) is not None:
        pytest.skip(f"{library} is installed")
    with pytest.raises(QuantizationError, match=f"pip install {library}"):
        official().ready(quantize=kind)


def test_factors_that_are_not_merged_are_not_quantised() -> None:
    with pytest.raises(QuantizationError, match="merged before"):
        official("unmerged").ready(quantize="int8")
    with pytest.raises(QuantizationError, match="do not go together"):
        official().ready(quantize="int8", offload="sequential")
