"""Reports errors that the user can fix as one message with value and remedy; others keep their traceback."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

from hydra.errors import HydraException, InstantiationException
from omegaconf.errors import OmegaConfBaseException

from dsd_lightning.cli.suggestions import suggestion

REFUSED, INTERRUPTED = 2, 130
"""Exit codes: for bad input, and after Ctrl-C."""

FULL_ERROR = "HYDRA_FULL_ERROR"
"""Hydra's environment variable: at 1, every error comes with its traceback."""

_PACKAGES = ("dsd_lightning", "datamodules", "callbacks")
_CONFIGURATION = (HydraException, OmegaConfBaseException)
_REFUSALS = (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError, ModuleNotFoundError)
"""What this project's code raises to refuse an input; raised elsewhere, they may be anybody's mistake."""

_FILE_SYSTEM = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
)


def message_for_user(error: BaseException) -> str | None:
    """Return the message for the user of `error`; None for a programming error, whose traceback is needed.

    The user can fix what Hydra reports of the configuration, what any constructor reports of values from it, what this
    project's code raises to refuse an input, and what the file system and W&B report.
    """
    if _is_disk_full(error):
        place = getattr(error, "filename", None) or "the disk of the run folder, or of the folder for temporary files"
        return (
            f"no space is left on {place}: free some, or choose another place (hydra.run.dir=..., TMPDIR); "
            "files that were complete before are kept"
        )
    if isinstance(error, InstantiationException):
        cause = error.__cause__
        if cause is None:
            return str(error)
        # Hydra's own text repeats the cause as Python would print it.
        where = str(error).rpartition("full_key: ")[2]
        return message_for_user(cause) or f"{where}: {type(cause).__name__}: {cause}"
    if isinstance(error, _CONFIGURATION):
        parts = [each for each in (error, error.__cause__) if isinstance(each, _CONFIGURATION)]
        return "\n".join([*map(str, parts), *filter(None, map(suggestion, parts))])
    package = type(error).__module__.partition(".")[0]
    if package == "wandb":
        return (
            f"W&B is not available: {error}\nTrain with logger.wandb.offline=true (and upload later with `wandb sync`), "
            "or without it: logger=csv"
        )
    if package in _PACKAGES or (isinstance(error, _REFUSALS) and _raised_by_us(error)):
        return str(error)
    if isinstance(error, OSError) and error.errno in _FILE_SYSTEM:
        return (
            f"{error.filename}: {error.strerror}; choose another place (the run folder: hydra.run.dir=...), or fix it"
        )
    return None


def _is_disk_full(error: BaseException) -> bool:
    """Return whether the disk or its quota is full, whichever library says so: some, as safetensors, only by text."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return any(text in str(error) for text in ("No space left on device", "Disk quota exceeded"))


def _raised_by_us(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    # Not __name__, which is "__main__" in a module run by `python -m`.
    return trace is not None and str(trace.tb_frame.f_globals.get("__package__")).partition(".")[0] in _PACKAGES


def run_command(main: Callable[[], None]) -> None:
    """Run the `main` of a command (a function that Hydra decorated).

    An error that the user can fix ends the process with its message and exit code 2; Ctrl-C ends it with 130. With
    HYDRA_FULL_ERROR=1 every error comes with its traceback.
    """
    with_traceback = os.environ.get(FULL_ERROR) == "1"
    # Otherwise Hydra prints errors itself and exits.
    os.environ[FULL_ERROR] = "1"
    try:
        main()
    except KeyboardInterrupt:
        _leave("stopped", INTERRUPTED)
    except SystemExit as stop:
        # Lightning answers a Ctrl-C before the first step with exit code 1.
        if isinstance(stop.__context__, KeyboardInterrupt):
            _leave("stopped", INTERRUPTED)
        raise
    except Exception as error:
        message = None if with_traceback else message_for_user(error)
        if message is None:
            raise
        _leave(f"error: {message}\n({FULL_ERROR}=1 shows where it was raised.)", REFUSED)


def _leave(message: str, code: int) -> None:
    sys.stderr.write(f"\n{message}\n")
    sys.exit(code)
