"""A wrong value in the configuration is refused at the start, naming the value and the remedy."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.choices import FEW
from support.commands import SOURCE, compose_train, tiny

from dsd_lightning.cli.errors import message_for_user
from dsd_lightning.models.build import build_architecture
from dsd_lightning.training.build import build_module
from dsd_lightning.training.run import train

WRONG = {
    "arch.lora.rank=0": ["arch.lora.rank=0", "at least 1"],
    "arch.lora.targets='('": ["arch.lora.targets='('", "regular expression"],
    "arch.lora.targets=proj_nowhere": ["proj_nowhere", "transformer_blocks.0.attn.to_q"],
    "base.quantize=int3": ["quantize='int3'", "int8, fp8, nf4"],
    "base.model.dtype=float8": ["base.model.dtype='float8'", "bfloat16"],
    "base.model.initialise=warm": ["base.model.initialise='warm'", "pretrained"],
    "base.model.guidance_scale=null": ["base.model.guidance_scale=None", "give a number"],
    "base.model.text_length=0": ["sequence_length=0", "at least 1"],
    "callbacks.checkpoint.every_n_steps=0": ["every_n_steps=0", "at least 1"],
    "callbacks.ema.decay=1.0": ["decay=1.0", "0.999"],
    "callbacks.probe.samples=0": ["samples=0", "at least 1"],
    "callbacks.samples.count=0": ["count=0", "at least 1"],
    "callbacks.samples.prompts_file=nowhere.jsonl": ["nowhere.jsonl", "no such file"],
    "data.datamodule.batch_size=0": ["data.datamodule.batch_size=0", "at least 1"],
    f"{SOURCE}.pairs=0": [f"{SOURCE}.pairs=0", "at least 1"],
    f"+{SOURCE}.workers=1": [f"{SOURCE}.workers=1", "pool=false"],
    f"{SOURCE}.resolution=[32,32]": [f"{SOURCE}.resolution=[32, 32]", "data=shards"],
    "density.deviation=0.0": ["density.deviation=0.0", "> 0"],
    "dropout.text=0.96": ["text=0.96", "sum <= 1"],
    "optimizer.betas=[2,0.9]": ["optimizer", "beta parameter at index 0: 2"],
    "park_encoders=sometimes": ["park_encoders=sometimes", "true, false or auto"],
    "sampler.num_inference_steps=0": ["num_inference_steps=0", "at least 1"],
    "sampler.image_guidance=-1.0": ["image_guidance=-1.0", ">= 0"],
    "task.relation.captions.caption=0.5": ["0.5", "sum to 1"],
    "task.relation.frame_weights.target=0": ["frame_weights", "> 0"],
    "trainer.accelerator=abacus": ["abacus"],
    "trainer.max_steps=-1": ["trainer.max_steps=-1", "at least 1"],
    "trainer.max_steps=1e4": ["trainer.max_steps=10000.0", "write 10000"],
    "seed=-1": ["seed=-1", "from 0 to"],
    "trainer.precision=17": ["17", "bf16-mixed"],
    "+dropout.image=0.1": ["dropout", "image"],
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_value_is_refused_by_name(wrong: str, tiny_base: Path, tmp_path: Path) -> None:
    few = [*FEW["miniature"], "trainer.max_steps=1", "logger=csv"]
    with pytest.raises(Exception) as refusal:  # noqa: PT011
        train(compose_train(tmp_path, *tiny(tiny_base, *few, wrong)), tmp_path)
    message = message_for_user(refusal.value)
    assert message is not None, repr(refusal.value)
    assert "Traceback" not in message
    for fragment in WRONG[wrong]:
        assert fragment in message


def test_a_fixed_and_a_mode_density_refuse_what_they_cannot_do(tiny_base: Path, tmp_path: Path) -> None:
    for choices in (("density=mode", "density.scale=3.0"), ("shift=fixed", "shift.factor=0.0")):
        with pytest.raises(Exception, match=re.escape(choices[1])):
            build_module(compose_train(tmp_path, *tiny(tiny_base, *FEW["miniature"], *choices)))


def test_training_nothing_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    config = compose_train(tmp_path, "arch=text_only", "arch.lora=null", f"base.model.path={tiny_base}")
    with pytest.raises(ValueError, match=r"give arch\.lora, or arch\.train_base=true"):
        build_architecture(config)
    config = compose_train(tmp_path, "arch=text_only", "arch.train_base=true", f"base.model.path={tiny_base}")
    with pytest.raises(Exception, match=r"arch\.lora=null"):
        build_architecture(config)
