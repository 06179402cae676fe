"""The plan counts parameters, operations and memory right, and says whether a run fits."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from support.commands import CONF, compose_train
from support.exported_run import TIMES, inputs
from support.models.flux_arithmetic import Linear, Sizes, flux_cost
from torch.utils.flop_counter import FlopCounterMode, addmm_flop

from dsd_lightning.flux.quantize import QuantizationError
from dsd_lightning.models.build import build_architecture
from dsd_lightning.planning.counters import Cost, Moment
from dsd_lightning.planning.meta_step import step_cost
from dsd_lightning.planning.of_config import count_stored, plan, require_fit
from dsd_lightning.planning.plan import (
    GIB,
    CannotPlanError,
    DoesNotFitError,
    Planner,
    Run,
    Sharding,
    alternatives,
    fits,
    memory,
    step_seconds,
    table,
)

WIDTH, DOUBLE, SINGLE = 3072, 19, 38
FLUX_PARAMETERS = 11_901_408_320
H100 = Planner(mfu=600 / 989, gpu_memory_gib=76, peak_tflops=989)

ATTENTION = r"attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)"
FEED_FORWARD = rf"{ATTENTION}|ff\.net\.(0\.proj|2)|ff_context\.net\.(0\.proj|2)"
ALL_LINEAR = rf"{FEED_FORWARD}|proj_mlp|proj_out"
WITH_ADALN = rf"{ALL_LINEAR}|norm\w*\.linear"


def flux_layers(targets: str = "nothing", rank: int = 512) -> Iterator[Linear]:
    """Yield FLUX.1-dev's linear layers, written down from its description; those of blocks that match get factors."""

    def layer(name: str, inputs: int, outputs: int) -> Linear:
        matches = re.fullmatch(rf"(single_)?transformer_blocks\.\d+\.({targets})", name)
        return Linear(name, inputs, outputs, rank if matches else 0)

    d = WIDTH
    yield from (layer("x_embedder", 64, d), layer("context_embedder", 4096, d))
    for embedder, width in (("timestep_embedder", 256), ("guidance_embedder", 256), ("text_embedder", 768)):
        yield layer(f"time_text_embed.{embedder}.linear_1", width, d)
        yield layer(f"time_text_embed.{embedder}.linear_2", d, d)
    for block in (f"transformer_blocks.{i}." for i in range(DOUBLE)):
        for stream in ("", "_context"):
            yield layer(f"{block}norm1{stream}.linear", d, 6 * d)
            yield layer(f"{block}ff{stream}.net.0.proj", d, 4 * d)
            yield layer(f"{block}ff{stream}.net.2", 4 * d, d)
        for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"):
            yield layer(f"{block}attn.{name}", d, d)
    for block in (f"single_transformer_blocks.{i}." for i in range(SINGLE)):
        yield layer(f"{block}norm.linear", d, 3 * d)
        yield layer(f"{block}proj_mlp", d, 4 * d)
        yield layer(f"{block}proj_out", 5 * d, d)
        yield from (layer(f"{block}attn.to_{name}", d, d) for name in "qkv")
    yield from (layer("norm_out.linear", d, 2 * d), layer("proj_out", d, 64))


def flux_sample(targets: str = "nothing", image_tokens: int = 2048) -> Any:
    sizes = Sizes(frame_tokens=1024, text_tokens=512)
    shape = {"width": WIDTH, "double_blocks": DOUBLE, "single_blocks": SINGLE, "heads": 24}
    return flux_cost(flux_layers(targets), **shape, image_tokens=image_tokens, sizes=sizes)


# --- FLUX.1-dev's known metrics.


def test_flux_parameters() -> None:
    linear = sum(each.inputs * each.outputs + each.outputs for each in flux_layers())
    norms = 128 * (4 * DOUBLE + 2 * SINGLE)  # of queries and keys
    assert linear + norms == FLUX_PARAMETERS


@pytest.mark.parametrize(("image_tokens", "teraflops"), [(2048, 37.66), (4096, 74.4)])
def test_flux_forward(image_tokens: int, teraflops: float) -> None:
    assert flux_sample(image_tokens=image_tokens).forward / 1e12 == pytest.approx(teraflops, rel=1e-3)


@pytest.mark.parametrize(
    ("targets", "factors", "training", "recomputed"),
    [
        (ATTENTION, 836_763_648, 89.1, 129.8),
        (FEED_FORWARD, 1_434_451_968, 93.7, 135.9),
        (ALL_LINEAR, 2_091_909_120, 103.8, 149.4),
        (WITH_ADALN, 2_749_366_272, 103.8, 149.4),
    ],
)
def test_flux_training(targets: str, factors: int, training: float, recomputed: float) -> None:
    assert sum(each.rank * (each.inputs + each.outputs) for each in flux_layers(targets)) == factors
    cost = flux_sample(targets)
    assert cost.training / 1e12 == pytest.approx(training, rel=1e-3)
    assert (cost.training + cost.forward) / 1e12 == pytest.approx(recomputed, rel=1e-3)


def flux_run(**changed: Any) -> Run:
    arithmetic = flux_sample(ALL_LINEAR)
    settings: dict[str, Any] = {
        "frozen": FLUX_PARAMETERS,
        "trained": 2_091_909_120,
        "base_bytes": 2,
        "encoders": 0,
        "ema": False,
        "costs": {
            "none": Cost(
                arithmetic.forward,
                arithmetic.training,
                (Moment(0.0, float(arithmetic.activations), 4.0 * 2_091_909_120),),
            )
        },
        "batch_size": 160,
        "accumulate": 1,
        "steps": 100_000,
        "gpus": 8,
        "rank": 512,
    }
    return Run(**settings | changed)


def test_the_papers_run_takes_four_days() -> None:
    assert step_seconds(flux_run(), H100) == pytest.approx(3.46, abs=0.01)
    assert "4 days" in table(flux_run(), H100)


def test_state_of_the_papers_run() -> None:
    parts = {name: value / GIB for name, value in memory(flux_run(), H100).items()}
    assert parts["base"] == pytest.approx(22.17, abs=0.01)
    assert parts["adapters"] + parts["gradients"] + parts["optimizer"] == pytest.approx(31.2, abs=0.05)


# --- Laws.


def test_what_would_fit_fits() -> None:
    run = flux_run()
    assert not fits(run, H100)
    settings = list(alternatives(run, H100))
    assert any(each.startswith("arch.lora.rank=256 data.datamodule.batch_size=8") for each in settings)
    roomy = replace(H100, gpu_memory_gib=200)
    (smaller, *_) = alternatives(run, roomy)
    batch, accumulate = (int(number) for number in re.findall(r"=(\d+)", smaller))
    assert batch * accumulate == 160
    assert fits(flux_run(batch_size=batch, accumulate=accumulate), roomy)
    larger = [b for b in range(batch + 8, 161, 8) if 160 % b == 0]
    assert not any(fits(flux_run(batch_size=b, accumulate=160 // b), roomy) for b in larger)


def test_more_gpus_divide_the_time_and_the_activations() -> None:
    one, two = flux_run(gpus=8), flux_run(gpus=16)
    assert step_seconds(one, H100) == 2 * step_seconds(two, H100)
    assert memory(one, H100)["activations"] == 2 * memory(two, H100)["activations"]
    assert memory(one, H100)["base"] == memory(two, H100)["base"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"mfu": 0.0}, r"planner\.mfu=0\.0"),
        ({"gpus": 0}, r"planner\.gpus=0"),
        ({"peak_tflops": -1.0}, "peak_tflops"),
        ({"gpu": "v100"}, r"planner\.gpu=v100 is unknown; choose one of a100, h100"),
        ({"peak_tflops": None}, r"planner\.peak_tflops=null with planner\.gpu=null"),
    ],
)
def test_wrong_assumptions_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(H100, **setting)


def test_a_batch_that_cannot_be_divided_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_size=20 is not divisible among 8 GPUs; nearest is 16"):
        flux_run(batch_size=20)


def test_stored_values_are_counted_from_headers(tiny_base: Path) -> None:
    from safetensors.torch import load_file

    expected = sum(
        value.numel() for value in load_file(tiny_base / "vae" / "diffusion_pytorch_model.safetensors").values()
    )
    assert count_stored(tiny_base, ["vae"]) == expected
    with pytest.raises(ValueError, match=r"planner\.encoder_parameters"):
        count_stored(tiny_base, ["image_encoder"])


@pytest.mark.parametrize(
    ("name", "title", "tflops"),
    [("H100", "H100 80GB SXM", 989), (4090, "RTX 4090 24GB", 165), ("RTX 3090", "RTX 3090 24GB", 71)],
)
def test_gpus_are_known_by_name(name: str | int, title: str, tflops: int) -> None:
    planner = Planner(mfu=0.4, gpu=name)
    assert planner.tflops == tflops
    assert f"GPU                   {title}" in table(flux_run(), planner)
    assert replace(planner, gpu_memory_gib=10).free_gib == 10


# --- Against tensors and torch's own counter.


SIZE = (32, 32)
"""Pixels (height, width) of the frames of `exported_run.inputs`."""


@pytest.mark.parametrize("arch", ["parallel", "text_only"])
def test_forward_operations_are_those_that_torch_counts(arch: str, tiny_base: Path, tmp_path: Path) -> None:
    choices = (f"arch={arch}", "arch.lora.rank=2", "base.model.attention_backend=_native_math")
    architecture = build_architecture(compose_train(tmp_path, f"base.model.path={tiny_base}", *choices))
    noisy, condition = inputs(architecture)
    with (
        torch.no_grad(),
        FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: addmm_flop.__wrapped__}) as counter,
    ):
        architecture(noisy, TIMES, condition)
    cost = step_cost(
        architecture.to("meta"), SIZE, condition.text.sequence.shape[1], {"target": 1.0}, pixels_per_token=8
    )
    assert cost.forward * len(TIMES) == pytest.approx(counter.get_total_flops(), rel=1e-9)


def test_parked_encoders_take_the_place_of_activations_and_others_have_their_own() -> None:
    encoders = compose_train(Path("run"), "base=flux_dev").planner.encoder_parameters
    held, parked = (memory(flux_run(encoders=encoders, parked=parked), H100) for parked in (False, True))
    assert held["encoders"] / GIB == pytest.approx(9.26, abs=0.005)
    assert parked["encoders"] == max(0.0, held["encoders"] - parked["activations"])


PLANS = re.findall(
    r"^(\| `(flux_\w+)` \| `(\w+)` \|.*\|)$", (CONF.parent / "docs" / "planning.md").read_text(), re.MULTILINE
)


@pytest.mark.long
@pytest.mark.parametrize(("row", "base", "arch"), PLANS)
def test_the_documented_plan_of_every_base(row: str, base: str, arch: str) -> None:
    choices = (
        "planner.resolution=[512,512]",
        "planner.gpus=1",
        "arch.lora.rank=512",
        "optimizer=adamw",
        "callbacks.ema=null",
        "gradient_checkpointing=all",
        "data.datamodule.batch_size=4",
        "trainer.precision=bf16-mixed",
        "park_encoders=true",
    )
    planned = plan(compose_train(Path("run"), f"base={base}", f"arch={arch}", *choices))
    numbers = re.search(
        r"(?s)parameters +(\S+) \((\S+) trained\).*?([\d.]+) T forward, ([\d.]+) T.*memory: peak +(\S+) GiB", planned
    )
    assert numbers is not None
    assert row == f"| `{base}` | `{arch}` | {' | '.join(numbers.groups())} |"
    if (base, arch) == ("flux_dev", "parallel"):
        embedder = 64 * WIDTH + WIDTH
        trained = 2_091_909_120 + embedder
        assert numbers.groups()[:2] == (f"{FLUX_PARAMETERS + trained:,}", f"{trained:,}")


def test_the_plan_of_the_tiny_base_needs_no_numbers_and_logs_nothing(
    tiny_base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        text = plan(compose_train(Path("run"), f"base.model.path={tiny_base}"))
    assert ": fits" in text
    assert [each for each in caplog.records if each.name.startswith("dsd_lightning")] == []


def test_the_shipped_base_is_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose_train(Path("run"), "arch=ip_adapter")
    here = plan(config)
    monkeypatch.chdir(tmp_path)
    assert plan(config) == here


def test_a_run_that_does_not_fit_is_refused_with_its_plan(tiny_base: Path) -> None:
    choices = ("arch.lora.rank=2", "data.datamodule.batch_size=256")
    config = compose_train(Path("run"), f"base.model.path={tiny_base}", *choices)
    require_fit(config, 1.0)
    with pytest.raises(
        DoesNotFitError, match=r"(?s)force=true.*DOES NOT FIT.*would fit:.*gradient_checkpointing="
    ) as refused:
        require_fit(config, 0.05, "NVIDIA GeForce RTX 4090")
    assert "RTX 4090 24GB" in str(refused.value)
    with pytest.raises(DoesNotFitError) as unknown:
        require_fit(config, 0.05, "NVIDIA Unheard")
    assert not any(name in str(unknown.value) for name in ("H100", "4090"))


def test_sharding_takes_less_memory() -> None:
    def peak(**sharding: Any) -> dict[str, float]:
        return memory(flux_run(sharding=Sharding(**sharding)), H100)

    whole, adapters, everything = peak(), peak(devices=8), peak(devices=8, frozen=True, gathered=0.1)
    assert adapters["base"] == whole["base"] == pytest.approx(8 * everything["base"])
    for name in ("adapters", "gradients", "optimizer"):
        assert whole[name] == pytest.approx(8 * adapters[name]) == pytest.approx(8 * everything[name])
    assert adapters["all-gathered"] == whole["adapters"]
    assert "all-gathered" not in whole
    assert sum(whole.values()) > sum(adapters.values()) > sum(everything.values())


@pytest.mark.parametrize(
    ("strategy", "devices", "frozen"),
    [("ddp", 1, False), ("adapter_shard", 8, False), ("fsdp", 8, True), ("hybrid", 4, True)],
)
def test_the_plan_counts_what_a_strategy_shards(strategy: str, devices: int, frozen: bool, tiny_base: Path) -> None:
    choices = (f"trainer/strategy={strategy}", "trainer.devices=4", "trainer.num_nodes=2", "arch.lora.rank=2")
    text = plan(compose_train(Path("run"), f"base.model.path={tiny_base}", *choices))
    held = "the whole model" if devices == 1 else f"1/{devices} of " + ("the model" if frozen else "what is trained")
    assert f"8 GPUs (each holds {held}" in text
    assert ("all-gathered" in text) == (devices > 1)


def test_an_unknown_strategy_is_refused(tiny_base: Path) -> None:
    with pytest.raises(ValueError, match=r"trainer\.strategy=deepspeed: choose trainer/strategy=single"):
        plan(compose_train(Path("run"), f"base.model.path={tiny_base}", "trainer.strategy=deepspeed"))


def test_the_assumptions_are_in_the_configuration() -> None:
    keys = set(OmegaConf.load(CONF / "train.yaml").planner) - {"_target_"}
    assert keys == set(Planner.__dataclass_fields__), json.dumps(sorted(keys))


@pytest.mark.parametrize(("devices", "gpus"), [("auto", 1), (-1, 1), ([0, 1], 2), (4, 4)])
def test_devices_are_counted_in_every_form(
    devices: Any, gpus: int, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    config = compose_train(Path("run"), f"base.model.path={tiny_base}", "arch.lora.rank=2")
    config.trainer.devices = devices
    assert f"{gpus} GPUs" in plan(config)


def test_what_cannot_be_planned_is_a_warning_and_no_refusal(tiny_base: Path, caplog: pytest.LogCaptureFixture) -> None:
    choices = ("experiment=pretrain_tiny", "base=tiny", f"base.model.path={tiny_base}")
    config = compose_train(Path("run"), *choices)
    with pytest.raises(CannotPlanError, match=r"planner\.resolution"):
        plan(config)
    require_fit(config, 0.001)
    assert "whether this run fits was not checked" in caplog.text


def test_no_library_is_needed_to_plan_a_quantised_base(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("bitsandbytes", "torchao", "torchao.quantization"):
        monkeypatch.setitem(sys.modules, library, None)
    for kind in ("nf4", "int8", "fp8"):
        assert ": fits" in plan(compose_train(Path("run"), f"base.model.path={tiny_base}", f"base.quantize={kind}"))
    with pytest.raises(QuantizationError, match="which is not installed"):
        build_architecture(compose_train(Path("run"), f"base.model.path={tiny_base}", "base.quantize=nf4"))
