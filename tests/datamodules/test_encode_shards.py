"""Stored encodings equal those of training, are refused under another key, and are computed only once."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from skimage import data as photographs
from support.commands import SOURCE, command, compose_train, environment, run, tiny
from support.processes import prepared
from torch.testing import assert_close

from datamodules.base import DamagedDataError, PairData
from datamodules.commands.encode_shards import encode_shards
from datamodules.encodings import named_embeddings, text_of
from datamodules.identity import IdentityPairs
from datamodules.samples import Sample
from datamodules.sources.shards import Shards
from dsd_lightning.module import DiffusionSelfDistillation
from dsd_lightning.pairs import Task, TextEmbeddings
from dsd_lightning.randomness import normal
from dsd_lightning.shards import PairShards, ShardError, ShardIndex, ShardWriter, verify_shards
from dsd_lightning.training.build import build_module
from dsd_lightning.training.run import train

MODULE = ("-m", "datamodules.commands.encode_shards")
PAIRS = 7
TASK = Task("identity", False, {"reference": 0.5, "target": 1.0}, {"caption": 0.5, "instruction": 0.5})


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return shards of photographs in two shapes, some with an instruction."""
    root = tmp_path_factory.mktemp("images") / "shards"
    astronaut = Image.fromarray(photographs.astronaut())
    with ShardWriter(root, task="identity", resolution=None) as writer:
        for number in range(PAIRS):
            target = astronaut.resize((130, 90) if number % 2 else (90, 110))
            instruction = "let her smile" if number % 3 else None
            writer.write(f"a-{number}", astronaut.resize((100, 100)), target, f"astronaut {number}", instruction)
    return root


def arguments_of(base: Path, root: Path, out: Path, *overrides: str) -> list[str]:
    kinds = ["task.relation.captions.caption=0.5", "task.relation.captions.instruction=0.5"]
    return [f"base.model.path={base}", f"root={root}", f"out={out}", "workers=0", "batch_size=2", *kinds, *overrides]


def encode(base: Path, root: Path, out: Path, *overrides: str) -> ShardIndex:
    return encode_shards(compose_train(out, *arguments_of(base, root, out, *overrides), name="encode_shards"))


def module_of(base: Path, run_dir: Path, *overrides: str) -> DiffusionSelfDistillation:
    return build_module(compose_train(run_dir, *tiny(base, *overrides)))


def samples_of(root: Path, module: DiffusionSelfDistillation, **changes: Any) -> Any:
    settings: dict[str, Any] = {"resolution": (64, 64), "buckets": None, "validation_pairs": 0, "crop": "center"}
    source = Shards(str(root), **(settings | {"workers": 0, "max_damaged": 0, "verify": "size"} | changes))
    data: PairData = IdentityPairs(TASK, source, 2, seed=0)
    data.trainer = SimpleNamespace(lightning_module=module, received_sigterm=False)  # type: ignore[assignment]
    return source.training(data)


@pytest.mark.parametrize(
    ("arch", "buckets"),
    [("parallel", None), ("parallel", [(64, 64), (64, 96)]), ("concat", [(64, 64), (64, 96)]), ("ip_adapter", None)],
)
def test_they_equal_the_modules_encodings_of_the_images(
    images: Path, tiny_base: Path, tmp_path: Path, arch: str, buckets: Any
) -> None:
    setting = "null" if buckets is None else str([list(size) for size in buckets])
    index = encode(tiny_base, images, tmp_path / "out", f"arch={arch}", f"buckets={setting}")
    assert index.samples == PAIRS
    assert verify_shards(tmp_path / "out") == []
    assert not Path(f"{tmp_path}/out.waiting").exists()
    factors = ["+arch/lora=all_linear"] if arch == "ip_adapter" else []  # which it has not by default
    module = module_of(tiny_base, tmp_path, f"arch={arch}", *factors)
    stored = samples_of(tmp_path / "out", module, encoded=True, buckets=buckets)
    from_images = samples_of(images, module, buckets=buckets)
    assert len(stored) == len(from_images) == PAIRS
    places = {stored.shards.keys[position]: index for index, position in enumerate(stored.positions)}
    prompts = set()
    for epoch in (0, 1):
        for index_of_image in range(PAIRS):
            with_images: Sample = from_images[epoch, index_of_image]
            sample: Sample = stored[epoch, places[with_images.key]]
            assert (sample.key, sample.prompt, sample.target) == (with_images.key, with_images.prompt, None)
            assert sample.encoded is not None
            assert sample.text is not None
            assert with_images.target is not None
            assert with_images.reference is not None
            expected = module.architecture.encode(with_images.reference[None], with_images.target[None], module.codec)
            # Batches of other sizes round otherwise.
            assert_close(sample.encoded.clean, expected.clean, rtol=0, atol=1e-4)
            assert_close(dict(sample.encoded.reference), dict(expected.reference), rtol=0, atol=1e-4)
            text = module.text_encoder.encode([sample.prompt])
            assert_close(sample.text.sequence, text.sequence, rtol=0, atol=1e-4)
            assert_close(sample.text.pooled, text.pooled, rtol=0, atol=1e-4)
            prompts.add(sample.prompt)
    assert "let her smile" in prompts
    assert any(prompt.startswith("astronaut") for prompt in prompts)


def test_others_are_refused(images: Path, tiny_base: Path, tmp_path: Path) -> None:
    encode(tiny_base, images, tmp_path / "out")
    module = module_of(tiny_base, tmp_path, "arch=parallel")
    for changes in ({"resolution": (64, 96)}, {"buckets": [(64, 64), (64, 96)]}):
        with pytest.raises(ShardError, match="encode the set again"):
            samples_of(tmp_path / "out", module, encoded=True, **changes)
    with pytest.raises(ShardError, match="encode the set again"):
        samples_of(tmp_path / "out", module_of(tiny_base, tmp_path, "arch=concat"), encoded=True)
    with pytest.raises(ShardError, match="no encodings"):
        samples_of(images, module, encoded=True)
    with torch.no_grad():
        module.text_encoder.t5.get_input_embeddings().weight.add_(normal((1,), "change"))
    with pytest.raises(ShardError, match="encode the set again"):
        samples_of(tmp_path / "out", module, encoded=True)


def test_captions_of_a_kind_that_was_not_encoded_are_refused_by_name() -> None:
    stored = named_embeddings({"caption": TextEmbeddings(torch.zeros(1, 2, 3), torch.zeros(1, 3))})
    one = {name: value[0] for name, value in stored.items()}
    assert text_of(one, "caption").sequence.shape == (1, 2, 3)
    with pytest.raises(ValueError, match=r"of kind caption, not 'instruction': encode it again"):
        text_of(one, "instruction")


def test_bad_input_is_refused(images: Path, tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_size=0 must be a whole number of at least 1"):
        encode(tiny_base, images, tmp_path / "a", "batch_size=0")
    with pytest.raises(ValueError, match="cannot be packed"):
        encode(tiny_base, images, tmp_path / "a", "resolution=[60,64]")
    with pytest.raises(ShardError, match="holds a set of shards already"):
        encode(tiny_base, images, images)
    with pytest.raises(DamagedDataError, match="more than max_damaged=1"):
        encode(tiny_base, images, tmp_path / "a", "resolution=[96,128]", "max_damaged=1")
    assert not (tmp_path / "a" / "index.json").exists()


def test_pairs_left_out_before_a_kill_count_after_it(images: Path, tiny_base: Path, tmp_path: Path) -> None:
    out, limits = tmp_path / "out", ("resolution=[80,96]", "max_damaged=3")
    with pytest.raises(DamagedDataError, match="4 pairs cannot be used, more than max_damaged=3"):
        encode(tiny_base, images, out, *limits)
    with pytest.raises(DamagedDataError, match="4 pairs cannot be used"):
        encode(tiny_base, images, out, *limits)
    index = encode(tiny_base, images, out, "resolution=[80,96]")
    assert (index.samples, index.rejections) == (PAIRS // 2, {"unusable": 4})


@pytest.mark.long
def test_a_killed_command_goes_on_and_the_set_trains(images: Path, tiny_base: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    encode(tiny_base, images, whole)
    arguments = arguments_of(tiny_base, images, killed, "batch_size=1")
    process = prepared.start(command(*arguments, module=MODULE), env=environment())
    try:
        while len(list(Path(f"{killed}.waiting").glob("*/*.safetensors"))) < 2:
            assert process.poll() is None
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.wait()
    assert not (killed / "index.json").exists()
    again = run(*arguments, module=MODULE)
    assert again.returncode == 0, again.stderr
    assert f"of {PAIRS} batches are encoded already" in again.stdout
    assert sorted(PairShards(killed).keys) == sorted(PairShards(whole).keys)
    choices = (
        "arch=parallel",
        "task=identity",
        "data=shards",
        f"data.root={killed}",
        "callbacks=minimal",
        "logger=csv",
    )
    few = ("trainer.max_steps=2", f"{SOURCE}.encoded=true", f"{SOURCE}.workers=1")
    train(compose_train(tmp_path / "run", *tiny(tiny_base, *choices, *few)), tmp_path / "run")
    assert (tmp_path / "run" / "summary.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("base", ["tiny", "flux_dev"])
def test_the_commands_configuration_resolves_in_a_process_of_its_own(base: str) -> None:
    result = run(f"base={base}", "root=FOLDER", "out=FOLDER", "--cfg", "job", "--resolve", module=MODULE)
    assert result.returncode == 0, result.stderr
    assert "resolution:" in result.stdout
