"""A configuration that comes with a model builds what models are made of, and calls nothing else."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from support.commands import ROOT

from dsd_lightning.models.restore import restore_adapter
from dsd_lightning.models.trusted import UntrustedTargetError, is_trusted
from dsd_lightning.pipeline.loading import load_architecture

PARALLEL = "dsd_lightning.architectures.parallel.Parallel"
CONFIGURED = [file for group in ("arch", "base", "shift") for file in (ROOT / "conf" / group).rglob("*.yaml")]


class Canary:
    """Pickled, it leaves a file when it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.fixture
def malicious(tmp_path: Path) -> dict[str, Any]:
    """Return settings of factors that load a pickle, nested in an architecture's recipe."""
    file = tmp_path / "pickle"
    file.write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    load = {"_target_": "torch.load", "f": str(file), "weights_only": False}
    return {"_target_": PARALLEL, "_partial_": True, "lora": load}


def test_the_recipe_would_run_code(malicious: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011  (what the canary returns is no checkpoint)
        instantiate({**malicious, "transformer": None, "_partial_": False})
    assert (tmp_path / "canary").exists()


def test_a_saved_pipeline_runs_no_code(malicious: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "transformer"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"recipe": malicious, "network": {"num_layers": 1}}))
    with pytest.raises(UntrustedTargetError, match=r"config\.json: lora\._target_='torch\.load' is nothing that"):
        load_architecture(folder)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("place", ["base.model", "arch"])
def test_a_run_folder_runs_no_code(place: str, malicious: dict[str, Any], tmp_path: Path) -> None:
    model = {"_target_": "dsd_lightning.flux.base.FluxBase", "path": str(ROOT / "assets" / "tiny-flux")}
    config = OmegaConf.create({"base": {"model": model}, "arch": {"_target_": PARALLEL, "_partial_": True}})
    if place == "arch":
        config.arch = malicious
    else:
        config.base.model.transformer_config = {"in_channels": malicious["lora"]}
    with pytest.raises(UntrustedTargetError, match=r"config\.yaml: .*torch\.load"):
        restore_adapter(config, tmp_path)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "target",
    [
        "torch.load",
        "logging.os.system",
        "dsd_lightning.architectures.parallel.torch.load",
        "dsd_lightning.architectures.parallel.Codec",
        "dsd_lightning.architectures.base.import_module",
        "dsd_lightning.architectures.nowhere.Parallel",
        "dsd_lightning.flux.base.FluxBase.transformer",
        "builtins.exec",
        None,
        ["torch.load"],
    ],
)
def test_aliases_and_other_callables_are_refused(target: Any) -> None:
    assert not is_trusted(target)


def test_whatever_the_shipped_configuration_builds_a_model_of_is_trusted() -> None:
    targets = [
        value.strip()
        for file in CONFIGURED
        for line in file.read_text().splitlines()
        for name, _, value in [line.partition("_target_:")]
        if value and not name.strip()
    ]
    assert len(targets) > 10
    assert not [target for target in targets if not is_trusted(target)]
