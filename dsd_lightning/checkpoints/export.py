"""From a run to a small folder that holds what was trained alone, whatever the architecture.

python -m dsd_lightning.checkpoints.export RUN_DIR OUT [--dtype float16] [--raw]

The folder is in this project's own layout (`adapter.safetensors`, `adapter.json`), which `init_from=OUT` reads. The layout
of the officially released weights knows `arch=parallel` alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import torch

from dsd_lightning.checkpoints.adapter import read_adapter, read_header, write_adapter
from dsd_lightning.checkpoints.folder_io import find_last
from dsd_lightning.flux.base import DTYPES

FIGURES = "figures.json"
"""The run's `summary.json`, beside the weights it belongs to."""


def export_adapter(run: Path, out: Path, dtype: torch.dtype, ema: bool) -> Path:
    """Write the adapter of a run's last whole checkpoint to `out` and return the checkpoint.

    Args:
        run: a run folder, or one of its checkpoint folders.
        out: adapter folder; other files in it stay.
        dtype: of the written weights.
        ema: the averaged weights rather than the last ones.

    Raises:
        FileNotFoundError: if the run has no whole checkpoint.
    """
    checkpoint = run if (run / "adapter.json").is_file() else find_last(run / "checkpoints")
    if checkpoint is None:
        raise FileNotFoundError(f"{run} holds no whole checkpoint (looked in {run / 'checkpoints'})")
    header, weights = read_adapter(checkpoint, ema)
    write_adapter(out, header, weights, dtype)
    summary = run / "summary.json"
    if summary.is_file():
        shutil.copyfile(summary, out / FIGURES)
    return checkpoint


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0 is success, 2 a refusal."""
    parser = argparse.ArgumentParser(prog="python -m dsd_lightning.checkpoints.export", description=__doc__)
    parser.add_argument("run", type=Path, help="run folder, or one checkpoint folder of it")
    parser.add_argument("out", type=Path, help="folder of the adapter")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32")
    parser.add_argument("--raw", action="store_true", help="the last weights instead of their averages")
    chosen = parser.parse_args(arguments)
    try:
        checkpoint = export_adapter(chosen.run, chosen.out, DTYPES[chosen.dtype], ema=not chosen.raw)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    header = read_header(chosen.out)
    print(  # noqa: T201
        f"{checkpoint} -> {chosen.out}: the {header['parameters']:,} trained values of arch={header['architecture']}, in this "
        f"project's layout; init_from={chosen.out} loads them"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
