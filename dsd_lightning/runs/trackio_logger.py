"""Sends a run's metrics and images to trackio's database on this machine, which `trackio show` opens in a browser."""

from __future__ import annotations

import io
from argparse import Namespace
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from dsd_lightning.cli.settings import SettingError


class TrackioLogger(Logger):
    """A Lightning logger on `trackio.init`; a resumed run goes on in its own record. Nothing leaves the machine.

    Args:
        project: that the run is listed under.
        name: of the run; the run's folder is added, since trackio tells runs apart by their names.
        group: of the run; None for none.
        folder: the run's.

    Raises:
        SettingError: trackio is not installed.
    """

    def __init__(self, project: str, name: str, group: str | None, folder: str | Path) -> None:
        super().__init__()
        if find_spec("trackio") is None:
            raise SettingError(
                "logger=trackio needs trackio, which is not installed: pip install -c constraints.txt -e '.[trackio]', "
                "or choose logger=csv, default (W&B) or tensorboard"
            )
        self._project, self._group = project, group
        self._name = "-".join([name, *Path(folder).parts[-2:]])
        self._run: Any = None

    @property
    def name(self) -> str:
        """The run's name."""
        return self._name

    @property
    def version(self) -> str:
        """Empty: the name is the version."""
        return ""

    def _opened(self) -> Any:
        """Return the `trackio.Run`, opened when it is first needed."""
        import trackio

        if self._run is None:
            with redirect_stdout(io.StringIO()):  # trackio prints how its dashboard is opened
                self._run = trackio.init(
                    self._project,
                    name=self._name,
                    group=self._group,
                    resume="allow",
                    embed=False,
                    auto_log_gpu=False,
                    auto_log_cpu=False,
                )
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run's record holds the configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log the metrics of a step."""
        self._opened().log({name: float(value) for name, value in metrics.items() if name != "epoch"}, step=step)

    @rank_zero_only
    def log_images(self, images: dict[str, tuple[Image.Image, str | None]], step: int) -> None:
        """Log images with their captions, by name."""
        import trackio

        self._opened().log({name: trackio.Image(*image) for name, image in images.items()}, step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is still in memory."""
        if self._run is not None:
            import trackio

            with redirect_stdout(io.StringIO()):
                trackio.finish()  # not the run's own `finish`, which would be repeated, and printed, at the exit
            self._run = None
