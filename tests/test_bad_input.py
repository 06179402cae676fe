"""Is bad input refused at once, with a message that names the value and the remedy, and an exit code that is not 0?"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from verbs import SOURCE, compose_train, run, tiny, tiny_miniature

from dsd_lightning.errors import FULL_ERROR, INTERRUPTED, REFUSED, message_for_user, run_verb
from dsd_lightning.shards import ShardWriter, index_shards
from dsd_lightning.training import train

QUICK = ("callbacks=minimal", "logger=csv")


def refusal(run_dir: Path, *overrides: str) -> str:
    """Return what a user is told when `overrides` are refused."""
    with pytest.raises(Exception) as caught:  # noqa: PT011
        train(compose_train(run_dir, *overrides), run_dir)
    message = message_for_user(caught.value)
    assert message is not None, f"not a refusal: {caught.value!r}"
    return message


def member(name: str, data: bytes) -> tuple[tarfile.TarInfo, io.BytesIO]:
    header = tarfile.TarInfo(name)
    header.size = len(data)
    return header, io.BytesIO(data)


def picture(shade: int, size: int = 64) -> bytes:
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
        "reference.png": picture(shade),
        "target.png": picture(255 - shade),
        "json": b'{"caption": "a plain colour", "task": "identity"}',
    }


# --- Names.


@pytest.mark.parametrize(
    ("wrong", "options"), [("arch=perpendicular", ("parallel", "text_only")), ("task=identify", ("identity",))]
)
def test_unknown_group_options_are_refused_with_the_list_of_those_that_exist(
    wrong: str, options: tuple[str, ...]
) -> None:
    refused = run(wrong)
    assert refused.returncode == REFUSED
    assert wrong.replace("=", "/") in refused.stderr
    assert all(option in refused.stderr for option in options)
    assert "Traceback" not in refused.stderr


def test_unknown_keys_are_refused() -> None:
    refused = run("arch.lora.ranks=3")
    assert refused.returncode == REFUSED
    assert "arch.lora.ranks" in refused.stderr
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


def test_unreadable_pictures_are_skipped_and_counted(  # type: ignore[no-untyped-def]
    tiny_base: Path, tmp_path: Path, write, caplog: pytest.LogCaptureFixture
) -> None:
    broken = [sample(40) | {"target.png": b"no picture"}, sample(50) | {"reference.png": picture(50)[:60]}]
    root = write(sample(0), broken[0], sample(10), broken[1], sample(20) | {"target.png": picture(9, size=48)})
    index_shards(root)
    figures_path = tmp_path / "run" / "summary.json"
    # Two pairs a batch and two epochs: every sample is met, damaged ones twice.
    train(compose_train(tmp_path / "run", *shard_run(tiny_base, root, f"{SOURCE}.max_damaged=3")), tmp_path / "run")
    skipped = [record.getMessage() for record in caplog.records if record.getMessage().startswith("skipped")]
    assert len(skipped) == 3
    assert {message.split()[1].rstrip(":") for message in skipped} == {"sample1", "sample3", "sample4"}
    assert "(3 skipped so far)" in skipped[-1]
    assert any("48 x 48" in message and "lower resolution" in message for message in skipped)
    assert '"pairs_seen": 12' in figures_path.read_text()


def test_too_many_unreadable_pictures_end_the_run(tiny_base: Path, tmp_path: Path, write) -> None:  # type: ignore[no-untyped-def]
    root = write(*(sample(shade) | {"target.png": b"no picture"} for shade in (0, 10)), sample(20), sample(30))
    message = refusal(tmp_path / "run", *shard_run(tiny_base, root, f"{SOURCE}.max_damaged=1"))
    assert f"{SOURCE}.max_damaged=1" in message
    assert "2 samples" in message
    assert "dsd_lightning.shards verify" in message


def test_one_damaged_sample_does_not_end_a_run_of_one_pair_a_batch(tiny_base: Path, tmp_path: Path, write) -> None:  # type: ignore[no-untyped-def]
    root = write(sample(0) | {"target.png": b"no picture"}, sample(10), sample(20))
    overrides = ["data.datamodule.batch_size=1", "trainer.max_steps=3"]
    train(compose_train(tmp_path / "run", *shard_run(tiny_base, root, *overrides)), tmp_path / "run")
    assert '"pairs_seen": 3' in (tmp_path / "run" / "summary.json").read_text()


def test_a_set_of_unreadable_pictures_ends_the_run(tiny_base: Path, tmp_path: Path, write) -> None:  # type: ignore[no-untyped-def]
    root = write(*(sample(shade) | {"target.png": b"no picture"} for shade in (0, 10)))
    message = refusal(tmp_path / "run", *shard_run(tiny_base, root))
    assert "none of 2 samples" in message
    assert "no picture" in message or "picture" in message


# --- Sizes.


@pytest.mark.parametrize(
    ("override", "size"),
    [(f"{SOURCE}.resolution=[60,64]", "60 x 64"), (f"{SOURCE}.buckets=[[64,64],[64,72]]", "64 x 72")],
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
    assert "multiples of 16" in message
    assert "nearest is 64 x 64" in message


def test_pictures_that_are_all_too_small_are_refused(tiny_base: Path, tmp_path: Path, write) -> None:  # type: ignore[no-untyped-def]
    root = write(sample(0), sample(10))
    message = refusal(tmp_path / "run", *shard_run(tiny_base, root, f"{SOURCE}.resolution=[128,128]"))
    assert "64 x 64" in message
    assert "128 x 128" in message
    message = refusal(tmp_path / "run", *shard_run(tiny_base, root, f"{SOURCE}.buckets=[[128,128]]"))
    assert "data.root" in message


# --- Checkpoints.


@pytest.fixture(scope="module")
def checkpoint(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint of a short run of arch=parallel with rank 2."""
    folder = tmp_path_factory.mktemp("finished")
    train(compose_train(folder, *tiny_miniature(tiny_base, "trainer.max_steps=1", *QUICK)), folder)
    return folder / "checkpoints" / "step_00000001"


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        ("arch=text_only", ("arch=parallel", "text_only")),
        ("arch.lora.rank=4", ("arch.lora.rank=2", "4")),
        ("arch.lora=null", ("arch.lora",)),
        ("base=tiny_untrained", ("transformer num_layers=1", "2", "another base")),
    ],
)
@pytest.mark.parametrize("key", ["ckpt", "init_from"])
def test_a_checkpoint_of_another_architecture_rank_or_base_is_refused_before_the_data_is_encoded(
    tiny_base: Path, tmp_path: Path, checkpoint: Path, override: str, fragments: tuple[str, ...], key: str
) -> None:
    # So many pairs would take hours to encode.
    overrides = [f"{key}={checkpoint}", f"{SOURCE}.pairs=10000000", *QUICK]
    lora = ["arch.lora.rank=2"] if "lora" not in override else []
    message = refusal(tmp_path, f"base.model.path={tiny_base}", "trainer.accelerator=cpu", *lora, override, *overrides)
    for fragment in fragments:
        assert fragment in message
    assert "train anew" in message or "use the" in message


def test_ckpt_last_without_an_earlier_run_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    message = refusal(tmp_path, *tiny_miniature(tiny_base, "ckpt=last", *QUICK))
    assert "ckpt=last" in message
    assert str(tmp_path / "checkpoints") in message
    assert "ckpt=null" in message


def test_ckpt_last_of_a_command_that_never_ran_is_refused() -> None:
    refused = run("ckpt=last", "seed=987654321")
    assert refused.returncode == REFUSED
    assert "was started with the same overrides" in refused.stderr
    assert "hydra.run.dir=FOLDER" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_folder_that_is_no_checkpoint_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    assert "no such checkpoint" in refusal(tmp_path, *tiny_miniature(tiny_base, f"ckpt={tmp_path}/nowhere", *QUICK))
    assert "adapter.json" in refusal(tmp_path, *tiny_miniature(tiny_base, f"ckpt={tmp_path}", *QUICK))
    assert "adapter.json" in refusal(tmp_path, *tiny_miniature(tiny_base, f"init_from={tmp_path}", *QUICK))


def test_a_damaged_checkpoint_is_refused(tiny_base: Path, tmp_path: Path, checkpoint: Path) -> None:
    damaged = tmp_path / "step_00000001"
    shutil.copytree(checkpoint, damaged)
    state = damaged / "training_state.pt"
    state.write_bytes(state.read_bytes()[:-1])
    assert str(state) in refusal(tmp_path, *tiny_miniature(tiny_base, f"ckpt={damaged}", *QUICK))


def test_a_new_run_in_the_folder_of_an_old_one_is_refused(tiny_base: Path, checkpoint: Path) -> None:
    message = refusal(checkpoint.parents[1], *tiny_miniature(tiny_base, *QUICK))
    assert str(checkpoint.parent) in message
    assert "ckpt=last" in message


# --- Places that cannot be written. (A file stands where a folder should be: root may write anywhere else.)


def test_a_run_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused = run(f"hydra.run.dir={tmp_path / 'file' / 'run'}")
    assert refused.returncode == REFUSED
    assert str(tmp_path / "file") in refused.stderr
    assert "hydra.run.dir=" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_checkpoint_folder_that_cannot_be_written_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").touch()
    message = refusal(tmp_path, *tiny_miniature(tiny_base, *QUICK))
    assert f"cannot write checkpoints to {tmp_path / 'checkpoints'}" in message
    assert "hydra.run.dir=" in message


def test_metrics_that_cannot_be_written_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").mkdir()
    message = refusal(tmp_path, *tiny_miniature(tiny_base, *QUICK))
    assert "metrics.csv" in message


# --- W&B.


@pytest.mark.slow
def test_an_unavailable_wandb_is_told_with_the_way_around_it(tiny_base: Path, tmp_path: Path) -> None:
    # In a process of its own: W&B remembers its server for the life of a process, and would refuse later tests too.
    overrides = ["logger=default", "logger.wandb.settings.init_timeout=2", "callbacks=minimal"]
    refused = run(
        *tiny_miniature(tiny_base, *overrides, f"hydra.run.dir={tmp_path / 'run'}"),
        WANDB_API_KEY="0" * 40,
        WANDB_BASE_URL="http://127.0.0.1:9",  # nobody listens there
        WANDB_MODE=None,
    )
    assert refused.returncode == REFUSED, refused.stderr
    for fragment in ("W&B is not available", "logger.wandb.offline=true", "logger=csv"):
        assert fragment in refused.stderr


# --- How errors are told.


def test_a_refusal_ends_with_its_message_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FULL_ERROR, "0")
    with pytest.raises(SystemExit) as ended:
        run_verb(train_wrong_rank)
    assert ended.value.code == REFUSED
    told = capsys.readouterr().err
    assert "error: arch.lora.rank=0" in told
    assert "Traceback" not in told


def train_wrong_rank() -> None:
    from dsd_lightning.flux.lora import Lora

    Lora(rank=0, targets="x")


def test_the_traceback_is_there_for_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FULL_ERROR, "1")
    with pytest.raises(ValueError, match=r"arch\.lora\.rank=0"):
        run_verb(train_wrong_rank)


def test_a_programming_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FULL_ERROR, "0")
    for fail in (
        lambda: torch.zeros(2).reshape(3),
        lambda: torch.empty(0)[1],
        lambda: int("x"),
        lambda: Path("nowhere").read_text(),
    ):
        with pytest.raises((RuntimeError, IndexError, ValueError, OSError)):
            run_verb(fail)  # type: ignore[arg-type]


def test_ctrl_c_ends_with_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FULL_ERROR, "0")

    def stop() -> None:
        raise KeyboardInterrupt

    def stop_as_lightning_does() -> None:
        try:
            stop()
        except KeyboardInterrupt:
            raise SystemExit(1)  # noqa: B904

    for main in (stop, stop_as_lightning_does):
        with pytest.raises(SystemExit) as ended:
            run_verb(main)
        assert ended.value.code == INTERRUPTED
    assert "Traceback" not in capsys.readouterr().err
