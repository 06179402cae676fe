"""Two processes compute what one does, under every strategy, and each resumes from the other's checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.models.architecture_rows import ROWS, base
from support.models.two_devices import (
    HALF,
    IS_SHARDED,
    NOT_SHARDABLE,
    OTHERS,
    SHARED,
    STEPS,
    assert_close,
    assert_same_run,
    one_process,
    two_processes,
)
from support.tiny_run import assert_same
from torch import Tensor

from dsd_lightning.checkpoints.adapter import read_adapter
from dsd_lightning.compute.strategy import ShardedStrategy

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Train every architecture in this process."""
    folder = tmp_path_factory.mktemp("single")
    runs = {row: one_process(row, folder / row, STEPS if row == "parallel" else 3) for row in ("parallel", *OTHERS)}
    return {"folder": folder, **runs}


@pytest.fixture(scope="module")
def double(single: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Train them in two processes that talk over gloo."""
    out = tmp_path_factory.mktemp("double")
    return {"folder": out} | two_processes("float", single["folder"], out)


@pytest.mark.parametrize(
    ("strategy", "row"),
    [(name, "parallel") for name in SHARED]
    + [(name, row) for name in SHARED[:3] for row in OTHERS if name == "ddp" or row not in NOT_SHARDABLE],
)
def test_two_processes_equal_one(single: dict[str, Any], double: dict[str, Any], strategy: str, row: str) -> None:
    steps = STEPS if row == "parallel" else 3
    assert len(single[row]["losses"]) == steps
    for rank in (0, 1):
        assert_same_run(double[f"rank{rank}"][f"{strategy}/{row}"], single[row])
    # The clipping was at work, and it did learn.
    assert max(single[row]["norms"].values()) > 0.05


@pytest.mark.parametrize("strategy", SHARED)
def test_two_processes_go_on_from_one(single: dict[str, Any], double: dict[str, Any], strategy: str) -> None:
    resumed = double["rank0"][f"{strategy}/resumed"]
    assert len(resumed["losses"]) == STEPS - HALF
    assert_same_run(resumed, single["parallel"], first=HALF)


@pytest.mark.parametrize("strategy", SHARED)
def test_one_process_goes_on_from_two(
    single: dict[str, Any], double: dict[str, Any], strategy: str, tmp_path: Path
) -> None:
    checkpoint = double["folder"] / strategy / "checkpoints" / f"step_{HALF:08d}"
    resumed = one_process("parallel", tmp_path, resume=checkpoint)
    assert len(resumed["losses"]) == STEPS - HALF
    assert_same_run(resumed, single["parallel"], first=HALF)


@pytest.mark.parametrize("strategy", SHARED)
def test_each_process_writes_its_shards_if_configured(double: dict[str, Any], strategy: str) -> None:
    folder = double["folder"] / strategy / "checkpoints" / f"step_{STEPS:08d}"
    names = {file.name for file in folder.iterdir()}
    parts = ["00000-of-00002.", "00001-of-00002."] if strategy == "adapter_shard" else ["00000-of-00001."]
    parts = parts if strategy in IS_SHARDED else [""]
    expected = {f"{stem}.{part}safetensors" for stem in ("adapter", "ema") for part in parts}
    expected |= {f"training_state.{part}safetensors" for part in parts if part}
    assert names == expected | {"adapter.json", "training_state.pt", "manifest.json"}
    _, ema = read_adapter(folder)
    _, trained = read_adapter(folder, ema=False)
    result = double["rank0"][f"{strategy}/parallel"]
    assert_same(ema, result["ema"])
    assert_same(trained, result["trained"])


def test_each_strategy_shards_what_it_says(double: dict[str, Any]) -> None:
    def sharded(strategy: str) -> dict[bool, set[str]]:
        kind_of = double["rank0"][f"{strategy}/parallel"]["kinds"]
        kinds: dict[bool, set[str]] = {True: set(), False: set()}
        for name, kind in kind_of.items():
            trained = name in double["rank0"][f"{strategy}/parallel"]["trained"]
            kinds[trained].add(kind)
        return kinds

    assert sharded("ddp") == {True: {"Parameter"}, False: {"Parameter"}}
    assert sharded("adapter_shard") == {True: {"DTensor"}, False: {"Parameter"}}
    assert sharded("fsdp") == sharded("hybrid") == {True: {"DTensor"}, False: {"DTensor"}}


@pytest.mark.parametrize("rank", [0, 1, None])
def test_sigterm_to_any_or_all_processes_stops_all_with_a_checkpoint(double: dict[str, Any], rank: int | None) -> None:
    for result in (double[f"rank{each}"][f"signal/{rank}"] for each in (0, 1)):
        assert result["exit_code"] == 143
        assert result["steps"] == 7
        assert [Path(each).name for each in result["checkpoints"]] == ["step_00000007"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_all_leave_out_a_step_that_is_not_finite_on_one(double: dict[str, Any], strategy: str) -> None:
    results = [double[f"rank{rank}"][f"nonfinite/{strategy}"] for rank in (0, 1)]
    for result in results:
        assert (result["steps"], result["skipped"]) == (3, 1)
        assert all(torch.isfinite(value).all() for value in result["trained"].values())
        assert_close(result["trained"], results[0]["trained"])
    reports = sorted(file.name for file in (double["folder"] / f"nonfinite-{strategy}").iterdir())
    assert reports == ["step_00000001_device_0.json", "step_00000001_device_1.json"]


# --- Settings.


@pytest.mark.parametrize("row", NOT_SHARDABLE)
def test_what_cannot_be_sharded_is_refused(row: str) -> None:
    with pytest.raises(ValueError, match="trainer/strategy=ddp"):
        ROWS[row].build(base()).require_shardable()


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weight_dtype=int8.*bfloat16"):
        ShardedStrategy(weight_dtype="int8")
    with pytest.raises(ValueError, match=r"replicas=0"):
        ShardedStrategy(replicas=0)


def test_an_unsharded_tensor_is_its_own_full_tensor() -> None:
    from dsd_lightning.compute.dtensors import full_tensor, gather_nested, sharded_like

    value: Tensor = torch.arange(3.0)
    assert full_tensor(value) is value
    gathered = gather_nested({"a": [value, 2]})["a"]
    assert torch.equal(gathered[0], value)
    assert gathered[1] == 2
    assert torch.equal(sharded_like(value, torch.zeros(3)), value)
