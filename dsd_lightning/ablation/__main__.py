"""The command `python -m dsd_lightning.ablation`: collects the runs of a sweep and writes its report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dsd_lightning.ablation.runs import AblationError
from dsd_lightning.cli.flags import Flags
from dsd_lightning.files.rows import TableError
from dsd_lightning.files.text import TextError

MISSING = "The report needs matplotlib, scipy, jinja2 and markdown-it-py: pip install -c constraints.txt -e '.[report]'"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the report, and print where it is and which runs are not in it."""
    parser = Flags(
        prog="python -m dsd_lightning.ablation",
        description="Writes a report of a sweep: tables, learning curves, images. Finished runs are collected in "
        "OUTPUT/runs and stay there; repeat the command as more of them finish.",
    )
    parser.add_argument("sweep", nargs="?", type=Path, help="the sweep's folder (default: only what OUTPUT/runs holds)")
    parser.add_argument("--output", type=Path, help="folder of the report (default: SWEEP/report)")
    chosen = parser.parse_args(arguments)
    if chosen.sweep is None and chosen.output is None:
        parser.error("give a sweep's folder, --output, or both")
    try:
        from dsd_lightning.ablation.report import write_report
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("matplotlib", "scipy", "jinja2", "markdown_it"):
            raise
        parser.exit(2, f"error: {MISSING}\n")
    output = chosen.output or chosen.sweep / "report"
    try:
        unfinished = write_report(chosen.sweep, output)
    except (AblationError, TableError, TextError) as error:
        parser.exit(2, f"error: {error}\n")
    print(f"report  {output / 'report.html'}")
    for run in unfinished:
        print(f"not in it: {run.place}, {run.state}")


if __name__ == "__main__":
    main()
