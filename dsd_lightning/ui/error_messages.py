"""Turns errors of a request into messages for the visitor; the page stays as it was."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import gradio as gr
import torch

from dsd_lightning.cli.errors import message_for_user
from dsd_lightning.pipeline.memory import is_out_of_memory

log = logging.getLogger(__name__)

NO_MEMORY = "out of memory; reduce the request, or start the page with --model_offload or --quantize"


def with_messages(work: Callable[..., Any]) -> Callable[..., Any]:
    """Return `work` with its errors as messages for the visitor."""

    @functools.wraps(work)
    def wrapped(*given: Any, **named: Any) -> Any:
        try:
            return work(*given, **named)
        except Exception as error:
            if is_out_of_memory(error):
                torch.cuda.empty_cache()
                raise gr.Error(NO_MEMORY, print_exception=False) from error
            message = message_for_user(error)
            if message is not None:
                raise gr.Error(message, print_exception=False) from error
            log.exception("a request failed")
            raise gr.Error("something went wrong on the server; see its log", print_exception=False) from error

    return wrapped
