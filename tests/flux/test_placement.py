"""Encoders that wait in main memory compute the same, move only when needed, and leave training unchanged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from support.commands import CONF, SOURCE, compose_train, metrics, tiny_miniature
from support.sample_runs import Miniature, small_module
from torch import Tensor

from dsd_lightning.flux import placement
from dsd_lightning.models.build import parks_encoders
from dsd_lightning.module import DiffusionSelfDistillation
from dsd_lightning.pairs import PairBatch
from dsd_lightning.training.run import train

ENCODERS = ("codec", "text_encoder")
CPU = torch.device("cpu")


def parked_module(where: Callable[[], torch.device] = lambda: CPU) -> DiffusionSelfDistillation:
    module = small_module()
    placement.park(module, ENCODERS, where)
    return module


@pytest.fixture
def visits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Copy whatever is brought to the device, as from one memory to another, and note which part comes, once a visit."""
    noted: list[str] = []
    at_work = placement.Parkable.at_work

    def copying(values: Tensor, device: torch.device) -> Tensor:
        assert device == CPU
        with torch.inference_mode(False):
            return values.clone()

    def noting(part: placement.Parkable) -> object:
        if part._where is not None and not part._visiting:
            noted.append(type(part).__name__)
        return at_work(part)

    monkeypatch.setattr(placement, "bring", copying)
    monkeypatch.setattr(placement.Parkable, "at_work", noting)
    return noted


def places(module: DiffusionSelfDistillation) -> list[int]:
    return [tensor.data_ptr() for name in ENCODERS for tensor in getattr(module, name).state_dict().values()]


def test_each_part_comes_for_what_it_computes_and_goes_home(visits: list[str]) -> None:
    parked, plain, batch = parked_module(), small_module(), Miniature().batch(2)
    home = places(parked)

    def compare(compute: Callable[[DiffusionSelfDistillation], object], expected: list[str]) -> None:
        visits.clear()
        assert_same(compute(parked), compute(plain))
        assert visits == expected
        assert places(parked) == home

    assert batch.reference is not None
    reference = batch.reference
    # The canvas and the reference are encoded one after the other.
    compare(lambda m: m.encode(batch)[0].clean, ["Codec", "Codec", "TextEncoder"])
    canvas = parked.encode(batch)[0].clean
    compare(lambda m: m.decode_frames(canvas), ["Codec"])
    compare(lambda m: m.generate(batch), ["TextEncoder", "Codec", "TextEncoder", "Codec"])
    compare(lambda m: m.generate_from(reference, batch.prompts, batch.keys), ["Codec", "TextEncoder", "Codec"])


def assert_same(left: object, right: object) -> None:
    if isinstance(left, dict) and isinstance(right, dict):
        assert left.keys() == right.keys()
        for name, value in left.items():
            assert_same(value, right[name])
    else:
        assert isinstance(left, Tensor)
        assert isinstance(right, Tensor)
        assert torch.equal(left, right)


def test_several_calls_need_one_visit(visits: list[str]) -> None:
    module, batch = parked_module(), Miniature().batch(2)
    home = places(module)
    with module.encoders_at_work():
        assert not set(places(module)) & set(home)
        module.generate(batch)
        module.encode(batch)
    assert visits == ["Codec", "TextEncoder"]
    with pytest.raises(RuntimeError, match="broken"), module.encoders_at_work():
        raise RuntimeError("broken")
    assert places(module) == home


def test_steps_on_encodings_need_no_encoder(visits: list[str]) -> None:
    module, plain, images = parked_module(), small_module(), Miniature().batch(4)
    with torch.inference_mode():  # as validation does; what it leaves must do for training
        module.null_text(module.encode(images)[1])
    encoded, text = module.encode(images)
    module.dropout = plain.dropout = type(module.dropout)(text=0.5)
    visits.clear()
    batch = PairBatch(images.keys, images.epochs, images.prompts, encoded=encoded, text=text)
    losses = [each.losses(batch).total for each in (module, plain)]
    assert torch.equal(*losses)
    losses[0].backward()
    assert not visits


def test_what_is_parked_is_no_part_of_the_module() -> None:
    module, plain = parked_module(), small_module()
    assert {name.partition(".")[0] for name, _ in plain.named_parameters()} == {"architecture", *ENCODERS}
    assert {name.partition(".")[0] for name, _ in module.named_parameters()} == {"architecture"}
    assert not any(name.startswith(ENCODERS) for name in module.state_dict())
    module.to("meta")
    assert module.codec.vae.device == CPU
    assert module.text_encoder.t5.device == CPU


def test_what_comes_in_inference_mode_may_be_trained_with() -> None:
    with torch.inference_mode():
        brought = placement.bring(torch.ones(2), torch.device("meta"))
    assert brought.is_meta
    assert not brought.is_inference()


# --- When.


@pytest.mark.parametrize(
    "choices",
    [
        ("data=miniature",),
        ("data=miniature", f"{SOURCE}.pool=false"),
        ("data=shards", "data.root=unused"),
        ("data=shards", "data.root=unused", f"{SOURCE}.encoded=true"),
        ("data=pretraining", "task=text_to_image", "arch=text_only"),
    ],
)
def test_by_default_they_wait_where_pairs_come_encoded(choices: tuple[str, ...]) -> None:
    assert {choice for each in choices if (choice := each.removeprefix("data=")) != each} <= {
        file.stem for file in (CONF / "data").glob("*.yaml")
    }
    config = compose_train(Path("run"), *choices)
    assert parks_encoders(config) == instantiate(config.data.datamodule.source).encodes
    for wanted in (True, False):
        assert parks_encoders(compose_train(Path("run"), *choices, f"park_encoders={wanted}")) == wanted


def test_a_run_is_the_same_run(tiny_base: Path, tmp_path: Path, visits: list[str]) -> None:
    few = ("logger=csv", "trainer.max_steps=2", "callbacks.probe.samples=2", "callbacks.samples.count=1")
    for wanted in (True, False):
        run_dir = tmp_path / str(wanted)
        train(compose_train(run_dir, *tiny_miniature(tiny_base, *few, f"park_encoders={wanted}")), run_dir)
    assert metrics(tmp_path / "True") == metrics(tmp_path / "False")
    # Training and validation pairs are encoded, then: ceiling, probe and sheet before training; sheet and probe after it.
    assert visits == ["Codec", "TextEncoder"] * 7


@pytest.mark.gpu
def test_the_device_is_free_of_them_between_visits() -> None:
    module = small_module()
    size = sum(each.numel() * each.element_size() for name in ENCODERS for each in getattr(module, name).parameters())
    placement.park(module, ENCODERS, lambda: module.device)
    module.to("cuda")
    batch = Miniature().batch(2).to(module.device)
    before = torch.cuda.memory_allocated()
    with module.encoders_at_work():
        assert torch.cuda.memory_allocated() - before >= size
        encoded, _ = module.encode(batch)
    assert encoded.clean.device.type == "cuda"
    assert torch.cuda.memory_allocated() - before < size / 2
