"""Trained weights are read back as they were written, and refused by name where they do not fit."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_run import Run, assert_same, make_architecture

from dsd_lightning.architectures.base import Architecture
from dsd_lightning.architectures.reference_tokens import ReferenceTokens
from dsd_lightning.checkpoints.adapter import (
    HEADER,
    WEIGHTS,
    AdapterMismatchError,
    check_header,
    header_of,
    load_adapter,
    save_adapter,
)
from dsd_lightning.checkpoints.folder_io import find_last
from dsd_lightning.compute.finite import NonFiniteError
from dsd_lightning.files.folders import DamagedError


def test_adapter_round_trip_and_refusals(tmp_path: Path) -> None:
    source, target = make_architecture(), make_architecture()
    with torch.no_grad():
        for _, parameter in source.trainable():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    (tmp_path / "README.md").write_text("a model card")
    save_adapter(tmp_path, source)
    header = load_adapter(tmp_path, target)
    assert_same(dict(target.trainable()), dict(source.trainable()))
    assert header.items() >= json.loads(json.dumps(header_of(source))).items()
    assert {file.name for file in tmp_path.iterdir()} == {"README.md", WEIGHTS, HEADER}
    with pytest.raises(AdapterMismatchError, match=str(tmp_path)):
        load_adapter(tmp_path, make_architecture(rank=4))
    content = bytearray((tmp_path / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(DamagedError, match=WEIGHTS):
        load_adapter(tmp_path, target)
    with pytest.raises(FileNotFoundError, match=HEADER):
        load_adapter(tmp_path / "nowhere", target)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, value: float) -> None:
    source = make_architecture()
    name, parameter = next(iter(source.trainable()))
    with torch.no_grad():
        parameter.flatten()[0] = value
    save_adapter(tmp_path, source)
    with pytest.raises(NonFiniteError, match=f"'{name}' holds NaN or infinite values; .* earlier checkpoint"):
        load_adapter(tmp_path, make_architecture())


def test_adapter_of_a_run_gives_ema_or_last_weights(tmp_path: Path) -> None:
    run = Run(tmp_path, 3).fit()
    folder = find_last(tmp_path / "checkpoints")
    assert folder is not None
    architecture = make_architecture()
    load_adapter(folder, architecture)
    assert_same(dict(architecture.trainable()), run.ema.weights)
    load_adapter(folder, architecture, ema=False)
    assert_same(dict(architecture.trainable()), run.trained())


def test_lora_pattern_may_be_written_otherwise() -> None:
    header = header_of(make_architecture())
    header["lora"] = header["lora"] | {"targets": "another pattern for the same layers"}
    check_header(header, make_architecture())
    with pytest.raises(AdapterMismatchError, match=r"arch\.lora\.targets=another"):
        check_header(header | {"parameters": 1}, make_architecture())


def test_settings_of_the_architecture_itself_must_be_the_same() -> None:
    def built(**settings: Any) -> Architecture:
        return make_architecture(partial(ReferenceTokens, **settings))

    header = json.loads(json.dumps(header_of(built(separate_pass=True, reference_timestep=0.25))))
    check_header(header, built(separate_pass=True, reference_timestep=0.25))
    for other, message in {
        (False, 0.25): r"arch\.separate_pass=true, this run has false: set arch\.separate_pass=true",
        (True, 0.0): r"arch\.reference_timestep=0\.25, this run has 0",
    }.items():
        with pytest.raises(AdapterMismatchError, match=message):
            check_header(header, built(separate_pass=other[0], reference_timestep=other[1]))
    # Checkpoints of before there were any.
    before = {key: value for key, value in header_of(make_architecture()).items() if key != "settings"}
    check_header(before, make_architecture())
