"""Sample sheets and probes show the model as it is, and leave no trace on its training."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch.loggers import WandbLogger
from omegaconf import OmegaConf
from PIL import Image
from support.commands import CONF
from support.sample_runs import Miniature, run, small_module
from torch import Tensor

from callbacks.ema import ExponentialMovingAverage
from callbacks.isolated_sampling import isolated_sampling, unconverted
from callbacks.probes import MiniatureProbe
from callbacks.samples import SampleSheets
from dsd_lightning.images.sheet import GAP, MARGIN
from dsd_lightning.miniature.metrics.base import SampleMetric
from dsd_lightning.miniature.metrics.identity_metrics import CopyPaste, ReferencePSNR
from dsd_lightning.module import DiffusionSelfDistillation
from dsd_lightning.pairs import PairBatch


def identity_metrics() -> dict[str, SampleMetric]:
    """Return what `conf/task/identity.yaml` names."""
    return dict(instantiate(OmegaConf.load(CONF / "task" / "identity.yaml").metrics))


def trained(module: DiffusionSelfDistillation) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.architecture.trainable()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- The whole, in one run.


def test_data_without_pairs_to_show_are_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class NoneSetAside(Miniature):
        probe_batches = None

    with caplog.at_level("INFO"):
        run(tmp_path, small_module(), NoneSetAside(), [SampleSheets(folder=str(tmp_path / "sheets"))])
    assert caplog.text.count("no sample sheets: no pair validates") == 1
    assert not (tmp_path / "sheets").exists()


def test_a_run_leaves_sheets_metrics_and_no_trace_on_the_training(tmp_path: Path) -> None:
    watched, alone = small_module(), small_module()
    modes = [part.training for part in watched.modules()]
    probe = MiniatureProbe(identity_metrics(), samples=3, batch_size=2, every_n_steps=2)
    sheets = SampleSheets(count=2, every_n_steps=3)
    run(tmp_path / "watched", watched, Miniature(), [ExponentialMovingAverage(0.9), probe, sheets])
    run(tmp_path / "alone", alone, Miniature(), [ExponentialMovingAverage(0.9)])

    assert same(trained(watched), trained(alone))
    assert not watched.codec.vae.training
    assert [part.training for part in watched.modules()] == modes

    written = sorted(path.name for path in (tmp_path / "watched" / "samples").glob("step_*"))
    assert written == ["step_00000000.png", "step_00000003.png", "step_00000004.png"]
    with Image.open(tmp_path / "watched" / "samples" / written[0]) as sheet:
        assert sheet.width == 2 * MARGIN + 4 * 128 + 3 * GAP

    names = {"identity_accuracy", "prompt_accuracy", "copy_paste", "reference_psnr"}
    assert set(watched.summary) == {f"{name}{suffix}" for name in names for suffix in ("", "_before", "_ceiling")}
    assert all(isinstance(value, float) for value in watched.summary.values())
    rows = list(csv.DictReader((tmp_path / "watched" / "metrics.csv").open()))
    logged = [row for row in rows if row["probe/identity_accuracy"]]
    assert [row["step"] for row in logged] == ["0", "2", "4"]
    assert float(logged[-1]["probe/reference_psnr"]) == pytest.approx(watched.summary["reference_psnr"], rel=1e-5)


def test_after_the_first_step_the_ema_weights_generate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, ema = small_module(), ExponentialMovingAverage(0.9)
    weights_used: list[dict[str, Tensor]] = []
    generate = module.generate

    def watching(*arguments: Any, **options: Any) -> dict[str, Tensor]:
        weights_used.append(trained(module))
        assert not module.training
        assert not torch.is_grad_enabled()
        return generate(*arguments, **options)

    monkeypatch.setattr(module, "generate", watching)
    start = trained(module)
    run(tmp_path, module, Miniature(), [ema, SampleSheets(count=1)], steps=3)
    assert same(weights_used[0], start)
    assert same(weights_used[1], ema.weights)
    assert not same(trained(module), ema.weights)


def test_a_resumed_run_does_not_call_its_state_untrained(tmp_path: Path) -> None:
    trainer = run(tmp_path / "first", small_module(), Miniature(), [], steps=2)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    module, data = small_module(), Miniature()
    callbacks = [MiniatureProbe(identity_metrics(), 2, 2, every_n_steps=2), SampleSheets(count=1, every_n_steps=2)]
    run(tmp_path / "second", module, data, callbacks, steps=3, ckpt_path=tmp_path / "two.ckpt")
    assert [path.name for path in (tmp_path / "second" / "samples").glob("step_*")] == ["step_00000003.png"]
    assert not any(name.endswith(("_before", "_ceiling")) for name in module.summary)
    assert "identity_accuracy" in module.summary
    assert data.served == 2  # at the end, once for each callback


@pytest.mark.parametrize(
    ("kind", "with_facts", "expected"),
    [
        ("parallel", False, {"reference_psnr"}),
        ("text_only", True, {"identity_accuracy", "prompt_accuracy", "copy_paste"}),
        ("text_only", False, set()),
    ],
)
def test_a_probe_tells_what_can_be_told(tmp_path: Path, kind: str, with_facts: bool, expected: set[str]) -> None:
    module = small_module(kind)
    probe = MiniatureProbe(identity_metrics(), samples=2, batch_size=2, before=False)
    run(tmp_path, module, Miniature(with_facts), [probe], steps=1)
    assert set(module.summary) == expected | {f"{name}_ceiling" for name in expected}


def test_the_ceiling_is_what_the_truth_scores_once_it_has_passed_through_the_vae(tmp_path: Path) -> None:
    module, data = small_module(), Miniature()
    metrics = identity_metrics()
    run(tmp_path, module, data, [MiniatureProbe(metrics, 3, 2, before=False)], steps=1)
    psnr, copied = ReferencePSNR(), CopyPaste()
    for batch in data.probe_batches(3, 2):
        assert batch.reference is not None
        assert batch.target is not None
        canvas = module.codec.decode(module.codec.encode(torch.cat([batch.reference, batch.target], dim=-1)))
        reference, target = canvas.chunk(2, dim=-1)
        psnr.update(reference, batch.reference)
        copied.update(target, batch.target, batch.reference)
    assert module.summary["reference_psnr_ceiling"] == pytest.approx(float(psnr.compute()), rel=1e-6)
    assert module.summary["copy_paste_ceiling"] == pytest.approx(float(copied.compute()), abs=1e-6)


def test_a_ceiling_can_be_left_out(tmp_path: Path) -> None:
    module = small_module()
    run(tmp_path, module, Miniature(), [MiniatureProbe(identity_metrics(), 2, 2, before=False, ceiling=False)], steps=1)
    assert module.summary.keys() == identity_metrics().keys()


def test_an_architecture_of_one_frame_has_no_column_for_the_other(tmp_path: Path) -> None:
    run(tmp_path, small_module("text_only"), Miniature(), [SampleSheets(count=1, at_start=False)], steps=1)
    with Image.open(tmp_path / "samples" / "step_00000001.png") as sheet:
        assert sheet.width == 2 * MARGIN + 3 * 128 + 2 * GAP


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    sheets = SampleSheets(count=1, every_n_steps=1, at_start=False)
    data = Miniature()
    run(tmp_path, small_module(), data, [sheets], steps=2, accumulate_grad_batches=2)
    assert sorted(path.name for path in (tmp_path / "samples").glob("step_*")) == [
        "step_00000001.png",
        "step_00000002.png",
    ]
    assert data.served == 2


@pytest.mark.slow
def test_sheets_and_a_table_reach_wandb(tmp_path: Path) -> None:
    logger = WandbLogger(project="test", save_dir=tmp_path, offline=True)
    run(tmp_path, small_module(), Miniature(), [SampleSheets(count=2)], steps=1, logger=logger)
    logger.experiment.finish()
    media = [path for path in tmp_path.rglob("media/**/*") if path.is_file()]
    assert len([path for path in media if path.suffix == ".png" and "sheet" in path.name]) == 2
    table = json.loads(next(path for path in media if path.name.endswith(".table.json")).read_text())
    assert table["columns"] == ["caption", "reference", "reconstructed reference", "generated", "truth"]
    assert len(table["data"]) == 2


# --- What is drawn.


def test_drawing_from_a_reference_and_a_prompt_is_drawing_the_pair() -> None:
    module, batch = small_module(), Miniature().batch(2)
    assert batch.reference is not None
    with isolated_sampling(L.Trainer(logger=False, enable_checkpointing=False), module, ema=False):
        pair = module.generate(batch)
        free = module.generate_from(batch.reference, batch.prompts, batch.keys)
        encoded, text = module.encode(batch)
        cached = module.generate(
            PairBatch(batch.keys, batch.epochs, batch.prompts, encoded=encoded, text=text, facts=batch.facts)
        )
        alone = module.generate_from(batch.reference[1:], batch.prompts[1:], batch.keys[1:])
    assert set(pair) == {"reference", "target"}
    for name, images in pair.items():
        assert images.shape == (2, 3, 64, 64)
        assert torch.equal(images, free[name])
        assert torch.equal(images, cached[name])
        torch.testing.assert_close(images[1:], alone[name], atol=1e-4, rtol=0)
    other = module.generate_from(batch.reference, batch.prompts, ["another", "key"])
    assert not torch.allclose(other["target"], pair["target"], atol=1e-3)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-mixed", torch.bfloat16), ("32-true", torch.float32)])
def test_images_are_generated_in_the_trainers_precision_and_scored_as_they_are(
    precision: Any, dtype: torch.dtype
) -> None:
    module = small_module()
    trainer = L.Trainer(accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False)
    layer, values = torch.nn.Linear(2, 2), torch.zeros(1, 2)
    with isolated_sampling(trainer, module, ema=False):
        assert layer(values).dtype == dtype
        with unconverted(module):
            assert layer(values).dtype == torch.float32
    assert layer(values).dtype == torch.float32


def test_the_target_frame_gets_the_same_noise_in_every_architecture() -> None:
    keys = [("draw", "a"), ("draw", "b")]
    two, one = (small_module(kind).frame_noise((16, 8, 8), keys) for kind in ("parallel", "text_only"))
    assert two.shape == (2, 16, 8, 16)
    assert torch.equal(two[..., 8:], one)
    assert not torch.equal(two[..., :8], one)
