"""Silences harmless warnings, repeated lines and advertisements of libraries on the terminal."""

from __future__ import annotations

import logging
import sys
import warnings

HARMLESS = (
    # Lightning's own use of a function that PyTorch renamed.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    # The frozen base, VAE and text encoders are in evaluation mode on purpose.
    r"Found \d+ module\(s\) in eval mode at the start of training",
    # FLUX's float32 norms under autocast: correct, only not fused.
    r"Mismatch dtype between input and weight",
)
"""Warnings, as regular expressions of how they begin."""


def seconds_between_bars() -> float:
    """Return how often a progress bar is drawn again: a tenth of a second on a terminal, a minute in a log file."""
    return 0.1 if sys.stderr.isatty() else 60.0


def tidy() -> None:
    """Leave out harmless warnings, what libraries announce of themselves, and lines that two loggers would both print."""
    for message in HARMLESS:
        warnings.filterwarnings("ignore", message=message)
    # Hydra's handlers print what Lightning's would print again.
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).handlers.clear()
    # Devices that are not there, other products, and what the run's own lines say.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    if not sys.stderr.isatty():
        # A log file would get a bar for every part of a base that is loaded.
        from transformers.utils.logging import disable_progress_bar  # here, because it takes a second

        disable_progress_bar()
    # diffusers warns of every explicit attention backend that backends are experimental.
    logging.getLogger("diffusers.models.modeling_utils").addFilter(_is_news)
    # transformers recommends torchvision whenever a pipeline of diffusers names an image processor.
    logging.getLogger("transformers.utils.import_utils").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return not (
        message.startswith("Attention backends are an experimental feature")
        or "requires torchvision (not installed)" in message
    )
