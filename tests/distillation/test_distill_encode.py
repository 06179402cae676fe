"""A run's shards are encoded once, again where their images changed, never by other encoders, and can be trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
from rehearsal_server import RehearsalServer
from support.commands import SOURCE, compose_train, tiny
from support.distill_runs import CAPTIONS, arguments, captions_file, compose_distill, rule

from dsd_lightning.distillation.command import distill
from dsd_lightning.shards import PairShards, ShardError, ShardIndex
from dsd_lightning.training.run import train


@pytest.mark.long
def test_a_run_is_encoded_and_trained_on_without_encoders(tmp_path: Path, tiny_base: Path) -> None:
    out = tmp_path / "run"
    few = captions_file(tmp_path, CAPTIONS[:9])
    with RehearsalServer(rule) as server:
        given = arguments(out, few, server.url, "agents.teacher.height=128", "agents.teacher.width=128")
        # The grid's tokenizer is counted with; the base is the one that is trained.
        given += ["encode=true", "encoding.workers=0", f"base.model.path={tiny_base}"]
        said = distill(compose_distill(*given))
        encoded = out / "encoded" / "train"
        assert f"data.root={encoded} data.datamodule.source.encoded=true" in said
        first = ShardIndex.read(encoded)
        assert first is not None
        plain = ShardIndex.read(out / "shards" / "train")
        assert plain is not None
        assert plain.origin == first.origin == {"teacher": "crayons", "license": "cc0-1.0"}
        written = {path.name: path.stat().st_mtime_ns for path in encoded.iterdir()}
        distill(compose_distill(*given))
        assert {path.name: path.stat().st_mtime_ns for path in encoded.iterdir()} == written
        with pytest.raises(ShardError, match=r"arch\._target_=.*Parallel.*encoding\.root=FOLDER"):
            distill(compose_distill(*given, "arch=concat"))
        distill(compose_distill(*given, "stages.verify.least_confidence=0.7"))
    fewer = ShardIndex.read(encoded)
    assert fewer is not None
    assert 0 < fewer.samples < first.samples
    assert fewer.encoding_key == first.encoding_key
    images, encodings = PairShards(out / "shards" / "train"), PairShards(encoded)
    assert sorted(encodings.keys) == sorted(images.keys)
    trained = [
        *tiny(tiny_base, "data=shards", f"data.root={encoded}", f"{SOURCE}.encoded=true", f"{SOURCE}.workers=0"),
        f"{SOURCE}.validation_root={out / 'encoded' / 'validation'}",
        "callbacks=minimal",
        "trainer.max_steps=2",
        "trainer.val_check_interval=2",
        "data.datamodule.batch_size=2",
        "logger=csv",
    ]
    train(compose_train(tmp_path / "trained", *trained), tmp_path / "trained")
    assert (tmp_path / "trained" / "checkpoints").is_dir()


def test_a_set_of_nobody_is_not_touched(tmp_path: Path, tiny_base: Path) -> None:
    out = tmp_path / "run"
    with RehearsalServer(rule) as server:
        given = arguments(out, captions_file(tmp_path, CAPTIONS[:2]), server.url, "shards.validation_share=0.0")
        given += ["encode=true", f"base.model.path={tiny_base}", f"encoding.root={out / 'shards'}"]
        with pytest.raises(ShardError, match="not of a run"):
            distill(compose_distill(*given))
    assert len(PairShards(out / "shards" / "train", verify="sha256")) > 0
