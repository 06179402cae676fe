"""Do sample sheets and probes show the model as it is, and leave no trace on its training?"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from hydra.utils import instantiate
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, CLIPTextModel, CLIPTokenizer, T5EncoderModel
from verbs import CONF

from callbacks.drawing import EveryNSteps, drawing
from callbacks.ema import ExponentialMovingAverage
from callbacks.probes import MiniatureProbe
from callbacks.samples import PromptsFileError, Request, SampleSheets, read_requests
from dsd_lightning.architectures.parallel import Parallel
from dsd_lightning.architectures.text_only import TextOnly
from dsd_lightning.figures import Figure
from dsd_lightning.flux.codec import Codec
from dsd_lightning.flux.lora import Lora
from dsd_lightning.flux.text import TextEncoder
from dsd_lightning.miniature.captions import target_caption
from dsd_lightning.miniature.metrics import CopyPaste, ReferencePSNR
from dsd_lightning.miniature.renderer import render
from dsd_lightning.miniature.world import Scene, draw_context, draw_identity
from dsd_lightning.module import DiffusionSelfDistillation, Dropout
from dsd_lightning.pairs import PairBatch, Task
from dsd_lightning.pictures import to_image
from dsd_lightning.randomness import numpy_generator
from dsd_lightning.rectified_flow import NoShift, Uniform
from dsd_lightning.sampler import SamplerSettings
from dsd_lightning.sheet import CAPTION_SIZE, GAP, LINE, MARGIN, Row, _lines, draw_sheet, magnified, save_whole

TEXTS = Path(__file__).parents[1] / "assets" / "tiny-flux"


def identity_figures() -> dict[str, Figure]:
    """Return what `conf/task/identity.yaml` names."""
    return dict(instantiate(OmegaConf.load(CONF / "task" / "identity.yaml").figures))


def text_encoder() -> TextEncoder:
    return TextEncoder(
        CLIPTextModel.from_pretrained(TEXTS / "text_encoder"),
        CLIPTokenizer.from_pretrained(TEXTS / "tokenizer"),
        T5EncoderModel.from_pretrained(TEXTS / "text_encoder_2"),
        AutoTokenizer.from_pretrained(TEXTS / "tokenizer_2"),
        sequence_length=8,
    )


def small_module(kind: str = "parallel") -> DiffusionSelfDistillation:
    """Return a random model; everything in it is real, and small."""
    torch.manual_seed(3)
    texts = text_encoder()
    transformer = FluxTransformer2DModel(
        in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=texts.t5.config.d_model, pooled_projection_dim=texts.clip.config.hidden_size,
        guidance_embeds=True, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=16, shift_factor=0.1, scaling_factor=0.4,
        use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    lora = Lora(rank=2, targets=r".*transformer_blocks\..*\.to_[qkv]")
    architecture = Parallel(transformer, lora) if kind == "parallel" else TextOnly(transformer, lora)
    return DiffusionSelfDistillation(
        architecture=architecture,
        codec=Codec(vae),
        text_encoder=texts,
        task=Task("identity", aligned=False, frame_weights={"reference": 0.5, "target": 1.0}),
        density=Uniform(),
        shift=NoShift(),
        dropout=Dropout(text=0.2),
        optimizer=partial(torch.optim.AdamW, lr=1e-2),
        schedule=partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0),
        guidance_scale=3.5,
        sampler=SamplerSettings(num_inference_steps=2),
        seed=11,
    )


class Miniature(L.LightningDataModule):
    """A handful of pairs; `resolution` and `probe_batches` are what callbacks ask for."""

    resolution = (64, 64)

    def __init__(self, with_facts: bool = True) -> None:
        super().__init__()
        self.with_facts = with_facts
        self.served = 0

    def batch(self, count: int, first: int = 0) -> PairBatch:
        rng = numpy_generator("samples test", first)
        references, targets, facts, prompts = [], [], [], []
        for _ in range(count):
            identity, before, after = draw_identity(rng, held_out=True), draw_context(rng), draw_context(rng)
            for pictures, context in ((references, before), (targets, after)):
                picture = render(Scene(identity, context)).picture.transpose(2, 0, 1)
                pictures.append(torch.from_numpy(np.ascontiguousarray(picture)) * 2 - 1)
            values = {"identity": identity, "reference": before, "target": after}
            facts.append({name: [int(i) for i in astuple(value)] for name, value in values.items()})
            prompts.append(target_caption(after, rng))
        return PairBatch(
            keys=[f"{first}-{i}" for i in range(count)],
            epochs=[0] * count,
            prompts=prompts,
            reference=torch.stack(references),
            target=torch.stack(targets),
            facts=facts if self.with_facts else [{}] * count,
        )

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader([self.batch(2, first=index) for index in range(4)], batch_size=None, shuffle=True)

    def probe_batches(self, count: int, batch_size: int) -> Iterator[PairBatch]:
        self.served += 1
        # A loader of its own that draws from the global generator, as any DataLoader does.
        torch.rand(1)
        for start in range(0, count, batch_size):
            yield self.batch(min(batch_size, count - start), first=1000 + start)


def run(
    folder: Path,
    module: DiffusionSelfDistillation,
    data: Miniature,
    callbacks: list[Any],
    steps: int = 4,
    **options: Any,
) -> L.Trainer:
    torch.manual_seed(5)
    options = {"logger": CSVLogger(folder, name="", version="")} | options
    resume = options.pop("ckpt_path", None)
    trainer = L.Trainer(
        default_root_dir=folder, max_steps=steps, accelerator="cpu", devices=1, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks, log_every_n_steps=1, **options,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    return trainer


def trained(module: DiffusionSelfDistillation) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.architecture.trainable()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- The whole, in one run.


def test_a_run_leaves_sheets_figures_and_no_trace_on_the_training(tmp_path: Path) -> None:
    watched, alone = small_module(), small_module()
    modes = [part.training for part in watched.modules()]
    probe = MiniatureProbe(identity_figures(), samples=3, batch_size=2, every_n_steps=2)
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


def test_after_the_first_step_the_averaged_weights_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, average = small_module(), ExponentialMovingAverage(0.9)
    drawn_with: list[dict[str, Tensor]] = []
    draw = module.draw

    def watching(*arguments: Any, **options: Any) -> dict[str, Tensor]:
        drawn_with.append(trained(module))
        assert not module.training
        assert not torch.is_grad_enabled()
        return draw(*arguments, **options)

    monkeypatch.setattr(module, "draw", watching)
    start = trained(module)
    run(tmp_path, module, Miniature(), [average, SampleSheets(count=1)], steps=3)
    assert same(drawn_with[0], start)
    assert same(drawn_with[1], average.averages)
    assert not same(trained(module), average.averages)


def test_a_resumed_run_does_not_call_its_state_untrained(tmp_path: Path) -> None:
    trainer = run(tmp_path / "first", small_module(), Miniature(), [], steps=2)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    module, data = small_module(), Miniature()
    callbacks = [MiniatureProbe(identity_figures(), 2, 2, every_n_steps=2), SampleSheets(count=1, every_n_steps=2)]
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
    probe = MiniatureProbe(identity_figures(), samples=2, batch_size=2, before=False)
    run(tmp_path, module, Miniature(with_facts), [probe], steps=1)
    assert set(module.summary) == expected | {f"{name}_ceiling" for name in expected}


def test_the_ceiling_is_what_the_truth_scores_once_it_has_passed_through_the_vae(tmp_path: Path) -> None:
    module, data = small_module(), Miniature()
    figures = identity_figures()
    run(tmp_path, module, data, [MiniatureProbe(figures, 3, 2, before=False)], steps=1)
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
    run(tmp_path, module, Miniature(), [MiniatureProbe(identity_figures(), 2, 2, before=False, ceiling=False)], steps=1)
    assert module.summary.keys() == identity_figures().keys()


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
    assert table["columns"] == ["caption", "reference", "redrawn reference", "generated", "truth"]
    assert len(table["data"]) == 2


# --- What is drawn.


def test_drawing_from_a_reference_and_a_prompt_is_drawing_the_pair() -> None:
    module, batch = small_module(), Miniature().batch(2)
    assert batch.reference is not None
    with drawing(L.Trainer(logger=False, enable_checkpointing=False), module, averaged=False):
        pair = module.draw(batch)
        free = module.draw_from(batch.reference, batch.prompts, batch.keys)
        encoded, text = module.encode(batch)
        cached = module.draw(
            PairBatch(batch.keys, batch.epochs, batch.prompts, encoded=encoded, text=text, facts=batch.facts)
        )
        alone = module.draw_from(batch.reference[1:], batch.prompts[1:], batch.keys[1:])
    assert set(pair) == {"reference", "target"}
    for name, pictures in pair.items():
        assert pictures.shape == (2, 3, 64, 64)
        assert torch.equal(pictures, free[name])
        assert torch.equal(pictures, cached[name])
        torch.testing.assert_close(pictures[1:], alone[name], atol=1e-4, rtol=0)
    other = module.draw_from(batch.reference, batch.prompts, ["another", "key"])
    assert not torch.allclose(other["target"], pair["target"], atol=1e-3)


def test_the_target_frame_gets_the_same_noise_in_every_architecture() -> None:
    keys = [("draw", "a"), ("draw", "b")]
    two, one = (small_module(kind).frame_noise((16, 8, 8), keys) for kind in ("parallel", "text_only"))
    assert two.shape == (2, 16, 8, 16)
    assert torch.equal(two[..., 8:], one)
    assert not torch.equal(two[..., :8], one)


# --- A user's own references and prompts.


def write_requests(folder: Path, *lines: Any) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n\n")
    return path


def test_a_users_requests_are_rows_without_truth(tmp_path: Path) -> None:
    Image.new("RGB", (200, 90), (200, 60, 30)).save(tmp_path / "mine.png")
    line = {"image": "mine.png", "prompt": "this character, small, on the left"}
    path = write_requests(tmp_path, line, line, line)
    sheets = SampleSheets(count=2, at_start=False, prompts_file=str(path), folder=str(tmp_path / "here"))
    module, data = small_module(), Miniature()
    run(tmp_path, module, data, [sheets], steps=1)
    assert (tmp_path / "here" / "step_00000001.png").is_file()
    assert [tuple(reference.shape) for reference in sheets.references] == [(3, 64, 64)] * 3
    rows = sheets._request_rows(module)
    assert [set(row.pictures) for row in rows] == [{"reference", "redrawn reference", "generated"}] * 3
    assert rows[0].caption == line["prompt"]
    assert rows[0].pictures["generated"] != rows[1].pictures["generated"]  # the same request, other noise


def test_missing_pictures_are_all_named(tmp_path: Path) -> None:
    Image.new("RGB", (80, 80)).save(tmp_path / "there.png")
    path = write_requests(tmp_path, *({"image": name, "prompt": "p"} for name in ("a.png", "there.png", "b.png")))
    with pytest.raises(PromptsFileError, match=r"2 pictures that do not exist: .*a\.png, .*b\.png"):
        SampleSheets(prompts_file=str(path))


@pytest.mark.parametrize("line", ["{broken", '["a", "b"]', '{"image": "a.png"}', '{"image": "a.png", "prompt": 3}'])
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    Image.new("RGB", (80, 80)).save(tmp_path / "a.png")
    path = write_requests(tmp_path, {"image": "a.png", "prompt": "fine"}, line)
    with pytest.raises(PromptsFileError, match="line 2"):
        read_requests(path)


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (80, 80)).save(tmp_path / "pictures" / "a.png")
    path = write_requests(tmp_path, {"image": "pictures/a.png", "prompt": "p"})
    assert read_requests(path) == [Request(tmp_path / "pictures" / "a.png", "p")]
    with pytest.raises(PromptsFileError, match="no such file"):
        read_requests(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("content", "reason"), [((40, 80), "without being enlarged"), (b"no picture", "cannot decode")]
)
def test_a_picture_that_cannot_be_a_reference_is_refused_before_training(
    tmp_path: Path, content: Any, reason: str
) -> None:
    if isinstance(content, bytes):
        (tmp_path / "bad.png").write_bytes(content)
    else:
        Image.new("RGB", content).save(tmp_path / "bad.png")
    path = write_requests(tmp_path, {"image": "bad.png", "prompt": "p"})
    data = Miniature()
    with pytest.raises(PromptsFileError, match=rf"bad\.png: .*{reason}"):
        run(tmp_path, small_module(), data, [SampleSheets(prompts_file=str(path))])
    assert data.served == 0


# --- Sheets.


def test_a_sheet_shows_every_pixel_in_its_place() -> None:
    left, right = Image.new("RGB", (64, 64), (255, 0, 0)), Image.new("RGB", (64, 64), (0, 0, 255))
    left.putpixel((63, 0), (0, 255, 0))
    sheet = draw_sheet(["one", "two"], [Row({"one": left, "two": right}, "a"), Row({"two": left}, "b")])
    top = MARGIN + 14 + GAP
    assert sheet.crop((MARGIN, top, MARGIN + 128, top + 128)).tobytes() == magnified(left).tobytes()
    assert sheet.crop((MARGIN + 128 + GAP, top, MARGIN + 256 + GAP, top + 128)).tobytes() == magnified(right).tobytes()
    second = top + 128 + GAP // 2 + LINE + GAP
    assert sheet.getpixel((MARGIN + 5, second + 5)) == (255, 255, 255)
    assert sheet.getpixel((MARGIN + 128 + GAP + 127, second + 1)) == (0, 255, 0)


@pytest.mark.parametrize(("size", "shown"), [((64, 64), (128, 128)), ((50, 100), (150, 300)), ((512, 300), (512, 300))])
def test_pictures_are_magnified_by_whole_numbers(size: tuple[int, int], shown: tuple[int, int]) -> None:
    assert magnified(Image.new("RGB", size)).size == shown


def test_long_captions_are_broken_and_then_cut() -> None:
    from PIL import ImageFont

    font = ImageFont.load_default(CAPTION_SIZE)
    assert _lines("short", font, 300) == ["short"]
    assert _lines("", font, 300) == []
    lines = _lines("this character, small, on the left, " * 10, font, 300)
    assert len(lines) == 2
    assert lines[-1].endswith(" ...")
    assert all(font.getlength(line) <= 300 for line in (*lines, *_lines("x" * 400, font, 300)))


def test_a_sheet_without_pictures_is_refused() -> None:
    with pytest.raises(ValueError, match="no picture"):
        draw_sheet(["one"], [Row({}, "caption")])


def test_a_picture_is_written_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    picture = to_image(torch.rand(3, 16, 16) * 2 - 1)
    for _ in range(2):
        save_whole(picture, tmp_path / "new" / "sheet.png")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["sheet.png"]
    with Image.open(tmp_path / "new" / "sheet.png") as read:
        assert read.tobytes() == picture.tobytes()


def test_intervals_and_counts_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="every_n_steps=0"):
        EveryNSteps(0, "every_n_steps")
    with pytest.raises(ValueError, match="count=0"):
        SampleSheets(count=0)
    with pytest.raises(ValueError, match="samples=0"):
        MiniatureProbe({}, samples=0)
