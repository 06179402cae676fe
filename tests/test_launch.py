"""The sample SLURM script loses nothing over requeues; the scripts of five commands end as an image or a report."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rehearsal_server import RehearsalServer
from safetensors.torch import load_file
from support.commands import ROOT, SOURCE, compose_train, environment, tiny, tiny_miniature
from support.llm.own_image_captions import DRAWINGS, answer
from support.processes.shell_python import ShellPython

from dsd_lightning.checkpoints.folder_io import list_steps
from dsd_lightning.files.rows import Table
from dsd_lightning.shards import PairShards
from dsd_lightning.training.run import train

STEPS, STOPS = 40, 3

SRUN = """#!/bin/bash
# Runs the command as one task. As the real one, it answers SIGTERM by killing the task with SIGKILL.
while [[ "$1" == --* ]]; do shift; done
"$@" &
task=$!
echo "$task" > "$TASK"
trap 'kill -KILL "$task"' TERM
wait "$task"
code=$?
while kill -0 "$task" 2> /dev/null; do wait "$task"; code=$?; done
exit "$code"
"""

SCANCEL = """#!/bin/bash
# Signals the steps of the job, and neither srun nor the batch script.
[[ "$1" == --signal=TERM ]] && kill -TERM "$(cat "$TASK")"
"""

SCONTROL = """#!/bin/bash
echo "$@" >> "$REQUEUED"
"""


@pytest.mark.long
@pytest.mark.slow
def test_three_requeues_lose_nothing(tiny_base: Path, tmp_path: Path) -> None:
    for name, text in {"srun": SRUN, "scancel": SCANCEL, "scontrol": SCONTROL}.items():
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)
    few = [
        *("callbacks=minimal", "logger=csv", "callbacks.checkpoint.every_n_steps=1000", f"trainer.max_steps={STEPS}"),
        "schedule.num_warmup_steps=2",
    ]
    small = [*tiny_miniature(tiny_base, *few), "trainer.val_check_interval=1000"]
    # What the script says of the paper's run is made small: the miniature on one CPU.
    plain = [
        "data=miniature",
        "base=tiny",
        "trainer/strategy=single",
        "trainer.devices=1",
        "gradient_checkpointing=none",
    ]
    same = [
        "trainer.precision=32-true",
        "trainer.accumulate_grad_batches=1",
        "data.datamodule.source.resolution=[64,64]",
    ]
    choices = [*plain, *same, "~data.datamodule.source.workers", "~data.datamodule.source.max_damaged"]
    straight = tmp_path / "straight"
    train(compose_train(straight, "experiment=dsd_paper", *small, *choices, "trainer.num_nodes=1"), straight)

    requeued = tmp_path / "requeued"
    task = tmp_path / "task"
    variables = {
        "PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:/usr/bin:/bin",
        "PYTHONPATH": str(ROOT / "tests"),
        "REQUEUED": str(requeued),
        "RUN": tmp_path.name,
        "TASK": str(task),
        "SLURM_JOB_ID": tmp_path.name,
    }
    pace = "+callbacks.pace={_target_:support.commands.Pace,seconds:0.1}"
    for stop in range(STOPS + 1):
        job = subprocess.Popen(
            ["bash", "launch/slurm.sbatch", *small, *choices, f"hydra.run.dir={tmp_path / 'run'}", pace],
            cwd=ROOT,
            env=environment(**variables),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if stop == STOPS:
            assert job.wait(600) == 0
            break
        wait_for_training(job, tmp_path / "run" / "metrics.csv", stop)
        # By turns as at the time limit (--signal=TERM@300 goes to the steps), and as when the batch script is signalled.
        os.kill(int(task.read_text()) if stop % 2 == 0 else job.pid, signal.SIGTERM)
        assert job.wait(120) == 0
        assert requeued.read_text().splitlines() == [f"requeue {tmp_path.name}"] * (stop + 1)
    assert len(list_steps(tmp_path / "run" / "checkpoints")) >= 1
    last = [load_file(tmp_path / each / "checkpoints" / f"step_{STEPS:08d}" / "adapter.safetensors")
            for each in ("straight", "run")]  # fmt: skip
    assert all((value == last[1][name]).all() for name, value in last[0].items())


def test_the_script_signals_the_steps_and_names_its_folder_by_the_run() -> None:
    script = (ROOT / "launch" / "slurm.sbatch").read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", script, re.M))
    assert options["signal"] == "TERM@300"  # B: would go to the script alone
    assert options["mem"] == "0"
    assert "/" not in options["output"]  # SLURM does not make folders, and a job without its log's folder dies
    assert '--cpus-per-task="${SLURM_CPUS_PER_TASK' in script
    assert 'hydra.run.dir="outputs/${RUN:-dsd_paper}"' in script
    assert not re.search(r"kill -TERM", script)


def wait_for_training(job: subprocess.Popen[bytes], metrics: Path, stops: int) -> None:
    """Wait until the run has logged a few steps more than when it was last stopped."""

    def rows() -> int:
        return len(metrics.read_text().splitlines()) if metrics.exists() else 0

    before = rows() if stops else 0
    while rows() < before + 4:
        assert job.poll() is None
        time.sleep(0.05)


@pytest.mark.long
@pytest.mark.parametrize("by_agent", [False, True], ids=["given captions", "captions by the agent"])
def test_own_images_become_pairs_a_model_and_an_image(by_agent: bool, tiny_base: Path, tmp_path: Path) -> None:
    given = tiny(
        tiny_base, "trainer.max_steps=2", "trainer.val_check_interval=2", "callbacks.samples.count=2", "logger=csv"
    )
    variables = {"OUT": str(tmp_path / "out")}
    images = tmp_path / "images"
    with RehearsalServer(answer) as server, ShellPython() as python:
        variables["PATH"] = python.path
        if by_agent:
            images.mkdir()
            for file in DRAWINGS.glob("*.png"):
                shutil.copy(file, images)
            provider = f"agents.vlm.provider.model=m agents.vlm.provider.base_url={server.url}/v1"
            variables["PACK"] = f"--caption vlm --agents local {provider} agents.folder={tmp_path / 'agents'}"
            variables["IMAGES"] = str(images)
        done = subprocess.run(
            ["launch/own_images.sh", *given], cwd=ROOT, env=environment(**variables), capture_output=True, text=True
        )
        asked = server.counts["asked"]
    assert done.returncode == 0, done.stderr
    assert asked == (30 if by_agent else 0)
    assert "552 pairs train, 30 validate" in done.stdout
    for name in ("pairs.html", "generated.png", "run/curves.png", "run/samples/step_00000002.png"):
        assert (tmp_path / "out" / name).is_file(), name
    captions = {row.text("image"): row.text("caption") for row in Table(DRAWINGS / "captions.csv")}
    pairs = PairShards(tmp_path / "out" / "shards")
    records = [pairs.record(position) for position in range(len(pairs))]
    assert {record.provenance["target_image"]: record.caption for record in records} == captions
    if by_agent:
        assert "30 captions written; edit them" in done.stdout
        assert {row.text("image"): row.text("caption") for row in Table(images / "captions.csv")} == captions
        assert all(record.instruction == f"show {record.caption}" for record in records)


def test_own_images_that_are_nowhere_are_named(tmp_path: Path) -> None:
    variables = {"IMAGES": str(tmp_path / "absent"), "OUT": str(tmp_path / "out")}
    done = subprocess.run(
        ["launch/own_images.sh"], cwd=ROOT, env=environment(**variables), capture_output=True, text=True
    )
    assert done.returncode == 2
    assert f"IMAGES={tmp_path / 'absent'} is no folder" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_a_data_run_makes_the_pairs_that_its_plan_expects_and_trains_on_them(tiny_base: Path, tmp_path: Path) -> None:
    sizes = tiny(
        tiny_base, "trainer.max_steps=2", "trainer.val_check_interval=2", "callbacks.samples.count=2", "logger=csv"
    )
    variables = environment(OUT=str(tmp_path), PAIRS="400", TRAIN=" ".join([*sizes, "callbacks.probe=null"]))
    with ShellPython() as python:
        done = subprocess.run(
            ["launch/data_run.sh"], cwd=ROOT, env=variables | {"PATH": python.path}, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    for name in ("report.html", "labels/human.html", "run/samples/step_00000002.png"):
        assert (tmp_path / name).is_file(), name
    planned = dict(re.findall(r"^  (\w+) +([\d,]+)", done.stdout, re.M))
    calls, pairs = (int(planned[name].replace(",", "")) for name in ("calls", "pairs"))
    lines = json.loads((tmp_path / "report.json").read_text())["run"]["lines"]
    # A judge's conversation is three calls, without fail; the writer is asked again where a prompt breaks a rule.
    assert sum(line["usage"]["calls"] for line in lines) == pytest.approx(calls, rel=0.1)
    grids = next(line["kept"] for line in lines if line["stage"] == "split")
    assert next(line["usage"]["calls"] for line in lines if line["stage"] == "verify") == 3 * 6 * grids
    packed = sum(int(number) for number in re.findall(r"(\d+) samples in", done.stdout))
    assert packed == pytest.approx(pairs, rel=0.2)
    assert pairs >= 180


FLUX_SETTINGS = {
    "flux_24gb": ("RTX 4090 24GB", ["base.quantize=null"]),  # 4 bits need CUDA or an extra; tests/training has them
    "flux_48gb": ("L40S 48GB", []),
    "flux_80gb": ("H100 80GB SXM", []),
    "dsd_paper": ("H100 80GB SXM", ["trainer.devices=1", f"{SOURCE}.resolution=[64,64]"]),
}
"""By experiment: the GPU that its plan is of, and what one CPU needs beside the sizes of all."""


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("experiment", FLUX_SETTINGS)
def test_five_commands_train_a_flux_preset_and_use_it(experiment: str, tiny_base: Path, tmp_path: Path) -> None:
    gpu, more = FLUX_SETTINGS[experiment]
    base = f"base.model.path={tiny_base} base.model.text_length=24 base.pixels_per_token=8 base.training.resolution=[64,64]"
    sizes = [
        "arch.lora.rank=2",
        "data.datamodule.batch_size=2",
        f"{SOURCE}.validation_pairs=2",
        f"{SOURCE}.workers=1",
        "sampler.num_inference_steps=2",
        "trainer.accelerator=cpu",
        "trainer.max_steps=2",
        "trainer.val_check_interval=2",
        "trainer.accumulate_grad_batches=1",
        "compile=false",
        "logger=csv",
        *more,
    ]
    images = tmp_path / "images"
    images.mkdir()
    for file in sorted((ROOT / "assets" / "own_images").glob("*.png"))[:5]:
        (images / file.name).write_bytes(file.read_bytes())
        (images / file.name).with_suffix(".txt").write_text(f"this character, drawing {file.stem}")
    variables = environment(EXPERIMENT=experiment, IMAGES=str(images), OUT=str(tmp_path / "out"), BASE=base)
    with ShellPython() as python:
        done = subprocess.run(
            ["launch/train_flux.sh", *sizes],
            cwd=ROOT,
            env=variables | {"PATH": python.path},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    assert f"GPU                   {gpu}" in done.stdout
    for name in ("generated.png", "run/samples/step_00000002.png", "run/checkpoints/step_00000002"):
        assert (tmp_path / "out" / name).exists(), name


@pytest.mark.parametrize("sets", [("train",), ("train", "validation")])
def test_a_data_run_of_few_pairs_trains_without_a_set_for_validation(sets: tuple[str, ...], tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    for name in sets:
        (tmp_path / "out" / "shards" / name).mkdir(parents=True)
    variables = environment(OUT=str(tmp_path / "out"), PATH=f"{python.parent}{os.pathsep}{os.environ['PATH']}")
    given = subprocess.check_output(["launch/data_run.sh"], cwd=ROOT, env=variables, text=True).splitlines()[-1].split()
    assert given[:3] == ["train.py", "data=shards", f"data.root={tmp_path}/out/shards/train"]
    validation = f"{SOURCE}.validation_root={tmp_path}/out/shards/validation"
    assert (validation in given) == ("validation" in sets)
