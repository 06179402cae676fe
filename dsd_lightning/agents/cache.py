"""Stores every answer on disk, atomically, so that no API call is repeated or paid for twice.

One JSON file an answer, named by the key of everything that determines it; a generated image is a file beside it. Any
number of processes may read and write one folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from dsd_lightning.agents.messages import Request, Sampling
from dsd_lightning.files.atomic import write_bytes

FORMAT = 1
"""Version of the key and of the file; another one is another key."""

log = logging.getLogger(__name__)


def described(identity: str, model: str, request: Request, sampling: Sampling) -> dict[str, Any]:
    """Return everything that determines an answer, as JSON has it; images by their sha256."""
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
        folder: made when the first answer is stored. Runs may share it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, key: str) -> Path:
        """Return where the answer of `key` is, or would be."""
        return self.folder / key[:2] / f"{key}.json"

    def image_path(self, key: str) -> Path:
        """Return where the image of `key` is, or would be."""
        return self.path(key).with_suffix(".image")

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the record of an answer, its image as bytes in `["answer"]["image"]`; None if it is not here."""
        if not self.path(key).exists():
            return None
        try:
            record: dict[str, Any] = json.loads(self.path(key).read_bytes())
            stored = record.get("answer", {}).get("image")
            if stored is not None:
                record["answer"]["image"] = self._image(key, stored)
        except (ValueError, FileNotFoundError):
            log.warning("%s is damaged, which no kill can cause; its request will be sent again", self.path(key))
            return None
        return record

    def _image(self, key: str, sha256: str) -> bytes:
        data = self.image_path(key).read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ValueError(f"{self.image_path(key)} is not the image that was stored")
        return data

    def put(self, key: str, record: dict[str, Any]) -> None:
        """Store a record; on return it survives a kill and, as far as the file system allows, a power cut.

        The bytes `record["answer"]["image"]`, if there are any, become a file that is written before the record.
        """
        image = record.get("answer", {}).get("image")
        if image is not None:
            write_bytes(self.image_path(key), image)
            answer = {**record["answer"], "image": hashlib.sha256(image).hexdigest()}
            record = {**record, "answer": answer}
        # In ASCII: answers may hold halves of surrogate pairs, which UTF-8 cannot write.
        write_bytes(self.path(key), json.dumps(record, sort_keys=True, indent=1).encode())
