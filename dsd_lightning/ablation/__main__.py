"""The command: `python -m dsd_lightning.ablation multirun/ablation --output docs/ablation`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

MISSING = "The report needs matplotlib, scipy and jinja2: pip install -c constraints.txt -e '.[report]'"


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the report and say where it is and what is missing in it."""
    parser = argparse.ArgumentParser(
        prog="python -m dsd_lightning.ablation",
        description="Makes a report of a sweep: tables, learning curves, images. Collects the finished runs in "
        "OUTPUT/runs, where they stay; give it again as more of them finish.",
    )
    parser.add_argument("sweep", nargs="?", type=Path, help="the sweep's folder; without it, what OUTPUT/runs holds")
    parser.add_argument("--output", type=Path, help="folder of the report (default: SWEEP/report)")
    chosen = parser.parse_args(arguments)
    if chosen.sweep is None and chosen.output is None:
        parser.error("give a sweep's folder, --output, or both")
    try:
        from dsd_lightning.ablation.report import make
        from dsd_lightning.ablation.runs import StudyError
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("matplotlib", "scipy", "jinja2"):
            raise
        parser.exit(2, f"error: {MISSING}\n")
    output = chosen.output or chosen.sweep / "report"
    try:
        others = make(chosen.sweep, output)
    except StudyError as error:
        parser.exit(2, f"error: {error}\n")
    print(f"report  {output / 'report.html'}")
    for run in others:
        print(f"not in it: {run.task}/{run.label}/seed{run.seed}, {run.state}")


if __name__ == "__main__":
    main()
