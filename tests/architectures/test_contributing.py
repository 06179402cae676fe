"""The example of CONTRIBUTING.md keeps every law, and trains."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import test_architectures
from diffusers import AutoencoderKL
from support.commands import ROOT, SOURCE, compose_train
from support.models import architecture_rows

from dsd_lightning import architectures
from dsd_lightning.flux.codec import Codec
from dsd_lightning.training.run import train

BLOCKS = {
    name: textwrap.dedent(text)
    for name, text in re.findall(
        r"^ *`([\w./]+)`:\n\n *```\w+\n(.*?)^ *```", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S
    )
}
FILE, YAML, ROW = (
    "dsd_lightning/architectures/pooled.py",
    "conf/arch/pooled.yaml",
    "tests/support/models/architecture_rows.py",
)

LAWS = [
    law
    for name, law in vars(test_architectures).items()
    if name.startswith("test_") and "row" in inspect.signature(law).parameters
]


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Write the example's files beside the project's, and let them be found."""
    folder = tmp_path_factory.mktemp("newcomer")
    for name in (FILE, YAML):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(BLOCKS[name])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(architectures, "__path__", [*architectures.__path__, str((folder / FILE).parent)])
        patch.setattr(architecture_rows, "CONF", (folder / YAML).parent)
        yield folder


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(AutoencoderKL.from_pretrained(ROOT / "assets" / "tiny-flux" / "vae"))


def test_the_example_is_there() -> None:
    assert set(BLOCKS) == {FILE, YAML, ROW}
    assert len(LAWS) > 10
    assert not (ROOT / FILE).exists()


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_the_example_keeps_the_law(law: Callable[..., None], example: Path, codec: Codec, tmp_path: Path) -> None:
    row = eval("{" + BLOCKS[ROW] + "}", vars(architecture_rows))["pooled"]
    given: dict[str, Any] = {"row": row, "codec": codec, "tmp_path": tmp_path}
    law(**{name: given[name] for name in inspect.signature(law).parameters})


def test_the_example_trains(example: Path, tiny_base: Path, tmp_path: Path) -> None:
    few = [f"{SOURCE}.pairs=4", f"{SOURCE}.validation_pairs=2", "data.datamodule.batch_size=2", "trainer.max_steps=1"]
    searched = f"hydra.searchpath=[file://{example / 'conf'}]"
    config = compose_train(
        tmp_path,
        searched,
        "arch=pooled",
        f"base.model.path={tiny_base}",
        *few,
        "trainer.accelerator=cpu",
        "callbacks=minimal",
        "logger=csv",
    )
    train(config, tmp_path)
    assert (tmp_path / "checkpoints" / "step_00000001" / "adapter.safetensors").is_file()
