"""Bad input is refused at once, with a message that names the value and the remedy, and exit code 2."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from support.commands import SOURCE, compose_train, run, tiny
from support.refusals import QUICK, refusal

from dsd_lightning.cli.errors import REFUSED
from dsd_lightning.shards import ShardWriter, index_shards
from dsd_lightning.training.run import train


def member(name: str, data: bytes) -> tuple[tarfile.TarInfo, io.BytesIO]:
    header = tarfile.TarInfo(name)
    header.size = len(data)
    return header, io.BytesIO(data)


def image(shade: int, size: int = 64) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (shade, 255 - shade, 128)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def write(tmp_path: Path) -> Iterator[object]:
    """Return a function that writes a tar of samples, given as members by suffix, and returns its folder."""

    def write(*samples: dict[str, bytes]) -> Path:
        root = tmp_path / "shards"
        root.mkdir()
        with tarfile.open(root / "pairs-000000.tar", "w") as tar:
            for number, sample in enumerate(samples):
                for suffix, data in sample.items():
                    tar.addfile(*member(f"sample{number}.{suffix}", data))
        return root

    return write


def sample(shade: int) -> dict[str, bytes]:
    return {
        "reference.png": image(shade),
        "target.png": image(255 - shade),
        "json": b'{"caption": "a plain colour", "task": "identity"}',
    }


# --- Names.


@pytest.mark.parametrize(
    ("wrong", "fragments"),
    [
        ("task=identify", ("task/identify", "identity", "relighting")),
        ("arch.lora.ranks=3", ("arch.lora.ranks",)),
    ],
)
def test_unknown_names_are_refused_with_the_list_of_those_that_exist(
    tmp_path: Path, wrong: str, fragments: tuple[str, ...]
) -> None:
    message = refusal(tmp_path, wrong)
    assert all(fragment in message for fragment in fragments)


def test_the_command_ends_with_the_message_and_no_traceback() -> None:
    refused = run("arch=perpendicular")
    assert refused.returncode == REFUSED
    assert all(fragment in refused.stderr for fragment in ("arch/perpendicular", "parallel", "text_only"))
    assert "Traceback" not in refused.stderr


# --- The base.


@pytest.mark.parametrize("parts", [("vae",), ("tokenizer_2", "transformer")])
def test_a_base_folder_that_lacks_a_part_is_refused(tiny_base: Path, tmp_path: Path, parts: tuple[str, ...]) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base, symlinks=True)
    for part in parts:
        (shutil.rmtree if not (base / part).is_symlink() else os.unlink)(base / part)
    message = refusal(tmp_path / "run", *tiny(base, *QUICK))
    assert f"base.model.path='{base}' lacks {', '.join(parts)}" in message
    assert "scheduler, text_encoder" in message


def test_a_base_whose_weights_are_missing_or_damaged_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base, symlinks=True)
    weights = base / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    message = refusal(tmp_path / "run", *tiny(base, *QUICK))
    assert "'transformer'" in message
    assert str(base) in message
    weights.unlink()
    message = refusal(tmp_path / "run", *tiny(base, *QUICK))
    assert "'transformer'" in message
    assert str(base) in message


def test_a_base_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, *tiny(tmp_path / "nowhere", *QUICK))
    assert f"{tmp_path}/nowhere" in message
    assert "no such folder" in message


# --- Shards.


def test_a_folder_without_shards_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for root in ("nowhere", "empty"):
        message = refusal(tmp_path / "run", *tiny(tiny_base, "data=shards", f"data.root={tmp_path / root}", *QUICK))
        assert str(tmp_path / root) in message


def test_data_root_must_be_given(tiny_base: Path, tmp_path: Path) -> None:
    assert "data.root=FOLDER" in refusal(tmp_path, *tiny(tiny_base, "data=shards", *QUICK))


@pytest.mark.parametrize("missing", ["reference.png", "target.png", "json"])
def test_a_sample_that_lacks_a_key_is_refused(tiny_base: Path, tmp_path: Path, write, missing: str) -> None:  # type: ignore[no-untyped-def]
    lacking = {suffix: data for suffix, data in sample(10).items() if suffix != missing}
    root = write(sample(0), lacking, sample(20))
    message = refusal(tmp_path / "run", *tiny(tiny_base, "data=shards", f"data.root={root}", *QUICK))
    assert "sample1" in message
    assert "pairs-000000.tar" in message
    assert "remove the sample" in message


def test_shards_of_another_task_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "shards", task="depth", resolution=64) as writer:
        writer.write("a", Image.new("RGB", (64, 64)), Image.new("RGB", (64, 64)), "black")
    message = refusal(tmp_path / "run", *tiny(tiny_base, "data=shards", f"data.root={tmp_path / 'shards'}", *QUICK))
    assert "'depth'" in message
    assert "'identity'" in message


def shard_run(tiny_base: Path, root: Path, *overrides: str) -> list[str]:
    return tiny(
        tiny_base,
        "data=shards",
        f"data.root={root}",
        f"{SOURCE}.validation_pairs=0",
        f"{SOURCE}.workers=0",
        "data.datamodule.batch_size=2",
        "trainer.max_steps=6",
        *QUICK,
        *overrides,
    )


def test_unreadable_images_are_skipped_and_counted(  # type: ignore[no-untyped-def]
    tiny_base: Path, tmp_path: Path, write, caplog: pytest.LogCaptureFixture
) -> None:
    broken = [sample(40) | {"target.png": b"no image"}, sample(50) | {"reference.png": image(50)[:60]}]
    root = write(sample(0), broken[0], sample(10), broken[1], sample(20) | {"target.png": image(9, size=48)})
    index_shards(root)
    metrics_path = tmp_path / "run" / "summary.json"
    # Two pairs a batch and two epochs: every sample is read, damaged ones twice.
    train(compose_train(tmp_path / "run", *shard_run(tiny_base, root, f"{SOURCE}.max_damaged=3")), tmp_path / "run")
    skipped = [record.getMessage() for record in caplog.records if record.getMessage().startswith("skipped")]
    assert len(skipped) == 3
    assert {message.split()[1].rstrip(":") for message in skipped} == {"sample1", "sample3", "sample4"}
    assert "(3 skipped so far)" in skipped[-1]
    assert any("48 x 48" in message and "lower resolution" in message for message in skipped)
    assert '"pairs_seen": 12' in metrics_path.read_text()


def test_too_many_unreadable_images_end_the_run(tiny_base: Path, tmp_path: Path, write) -> None:  # type: ignore[no-untyped-def]
    root = write(*(sample(shade) | {"target.png": b"no image"} for shade in (0, 10)), sample(20), sample(30))
    message = refusal(tmp_path / "run", *shard_run(tiny_base, root, f"{SOURCE}.max_damaged=1"))
    assert f"{SOURCE}.max_damaged=1" in message
    assert "2 samples" in message
    assert "dsd_lightning.shards verify" in message


def test_one_damaged_sample_does_not_end_a_run_of_one_pair_a_batch(tiny_base: Path, tmp_path: Path, write) -> None:  # type: ignore[no-untyped-def]
    root = write(sample(0) | {"target.png": b"no image"}, sample(10), sample(20))
    overrides = ["data.datamodule.batch_size=1", "trainer.max_steps=3"]
    train(compose_train(tmp_path / "run", *shard_run(tiny_base, root, *overrides)), tmp_path / "run")
    assert '"pairs_seen": 3' in (tmp_path / "run" / "summary.json").read_text()


def test_a_set_of_unreadable_images_ends_the_run(tiny_base: Path, tmp_path: Path, write) -> None:  # type: ignore[no-untyped-def]
    root = write(*(sample(shade) | {"target.png": b"no image"} for shade in (0, 10)))
    message = refusal(tmp_path / "run", *shard_run(tiny_base, root))
    assert "none of 2 samples" in message
    assert "no image" in message or "image" in message


# --- Sizes.


@pytest.mark.parametrize(
    ("override", "size"),
    [(f"{SOURCE}.resolution=[60,64]", "60 x 64"), (f"{SOURCE}.buckets=[[64,64],[64,68]]", "64 x 68")],
)
def test_a_size_that_the_vae_cannot_pack_is_refused_before_any_work(
    tiny_base: Path,
    tmp_path: Path,
    write,
    override: str,
    size: str,  # type: ignore[no-untyped-def]
) -> None:
    # The shards do not even exist: the size is refused first.
    message = refusal(tmp_path / "run", *shard_run(tiny_base, tmp_path / "nowhere", override))
    assert f"resolution {size} cannot be packed" in message
    assert "multiples of 8 pixels" in message
    assert "nearest is 64 x 64" in message


def test_images_that_are_all_too_small_are_refused(tiny_base: Path, tmp_path: Path, write) -> None:  # type: ignore[no-untyped-def]
    root = write(sample(0), sample(10))
    message = refusal(tmp_path / "run", *shard_run(tiny_base, root, f"{SOURCE}.resolution=[128,128]"))
    assert "64 x 64" in message
    assert "128 x 128" in message
    message = refusal(tmp_path / "run", *shard_run(tiny_base, root, f"{SOURCE}.buckets=[[128,128]]"))
    assert "data.root" in message
