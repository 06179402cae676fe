"""Every case that was reported from public trackers, as its report says; `tests/data/reported/` holds the inputs.

Folders and tests have the report's number. A run that a report needs is done in `tests/training/test_resumed_settings.py`
for 04, and 19, a command started in another folder, in `tests/planning/test_planning.py` and `tests/runs/`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from safetensors.torch import load_file, save_file
from support.commands import compose_train, environment, metrics, tiny_miniature
from support.processes import prepared
from support.refusals import QUICK, refusal

from dsd_lightning.checkpoints.official import LORA_FILE
from dsd_lightning.cli.errors import REFUSED, message_for_user
from dsd_lightning.distillation.rules import accepted, read_verdict
from dsd_lightning.distillation.stages.captions import sample
from dsd_lightning.evaluation.samples.result_folder import Samples
from dsd_lightning.generation.command import main as generate
from dsd_lightning.packing.__main__ import main as pack
from dsd_lightning.shards import PairShards
from dsd_lightning.training.run import train

DATA = Path(__file__).parents[1] / "data"
GOLDEN = DATA / "golden"
IMAGE = DATA / "reported" / "08_jobs_not_utf8" / "a.png"
HUGE = "x" * 140_000
"""A cell beyond csv's limit."""


@pytest.fixture
def case(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that copies a case's folder to where a command may write."""
    return lambda name: Path(shutil.copytree(DATA / "reported" / name, tmp_path / name))


def refused(command: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """Return the message of a command that refuses its input."""
    assert command(list(flags)) == REFUSED
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


def evaluated(tmp_path: Path, *overrides: str) -> Any:
    """Return the benchmark that `evaluate.py` would read."""
    return instantiate(compose_train(tmp_path, *overrides, name="evaluate").benchmark)


def captions(tmp_path: Path, file: Path) -> list[Any]:
    """Return the captions that `distill.py` would draw."""
    return sample(
        instantiate(compose_train(tmp_path, "captions=files", f"captions.path={file}", name="distill").captions), 10, 0
    )


def message_of(call: Callable[[], Any]) -> str:
    """Return the message that a user gets of a call that refuses its input."""
    with pytest.raises(Exception) as caught:  # noqa: PT011
        call()
    message = message_for_user(caught.value)
    assert message is not None, f"not a refusal: {caught.value!r}"
    return message


def test_01_commas_without_quotes_are_refused_by_row(
    case: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = case("01_csv_unquoted_commas")
    packed = refused(pack, capsys, str(folder / "unquoted.csv"), str(tmp_path / "out"), "--task", "identity")
    assert "unquoted.csv, row 1 has 6 cells, and the header has 3" in packed
    assert not (tmp_path / "out").exists()
    table = f"benchmark.file={folder / 't_unq.csv'}"
    assert "t_unq.csv, row 1 has 4 cells" in message_of(lambda: evaluated(tmp_path, "benchmark=table", table))
    assert "unq2.csv, row 1 has 4 cells" in message_of(lambda: captions(tmp_path, folder / "unq2.csv"))


def test_03_quotes_and_cells_that_csv_cannot_read_are_refused_by_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "openquote.csv").write_text('image,reference,caption\na.png,b.png,"red\n')
    (tmp_path / "jobs.csv").write_text(f"image_path,text,output_path\na.png,{HUGE},x.png\n")
    (tmp_path / "huge.csv").write_text(f"caption\n{HUGE}\n")
    packed = refused(pack, capsys, str(tmp_path / "openquote.csv"), str(tmp_path / "out"), "--task", "identity")
    assert "openquote.csv, row 1: unexpected end of data" in packed
    assert "jobs.csv, row 1: field larger" in refused(generate, capsys, "--jobs", str(tmp_path / "jobs.csv"))
    assert "huge.csv, row 1: field larger" in message_of(lambda: captions(tmp_path, tmp_path / "huge.csv"))


@pytest.mark.slow
def test_04_learning_rates_of_a_resumed_run_apply_and_another_optimizer_is_refused(
    tiny_base: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    train(compose_train(first, *tiny_miniature(tiny_base, *QUICK, "trainer.max_steps=2")), first)
    checkpoint = f"ckpt={first / 'checkpoints' / 'step_00000002'}"
    rates = ["optimizer.lr=0.0005", "optimizer.muon_lr=0.0005", "schedule.num_warmup_steps=0"]
    train(compose_train(second, *tiny_miniature(tiny_base, *QUICK, *rates, checkpoint)), second)
    shown = [float(row["optimizer/lr"]) for row in metrics(second) if row.get("optimizer/lr")]
    assert shown
    assert max(shown) <= 0.0005
    other = tmp_path / "other"
    assert "optimizer._target_ was" in refusal(other, *tiny_miniature(tiny_base, *QUICK, "optimizer=adamw", checkpoint))
    assert not (other / "config.yaml").exists()


def test_06_texts_of_a_benchmark_are_read_or_refused_by_file(case: Callable[[str], Path], tmp_path: Path) -> None:
    folder = case("06_evaluate_text_files")

    def read(kind: str, name: str) -> Any:
        return evaluated(tmp_path, f"benchmark={kind}", f"benchmark.folder={folder / name}")

    for name in ("bom", "ds"):
        subjects = read("dreambenchpp", name).subjects
        assert [subject.name.rsplit("_", 1)[1] for subject in subjects] == ["cat", "cat"]
        assert not any("\ufeff" in prompt.text for subject in subjects for prompt in subject.prompts)
    for kind, name, file in (("dreambenchpp", "cp1252", "00.txt"), ("folder", "fb_cp", "a.txt")):
        message = message_of(lambda kind=kind, name=name: read(kind, name))  # type: ignore[misc]
        assert f"{file} is not UTF-8" in message
        assert "iconv -f WINDOWS-1252" in message
    texts = {name: [prompt.text for prompt in read("folder", name).subjects[0].prompts] for name in ("fb", "fb_hidden")}
    assert texts == {"fb": ["a cat on a hill", "a cat in a hat"], "fb_hidden": ["a cat"]}


def test_07_endings_in_upper_case_are_read(case: Callable[[str], Path], tmp_path: Path) -> None:
    folder = case("07_evaluate_uppercase_extension")
    benchmark = evaluated(tmp_path, "benchmark=dreambenchpp", f"benchmark.folder={folder / 'upper'}")
    samples = Samples(folder / "s_upper")
    images = [samples.image(each) for each in benchmark.cases()]
    assert [None if image is None else image.name for image in images] == ["0_0.JPG", "1_0.JPG"] * 2


@pytest.mark.parametrize(("name", "encoding"), [("cp1252.csv", "WINDOWS-1252"), ("utf16.csv", "UTF-16")])
def test_08_jobs_in_another_encoding_are_refused_by_file(
    case: Callable[[str], Path], capsys: pytest.CaptureFixture[str], name: str, encoding: str
) -> None:
    message = refused(generate, capsys, "--jobs", str(case("08_jobs_not_utf8") / name))
    assert f"{name} is not UTF-8" in message
    assert f"iconv -f {encoding}" in message


def test_10_a_confidence_below_one_is_a_share() -> None:
    verdict = read_verdict("I see no difference.\nConfidence: 0.95\nYes")
    assert verdict is not None
    assert (verdict.same, verdict.confidence) == (True, 0.95)
    assert accepted(verdict.same, verdict.confidence, 0.8)


def test_12_values_that_are_not_finite_give_no_black_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.png"
    asked = ["--image_path", str(IMAGE), "--text", "a hat", "--output_path", str(out), "--steps", "4"]
    assert "must be finite" in refused(generate, capsys, *asked, "--sheet", "nan,inf/1")
    factors = load_file(GOLDEN / "tiny_official" / LORA_FILE)
    name = next(iter(factors))
    save_file(factors | {name: torch.full_like(factors[name], float("nan"))}, tmp_path / "nan.safetensors")
    official = ["--base_path", str(GOLDEN / "tiny_flux_dev")]
    official += ["--model_path", str(GOLDEN / "tiny_official" / "transformer")]
    message = refused(generate, capsys, *asked, *official, "--lora_path", str(tmp_path / "nan.safetensors"))
    assert "nan.safetensors" in message
    assert "finite" in message or "NaN" in message
    assert not out.exists()


def test_14_linked_subfolders_are_read(case: Callable[[str], Path], tmp_path: Path) -> None:
    folder = case("14_linked_folder")
    for side in ("target", "reference"):
        (folder / "symd2" / side / "more").symlink_to(folder / "other" / side)
    assert pack([str(folder / "symd2"), str(tmp_path / "out"), "--task", "identity"]) == 0
    assert len(PairShards(tmp_path / "out")) == 2


@pytest.mark.parametrize(
    "override",
    ["seed=-1", "seed=null", "seed=abc", "optimizer.lr=-1", "optimizer.lr=abc", "trainer.max_steps=1e4"],
)
def test_16_wrong_values_are_refused_with_their_name(tmp_path: Path, override: str) -> None:
    message = refusal(tmp_path, override)
    assert override.partition("=")[0] in message
    assert "must be" in message


def test_16_a_device_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--image_path", str(IMAGE), "--text", "a hat", "--output_path", str(tmp_path / "out.png")]
    assert "--device=gpu0 is no device" in refused(generate, capsys, *asked, "--device", "gpu0")


def mounts() -> bool:
    """Return whether this process may mount a file system of its own."""
    tried = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return (
        shutil.which("unshare") is not None and subprocess.run(tried, capture_output=True, check=False).returncode == 0
    )


ON_A_SMALL_DISK = """
import ctypes, os, runpy, subprocess, sys

place, size, *sys.argv = sys.argv[1:]
user, group = os.getuid(), os.getgid()
assert ctypes.CDLL(None).unshare(0x10000000 | 0x20000) == 0, "as `unshare --user --mount`"
for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
    with open(f"/proc/self/{name}", "w") as file:
        file.write(text)
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=True)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a script that sees a disk of a given size in a given folder."""


@pytest.mark.slow
@pytest.mark.skipif(not mounts(), reason="needs the right to mount a file system")
# Full at once; full at the second checkpoint, of 110 kB each.
@pytest.mark.parametrize("size", [pytest.param("4k", marks=pytest.mark.long), "180k"])
def test_17_a_full_disk_is_one_sentence(tiny_base: Path, tmp_path: Path, size: str) -> None:
    place = tmp_path / "full"
    place.mkdir()
    settings = tiny_miniature(
        tiny_base, *QUICK, "callbacks.checkpoint.every_n_steps=1", f"hydra.run.dir={place / 'run'}"
    )
    given = [sys.executable, "-c", ON_A_SMALL_DISK, str(place), size, "train.py", *settings]
    done = prepared.run(given, env=environment())
    assert done.returncode == REFUSED, done.stderr
    assert "no space is left on" in done.stderr
    assert "None:" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sizes.csv", "nearest is 96 x 96"),
        ("floatseed.jsonl", "7.9"),
        ("listtext.jsonl", "holds a list (['red', 'blue']); text is needed"),
    ],
)
def test_18_values_of_jobs_are_refused_by_row_before_the_first_image(
    case: Callable[[str], Path], capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    folder = case("18_jobs_values")
    assert message in refused(generate, capsys, "--jobs", str(folder / name), "--steps", "1", "--device", "cpu")
    assert not any((folder / name).exists() for name in ("sz", "fl", "li"))


@pytest.mark.slow
def test_18_a_seed_of_7_0_is_7(case: Callable[[str], Path]) -> None:
    folder = case("18_jobs_values")
    assert generate(["--jobs", str(folder / "floatseed.csv"), "--steps", "1", "--device", "cpu", "--size", "32"]) == 0
    assert (folder / "x" / "1.png").is_file()
