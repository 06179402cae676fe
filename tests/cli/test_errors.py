"""Shows that errors which the user can fix become one message."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from safetensors import SafetensorError

from dsd_lightning.cli.errors import message_for_user


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/run/a.bin"), "/run/a.bin"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the run folder"),
        (
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            "the run folder",
        ),
        (RuntimeError("PytorchStreamWriter failed writing file: No space left on device"), "the run folder"),
    ],
)
def test_a_full_disk_is_one_sentence_whichever_library_raised_it(error: Exception, place: str) -> None:
    message = message_for_user(error)
    assert message is not None
    assert message.startswith("no space is left on ")
    assert place in message
    assert "None" not in message


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_the_error_of_a_real_full_device_is_recognised() -> None:
    with pytest.raises(OSError, match="No space") as caught, Path("/dev/full").open("wb", buffering=0) as file:
        file.write(b"x")
    assert "no space is left" in str(message_for_user(caught.value))
