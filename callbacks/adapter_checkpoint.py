"""Saves checkpoints while a run trains, keeps the latest, and saves once more when the run is stopped or fails."""

from __future__ import annotations

import copy
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint

from callbacks.rng_state import generator_states, restore_generators
from callbacks.stopping import Diverged, Stopped, StopRequest
from dsd_lightning.checkpoints.folder_io import STEP_FOLDER, FolderCheckpointIO, list_steps
from dsd_lightning.compute.processes import host_group, largest
from dsd_lightning.files.atomic import PARTIAL, rename

log = logging.getLogger(__name__)

SUPERSEDED = ".superseded"
"""Ending of the names of checkpoints later than the one a run was resumed from."""


class AdapterCheckpoint(Checkpoint):
    """Saves a checkpoint folder every so many optimizer steps, when training ends, and when it is stopped or fails.

    Needs `Trainer(plugins=[FolderCheckpointIO(...)])`, which writes them. Lightning runs it after all other callbacks (it is
    a `Checkpoint`).

    - What is saved is the state at the end of an optimizer step, whenever it is saved; a checkpoint from before that
      step's validation makes a resumed run validate first. The last step is saved once its validation is over, so that
      a run killed meanwhile does it again.
    - SIGTERM and Ctrl-C stop at the end of the step (of the batch, in validation): save, then exit with 143 or 130. A
      second Ctrl-C stops at once. On several devices all of them stop if any one got the signal.
    - After an error the end of the last complete step is saved, if its weights are still unchanged and no other device
      has to be waited for.

    Args:
        folder: where the `step_...` folders go.
        every_n_steps: optimizer steps between two checkpoints.
        keep: number of checkpoints that stay; older ones are removed once a newer one is complete on the disk.
    """

    def __init__(self, folder: str | Path, every_n_steps: int, keep: int = 2) -> None:
        if every_n_steps < 1 or keep < 1:
            raise ValueError(f"checkpoint every_n_steps={every_n_steps}, keep={keep}: both must be at least 1")
        self.folder, self.every_n_steps, self.keep = Path(folder), every_n_steps, keep
        self._stop = StopRequest()
        self._boundary: dict[str, Any] | None = None
        self._step = self._saved_step = -1
        self._stepping = self._saving = False
        self._generators: dict[str, Any] | None = None
        self._host_group: torch.distributed.ProcessGroup | None = None

    # --- Before the first step.

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse a folder that cannot be written, or that differs between processes.

        Raises:
            PermissionError: naming the folder and the remedy.
            ValueError: likewise.
        """
        first = trainer.strategy.broadcast(str(self.folder))
        if first != str(self.folder):
            raise ValueError(
                f"the processes of this run have different run folders: {first} and {self.folder}; give all of them the "
                "same one (hydra.run.dir=FOLDER)"
            )
        if stage == "fit" and trainer.is_global_zero:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=self.folder):
                    pass
            except OSError as error:
                raise PermissionError(
                    f"cannot write checkpoints to {self.folder}: {error}; choose a run folder that can be written "
                    "(hydra.run.dir=...)"
                ) from error

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse a folder that holds another run's checkpoints: `ckpt=last` could not tell them apart.

        Raises:
            FileExistsError: naming the folder and the remedy.
        """
        resumed = trainer.ckpt_path is not None
        existing = [] if resumed else list(list_steps(self.folder).values())
        if existing:
            raise FileExistsError(
                f"{self.folder} holds checkpoints already (up to {existing[-1].name}), and this run starts from scratch: "
                "resume with ckpt=last, choose another run folder, or remove them"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen for signals, put the generators' states back, and set aside what a resumed run leaves behind."""
        self._host_group = host_group()
        self._stop.install()
        self._step = self._saved_step = trainer.global_step
        if self._generators is not None:
            restore_generators(self._generators)
        if trainer.is_global_zero:
            self._tidy(trainer.global_step, "resumed at")

    def _tidy(self, step: int, why: str) -> None:
        for leftover in self.folder.glob(f"step_*{PARTIAL}"):
            shutil.rmtree(leftover)
        for later, folder in list_steps(self.folder).items():
            if later > step:
                aside = folder.with_name(folder.name + SUPERSEDED)
                if aside.exists():
                    shutil.rmtree(aside)
                rename(folder, aside)
                log.warning("%s step %d: %s is later and was renamed to %s", why, step, folder, aside.name)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Restore the generators' states once more: creating the data iterator uses them."""
        if self._generators is not None:
            restore_generators(self._generators)
            self._generators = None

    # --- At the end of an optimizer step.

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Note that until the end of the batch the weights belong to no step."""
        self._stepping = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the state of the loops after an optimizer step; save if due; stop if requested."""
        if trainer.global_step == self._step:
            return
        self._step, self._stepping = trainer.global_step, False
        self._boundary = {"loops": _loops_now(trainer), "generators": generator_states()}
        if self._step >= trainer.max_steps > 0:
            return
        if stopping := self._stop_requested(trainer):
            try:
                self._save(trainer)
            except OSError as error:  # the run ends all the same, and so does the sweep that it belongs to
                log.error("the state of step %d could not be saved: %s", self._step, error)
            raise Stopped(128 + stopping)
        if self._step % self.every_n_steps == 0:
            self._save(trainer)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop if requested; the last step's validation is finished first."""
        if self._boundary is None or self._step >= trainer.max_steps > 0:
            return
        stopping = self._stop_requested(trainer)
        if stopping:
            raise Stopped(128 + stopping)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that this step's validation is over."""
        if self._boundary is not None and trainer.state.fn == "fit":
            _validated(self._boundary["loops"])
            self._boundary["generators"] = generator_states()
        if self._generators is not None:
            self._generators = generator_states()

    # --- At the end.

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the last step."""
        self._save(trainer)
        self._finish(trainer)
        self._stop.remove()
        self._log_last(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Save the end of the last complete step, if possible; go back to the last good one, if training diverged."""
        self._stop.remove()
        if isinstance(exception, Diverged):
            self._finish(trainer)
            if trainer.is_global_zero:
                self._tidy(exception.last_good, "diverged after")
            self._log_last(trainer)
            return
        all_devices_are_here = trainer.world_size == 1 or isinstance(exception, Stopped)
        if self._boundary is not None and not self._stepping and not self._saving and all_devices_are_here:
            try:
                self._save(trainer)
                self._finish(trainer)
            except (OSError, RuntimeError) as error:
                log.error("the state before the error could not be saved: %s", error)
        if self._boundary is not None:
            self._log_last(trainer)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Stop listening for signals."""
        self._stop.remove()

    def _log_last(self, trainer: L.Trainer) -> None:
        steps = list_steps(self.folder)
        if trainer.is_global_zero and steps:
            log.info("checkpoint: %s; the same command with ckpt=last goes on from it", list(steps.values())[-1])

    # --- Saving.

    def _save(self, trainer: L.Trainer) -> None:
        if self._boundary is None or self._step == self._saved_step:
            return
        self._saving = True
        path = self.folder / STEP_FOLDER.format(self._step)
        trainer.save_checkpoint(path, weights_only=False)
        self._saving, self._saved_step = False, self._step
        log.debug("saving %s", path)
        if trainer.is_global_zero:
            # One save at a time: all earlier ones are on the disk, if this one may not be yet.
            older = [folder for step, folder in list_steps(self.folder).items() if step < self._step]
            for folder in older[: max(0, len(older) - (self.keep - 1))]:
                trainer.strategy.remove_checkpoint(folder)

    def _finish(self, trainer: L.Trainer) -> None:
        """Wait until every device has written everything; a checkpoint may be written in the background."""
        checkpoint_io = trainer.strategy.checkpoint_io
        if isinstance(checkpoint_io, FolderCheckpointIO):
            checkpoint_io.wait()
        # A process that ends early may make its launcher end the others.
        trainer.strategy.barrier("checkpoint")

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the state of the loops and of the generators (of every device) at the end of the last step."""
        states = generator_states()
        if self._saving and self._boundary is not None:
            checkpoint["loops"]["fit_loop"] = self._boundary["loops"]
            states = self._boundary["generators"]
        gathered: list[Any] = [states]
        if trainer.world_size > 1:
            gathered = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, states)
        checkpoint["generators"] = gathered

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take over the generators' states; devices that the saved run did not have keep their own."""
        states = checkpoint.get("generators", [])
        self._generators = states[trainer.global_rank] if trainer.global_rank < len(states) else None

    def _stop_requested(self, trainer: L.Trainer) -> int:
        received = self._stop.received
        return received if trainer.world_size == 1 else int(largest(torch.tensor(received), self._host_group))


def _loops_now(trainer: L.Trainer) -> dict[str, Any]:
    """Return the state of the fit loop at the end of a batch, as Lightning saves it, ready to be resumed from.

    If this step's validation is still to come, the copy says that it was interrupted in its first batch, which makes
    Lightning run it on resume. Otherwise a resumed run would skip it.
    """
    state: dict[str, Any] = copy.deepcopy(trainer.fit_loop.state_dict())
    loop = trainer.fit_loop.epoch_loop
    if trainer.max_steps > 0 and trainer.global_step >= trainer.max_steps:
        # Not the end of the data: a resumed run may have a larger max_steps.
        state["epoch_loop.batch_progress"]["is_last_batch"] = False
    fetcher = trainer.fit_loop._data_fetcher
    if fetcher is not None and trainer.enable_validation and loop._should_check_val_fx(fetcher):
        started = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        nothing = {"ready": 0, "started": 0, "processed": 0, "completed": 0}
        progress = state["epoch_loop.val_loop.batch_progress"]
        progress |= {"total": started, "current": nothing, "is_last_batch": False}
        # Lightning adds one on resume and one more after the validation.
        state["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
        state["validation_due"] = True
    return state


def _validated(loops: dict[str, Any]) -> None:
    """Change the state in place to that of a step whose validation is over."""
    if loops.pop("validation_due", False):
        progress = loops["epoch_loop.val_loop.batch_progress"]
        progress["total"] = {"ready": 0, "started": 0, "processed": 0, "completed": 0}
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] += 1
