"""The ablation is fair, and `ckpt=auto` continues an interrupted sweep as if it had not been interrupted."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from support.commands import CONF, ROOT, assert_equal, command, compose_train, environment, metrics, tiny_miniature
from support.models.toy_models import save_image_encoder
from support.processes import prepared
from torch import Tensor

from dsd_lightning import module as training_module
from dsd_lightning.ablation.report import write_report
from dsd_lightning.ablation.runs import planned
from dsd_lightning.checkpoints.folder_io import list_steps
from dsd_lightning.pairs import REFERENCE, TARGET
from dsd_lightning.runs.folder import flattened
from dsd_lightning.runs.resume import OtherRunError, claim, is_finished, read_summary
from dsd_lightning.training.run import train

ABLATION = OmegaConf.load(CONF / "experiment" / "ablation.yaml")
PLANNED = {name: str(values).split(",") for name, values in ABLATION.hydra.sweeper.params.items()}
ARCHITECTURES, TASKS = PLANNED["arch"], PLANNED["task"]


def ablation(tiny_base: Path, *overrides: str) -> list[str]:
    """Return the overrides of an ablation of seconds."""
    probes = [] if "callbacks=minimal" in overrides else ["callbacks.probe.every_n_steps=2"]
    return ["experiment=ablation", *tiny_miniature(tiny_base, "logger=csv", *probes, *overrides)]


# --- Fairness.


def test_the_ablation_compares_what_the_paper_compares() -> None:
    assert {"text_only", "parallel", "concat", "controlnet", "ip_adapter", "reference_tokens"} == set(ARCHITECTURES)
    assert {"identity", "depth", "relighting"} == set(TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_the_runs_differ_in_their_architecture_alone(task: str) -> None:
    settings = [
        flattened(
            OmegaConf.to_container(compose_train(Path("run"), "experiment=ablation", f"arch={arch}", f"task={task}"))
        )  # type: ignore[arg-type]
        for arch in ARCHITECTURES
    ]
    for other in settings[1:]:
        different = {name for name in settings[0].keys() | other.keys() if settings[0].get(name) != other.get(name)}
        assert {name for name in different if not name.startswith(("arch.", "hydra."))} == set()


def test_a_runs_folder_depends_on_what_it_is_and_on_nothing_else() -> None:
    for order in (["arch=text_only", "task=identity", "seed=2"], ["seed=2", "task=identity", "arch=text_only"]):
        config = compose_train(Path("run"), *order, "experiment=ablation")
        assert f"{config.hydra.sweep.dir}/{config.hydra.sweep.subdir}" == "multirun/ablation/identity/text_only/seed2"
        assert config.group == "ablation-identity-text_only"
        assert config.ckpt == "auto"


def test_wandb_groups_the_seeds_of_an_architecture() -> None:
    config = compose_train(Path("run"), "experiment=ablation", "arch=text_only", "logger=wandb", "seed=3")
    wandb = config.logger.wandb
    assert (wandb.group, wandb.job_type) == ("ablation-identity-text_only", "identity")
    assert wandb.name.endswith("seed3")
    assert {"text_only", "identity"} <= set(wandb.tags)


def test_every_architecture_sees_the_same_pairs_noise_and_timesteps(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[dict[str, Any]] = []
    frame_losses, losses = training_module.frame_losses, training_module.DiffusionSelfDistillation.losses

    def watching_losses(self: Any, batch: Any) -> Any:
        batches.append({"keys": list(batch.keys), "epochs": list(batch.epochs), "prompts": list(batch.prompts)})
        return losses(self, batch)

    def watching(architecture: Any, encoded: Any, condition: Any, noise: Tensor, timestep: Tensor, *rest: Any) -> Any:
        if torch.is_grad_enabled():  # not in validation
            frames = architecture.split(noise)
            # Whether the text was dropped shows in its embedding, which all architectures share.
            batches[-1] |= {"noise": frames[TARGET], "timestep": timestep, "text": condition.text.sequence}
            assert not torch.equal(frames.get(REFERENCE, torch.zeros(1)), frames[TARGET])
        return frame_losses(architecture, encoded, condition, noise, timestep, *rest)

    monkeypatch.setattr(training_module, "frame_losses", watching)
    monkeypatch.setattr(training_module.DiffusionSelfDistillation, "losses", watching_losses)
    inputs = {}
    small = [
        "callbacks=minimal",
        "callbacks.cost=null",
        f"base.image_encoder.path={save_image_encoder(tmp_path / 'tower')}",
    ]
    for arch in ARCHITECTURES:
        batches.clear()
        overrides = ablation(tiny_base, f"arch={arch}", *small, "dropout.text=0.5")
        if OmegaConf.load(CONF / "arch" / f"{arch}.yaml").get("lora", "given") is None:
            overrides.remove("arch.lora.rank=2")
        train(compose_train(tmp_path / arch, *overrides), tmp_path / arch)
        inputs[arch] = list(batches)
        assert len(batches) == 4
    first = inputs.pop("parallel")
    # Neither empty nor constant: other batches see other pairs, noise and times.
    assert first[0]["keys"] != first[1]["keys"]
    assert not torch.equal(first[0]["timestep"], first[1]["timestep"])
    for arch, others in inputs.items():
        assert_equal(first, others, arch)


# --- ckpt=auto.


def test_auto_starts_goes_on_and_does_nothing_as_the_folder_asks(tiny_base: Path, tmp_path: Path) -> None:
    def run(folder: Path, *more: str) -> dict[str, float]:
        overrides = ablation(tiny_base, "callbacks=minimal", "callbacks.checkpoint.every_n_steps=1", *more)
        return train(compose_train(folder, *overrides), folder)

    broken, straight = tmp_path / "broken", tmp_path / "straight"
    (straight / "samples").mkdir(parents=True)  # a folder that is there already is no run yet
    run(straight)
    assert is_finished(straight)
    with pytest.raises(RuntimeError, match="broken off"):
        run(broken, "+callbacks.broken={_target_:support.commands.BreakOff,batch:2}")
    assert not is_finished(broken)
    assert list(list_steps(broken / "checkpoints")) == [1, 2]

    # The same command again; only that this one does not break off.
    saved = OmegaConf.load(broken / "config.yaml")
    del saved.callbacks.broken
    OmegaConf.save(saved, broken / "config.yaml")
    run(broken)
    assert is_finished(broken)
    rows = [[{k: v for k, v in row.items() if v} for row in metrics(each)] for each in (broken, straight)]
    assert rows[0] == rows[1]
    assert read_summary(broken)["pairs_seen"] == 16

    before = (broken / "summary.json").read_bytes()
    assert run(broken) == {}
    assert run(broken, "logger.csv=null", "trainer.accelerator=auto") == {}
    assert (broken / "summary.json").read_bytes() == before
    for wrong, message in {
        "seed=1": "seed was 0 and is 1",
        "trainer.max_steps=5": "trainer.max_steps was 4 and is 5",
        "arch=text_only": "arch._target_ was .*Parallel and is .*TextOnly",
    }.items():
        with pytest.raises(OtherRunError, match=message):
            run(broken, wrong)

    with claim(broken) as mine:
        assert mine
        with claim(broken) as another:
            assert not another
        assert run(broken) == {}

    # Killed after the summary was written, before the last step was saved: the end is done again.
    summary = json.loads(before)
    (broken / "summary.json").write_text(json.dumps(summary | {"steps": 5}))
    assert not is_finished(broken)


# --- A whole sweep.


@pytest.mark.long
def test_a_killed_sweep_goes_on_and_is_reported_whole(tiny_base: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "ablation"
    overrides = [
        *ablation(tiny_base, "trainer.max_steps=6", "callbacks.checkpoint.every_n_steps=1"),
        "+callbacks.pace={_target_:support.commands.Pace,seconds:0.2}",
        f"hydra.sweep.dir={sweep}",
        "arch=parallel,text_only",
        "task=identity",
        "seed=0,1",
    ]

    def start() -> prepared.Process:
        log = (tmp_path / "log").open("ab")
        setting = environment(PYTHONPATH=str(ROOT / "tests"))
        return prepared.start(command("-m", *overrides), env=setting, stdout=log, stderr=log)

    process = start()
    second = sweep / "identity" / "text_only" / "seed0"
    while max(list_steps(second / "checkpoints"), default=0) < 2:
        assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = sweep / "identity" / "parallel" / "seed0"
    finished = (first / "summary.json").read_bytes()
    assert is_finished(first)
    assert not is_finished(second)

    unfinished = write_report(sweep, tmp_path / "half")
    assert [(run.label, run.seed) for run in unfinished] == [("parallel", 1), ("text_only", 0), ("text_only", 1)]
    assert start().wait() == 0, (tmp_path / "log").read_text()[-3000:]
    assert (first / "summary.json").read_bytes() == finished
    assert write_report(sweep, tmp_path / "whole") == []
    (table,) = json.loads((tmp_path / "whole" / "report.json").read_text())["tables"]
    assert table["differences"] == {}
    for row in table["rows"]:
        assert row["seeds"] == [0, 1]
        for name in (
            "identity_accuracy", "prompt_accuracy", "val/loss_target", "parameters_trained", "flops_per_pair",
            "seconds_per_pair", "peak_memory_gib",
        ):  # fmt: skip
            assert row["metrics"][name]["count"] == 2, name
            assert row["metrics"][name]["mean"] >= 0
    two, one = (row["metrics"]["flops_per_pair"]["mean"] for row in table["rows"])
    assert two > 1.1 * one > 0
    for name in ("curves_identity_val_loss_target.png", "samples_identity.png", "report.html"):
        assert (tmp_path / "whole" / name).stat().st_size > 3000
    assert len(planned(sweep)) == 4
