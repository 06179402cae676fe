"""Exports a run for others: what was trained, in this project's layout or another program's, with a model card.

python -m dsd_lightning.export RUN_DIR OUT [--format official] [--dtype bfloat16] [--raw]
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError
from omegaconf import DictConfig

from dsd_lightning.checkpoints.adapter import has_ema, read_adapter, read_header, write_adapter
from dsd_lightning.cli.flags import Flags
from dsd_lightning.export.card import copy_metrics, licence_of, write_card, write_companions
from dsd_lightning.export.hub import push
from dsd_lightning.export.layouts import LAYOUTS, Exported, possible_formats
from dsd_lightning.export.licences import CARD, Licence
from dsd_lightning.export.stock import FP8, ExportError
from dsd_lightning.export.usage import Use, warnings_of
from dsd_lightning.files.folders import MANIFEST, DamagedError, atomic_folder, partial_of, read_json
from dsd_lightning.flux.base import DTYPES, FluxBase
from dsd_lightning.models.generation_settings import GenerationSettings, read_settings, settings_of, write_settings
from dsd_lightning.models.restore import find_run, restore
from dsd_lightning.runs.folder import CONFIG, read_config

log = logging.getLogger(__name__)

STORED_AS = DTYPES | {"fp8": FP8}


def export_adapter(run: Path, out: Path, dtype: torch.dtype, ema: bool) -> Path:
    """Write the adapter of a run's last complete checkpoint to `out` and return the checkpoint.

    Args:
        run: a run folder, or one of its checkpoint folders.
        out: adapter folder; other files in it stay.
        dtype: of the written weights.
        ema: the EMA weights rather than the last ones.

    Raises:
        NoRunError: if the run has no complete checkpoint.
    """
    folder, checkpoint = find_run(run)
    header, weights = read_adapter(checkpoint, ema)
    write_adapter(out, header, weights, dtype)
    copy_metrics(folder, out)
    return checkpoint


def export_layout(
    run: Path,
    out: Path,
    layout: str,
    dtype: torch.dtype | None = None,
    ema: bool = True,
    merged: bool = False,
    base_path: str | None = None,
    base_model: str | None = None,
) -> Path:
    """Write a run atomically in another program's layout, with its model card, and return the checkpoint it was made from.

    Args:
        run: a run folder, or one of its checkpoint folders.
        out: must be new, empty, or an earlier export, which is replaced.
        layout: a key of `LAYOUTS`.
        dtype: of the written weights; None keeps the base's, and float32 for factors.
        ema: the EMA weights rather than the last ones.
        merged: official and comfyui: add the factors to the transformer's weights (the other layouts always do).
        base_path: where the base is now, if not where the run had it.
        base_model: the base's hub id for the card, where its folder does not tell.

    Raises:
        ExportError: if the layout cannot hold this run: why, and which can.
        FileExistsError: if `out` holds something else.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MANIFEST).is_file())):
        raise FileExistsError(f"{out} holds something that is no export; give a new folder")
    restored = restore(run, ema, base_path)
    header, _ = read_adapter(restored.checkpoint, ema)
    licence = licence_of(restored.base, base_model)
    title = out.resolve().name
    exported = Exported(restored.architecture, restored.base, dtype, merged, title, licence.fields["license"])
    use = Use(
        export_format=layout,
        folder=title,
        base=licence.base_model or restored.base.path,
        settings=_settings(restored.checkpoint, restored.config, ema),
        frames=tuple(restored.architecture.frames),
        architecture=restored.architecture.name,
        pipeline=restored.architecture.stock_pipeline,
        factors_alone=layout == "comfyui" and "official" not in possible_formats(restored.architecture),
    )
    with _removed_if_refused(out), atomic_folder(out) as folder:
        LAYOUTS[layout](exported, folder)
        write_companions(folder, restored.run, restored.config)
        write_settings(folder, use.settings)
        write_card(folder, title, header, licence, use)
    for warning in warnings_of(use):
        log.warning(warning)
    return restored.checkpoint


def _settings(checkpoint: Path, config: DictConfig, ema: bool) -> GenerationSettings:
    """Return what the exported weights are to be used with, and whether they are the EMA weights."""
    earlier = read_settings(checkpoint)  # of an export that is exported again
    if earlier is not None:
        return earlier
    return settings_of(config, "ema" if ema and has_ema(checkpoint) else "last")


@contextmanager
def _removed_if_refused(out: Path) -> Iterator[None]:
    """Leave nothing half-filled behind where a layout refuses a run."""
    try:
        yield
    except ExportError:
        shutil.rmtree(partial_of(out), ignore_errors=True)
        raise


def _describe_adapter(run: Path, out: Path, ema: bool, base_path: str | None, base_model: str | None) -> Licence | None:
    """Put settings and a model card, unless somebody wrote one, beside an adapter; return the base's licence, if named."""
    folder, checkpoint = find_run(run)
    if not (folder / CONFIG).is_file():
        return None
    config = read_config(folder)
    path, dtype = str(base_path or config.base.model.path), str(config.base.model.dtype)
    licence = licence_of(FluxBase(path=path, dtype=dtype), base_model)
    write_settings(out, _settings(checkpoint, config, ema))
    if not (out / CARD).is_file():
        header: Mapping[str, Any] = read_json(checkpoint / "adapter.json")
        write_companions(out, folder, config)
        title = out.resolve().name
        use = Use(
            export_format="adapter",
            folder=title,
            base=licence.base_model or path,
            settings=read_settings(out) or settings_of(config),
            frames=tuple(header["frames"]),
            architecture=header["architecture"],
        )
        write_card(out, title, header, licence, use)
    return licence


def _parser() -> argparse.ArgumentParser:
    parser = Flags(prog="python -m dsd_lightning.export", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="run folder, or one checkpoint folder of it")
    parser.add_argument("out", type=Path, help="folder of the export")
    parser.add_argument("--format", choices=("adapter", *LAYOUTS), default="adapter", help="docs/export.md lists them")
    parser.add_argument(
        "--dtype",
        choices=sorted(STORED_AS),
        help="of the weights (default: float32 for what was trained, else the base's)",
    )
    parser.add_argument("--raw", action="store_true", help="the last weights instead of the EMA weights")
    parser.add_argument("--merged", action="store_true", help="official, comfyui: factors added to the transformer")
    parser.add_argument("--base", metavar="PATH", help="where the base is now (default: where the run had it)")
    parser.add_argument("--base-model", metavar="OWNER/NAME", help="the base's hub id, for the model card")
    parser.add_argument(
        "--push-to-hub", metavar="OWNER/NAME", help="upload the export (adapters only; default: do not)"
    )
    parser.add_argument("--public", action="store_true", help="with --push-to-hub: not a private repository")
    return parser


def _run(chosen: argparse.Namespace) -> str:
    dtype = None if chosen.dtype is None else STORED_AS[chosen.dtype]
    if chosen.format == "adapter":
        if dtype == FP8:
            raise ExportError(
                "--dtype fp8 would round away what was learned; it is for formats that hold all weights: official"
            )
        if chosen.merged:
            raise ExportError(
                "--merged adds the factors to the base's weights, which an adapter does not hold; see --format"
            )
        checkpoint = export_adapter(chosen.run, chosen.out, dtype or torch.float32, ema=not chosen.raw)
        licence = _describe_adapter(chosen.run, chosen.out, not chosen.raw, chosen.base, chosen.base_model)
        header = read_header(chosen.out)
        report = (
            f"{checkpoint} -> {chosen.out}: the {header['parameters']:,} trained values of arch={header['architecture']}, in "
            f"this project's layout; init_from={chosen.out} loads them"
        )
    else:
        checkpoint = export_layout(
            *(chosen.run, chosen.out, chosen.format, dtype, not chosen.raw),
            *(chosen.merged, chosen.base, chosen.base_model),
        )
        licence = None
        report = f"{checkpoint} -> {chosen.out}"
    if chosen.push_to_hub is None:
        return report
    if chosen.format != "adapter":
        raise ExportError(
            f"{report}, but --push-to-hub uploads adapters only: --format {chosen.format} may hold the base's own weights, "
            "whose licence may forbid it; use --format adapter"
        )
    if licence is None or not licence.known:
        raise ExportError(
            f"{report}, but --push-to-hub needs to know the base's licence, which binds these weights: give --base-model"
        )
    return f"{report}\n{push(chosen.out, chosen.push_to_hub, private=not chosen.public)}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0 is success, 2 a refusal."""
    chosen = _parser().parse_args(arguments)
    try:
        report = _run(chosen)
    except (OSError, ValueError, HfHubHTTPError, DamagedError, json.JSONDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    print(report)  # noqa: T201
    return 0
