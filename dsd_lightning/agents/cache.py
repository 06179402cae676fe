"""How is every answer kept on disk, whole or not at all, so that nothing is asked or paid for twice?

One JSON file an answer, named by the key of everything that determines it. It is written beside and then renamed, so any
number of processes may read and write one folder, and a kill at any moment leaves only whole answers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

from dsd_lightning.agents.messages import Request, Sampling

FORMAT = 1
"""Version of the key and of the file; another one is another key."""

log = logging.getLogger(__name__)


def described(identity: str, model: str, request: Request, sampling: Sampling) -> dict[str, Any]:
    """Return everything that determines an answer, as JSON has it; images stand as their sha256."""
    return {
        "format": FORMAT,
        "provider": identity,
        "model": model,
        "messages": [message.described() for message in request.messages],
        "sampling": sampling.described(),
        "attempt": request.attempt,
    }


def key_of(description: dict[str, Any]) -> str:
    """Return the sha256 of a description, in hex."""
    return hashlib.sha256(json.dumps(description, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


class AnswerCache:
    """A folder of answers: `FOLDER/ab/abcd....json`.

    Args:
        folder: made when the first answer is kept. Runs may share it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, key: str) -> Path:
        """Return where the answer of `key` is, or would be."""
        return self.folder / key[:2] / f"{key}.json"

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the record of an answer, or None."""
        try:
            record: dict[str, Any] = json.loads(self.path(key).read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            log.warning("%s is damaged, which no kill can cause; its request will be asked again", self.path(key))
            return None
        return record

    def put(self, key: str, record: dict[str, Any]) -> None:
        """Keep a record; on return it survives a kill and, as far as the file system allows, a power cut."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{key}.{os.getpid()}.{threading.get_ident()}.partial")
        with partial.open("wb") as stream:
            stream.write(json.dumps(record, sort_keys=True, indent=1).encode())
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
