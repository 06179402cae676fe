"""A sweep goes on after the failure of one of its runs, and lists at the end which failed."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from dsd_lightning.runs.folder import FAILURE

APP = """
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig

from dsd_lightning.cli.errors import run_command

@hydra.main(config_path=".", config_name="app", version_base="1.3")
def main(config):
    if config.x in config.wrong:
        raise FileExistsError(17, "in the way", f"file-{config.x}")
    (Path(HydraConfig.get().runtime.output_dir) / "done").touch()

if __name__ == "__main__":
    run_command(main)
"""

CONFIGURATION = """
x: 0
wrong: []
hydra:
  job: {chdir: false}
  sweep: {dir: sweep, subdir: "x${x}"}
  callbacks: {failures: {_target_: dsd_lightning.runs.sweep.FailureReport}}
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "app.py").write_text(textwrap.dedent(APP))
    (folder / "app.yaml").write_text(CONFIGURATION)
    return subprocess.run(
        [sys.executable, "app.py", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_the_other_runs_go_on_and_every_failure_is_named(tmp_path: Path) -> None:
    process = run(tmp_path, "-m", "x=1,2,3,4", "wrong=[2,3]")
    assert process.returncode == 1, process.stderr
    sweep = tmp_path / "sweep"
    assert sorted(path.parent.name for path in sweep.rglob("done")) == ["x1", "x4"]
    end = process.stderr.rpartition("2 of the runs in sweep failed")[2]
    assert "x2: file-2: in the way" in end
    assert "x3: file-3: in the way" in end
    assert "FileExistsError" in (sweep / "x2" / FAILURE).read_text()

    # What was fixed does not fail any more, and what is not part of this command is not its failure.
    process = run(tmp_path, "-m", "x=2,4")
    assert process.returncode == 0, process.stderr
    assert "failed" not in process.stderr
    assert sorted(path.parent.name for path in sweep.rglob(FAILURE)) == ["x3"]


def test_a_run_that_fails_alone_fails_as_before(tmp_path: Path) -> None:
    process = run(tmp_path, "x=2", "wrong=[2]", "hydra.run.dir=alone")
    assert process.returncode == 2
    assert "file-2: in the way" in process.stderr
    assert not list(tmp_path.rglob(FAILURE))
