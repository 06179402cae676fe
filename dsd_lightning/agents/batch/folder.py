"""Keeps batches under way and their answers as files in a folder, so that a killed run goes on with them.

    FOLDER/NAME.json             keys of the requests, when it was made, and its id once the provider has given one
    FOLDER/NAME.requests.jsonl   what is uploaded; removed when the answers are here
    FOLDER/NAME.answers.jsonl    what came back, as the provider wrote it

Everything is written atomically. Any number of processes may share a folder.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsd_lightning.files.atomic import write_bytes, write_json

STATE, REQUESTS, ANSWERS = ".json", ".requests.jsonl", ".answers.jsonl"


@dataclass(frozen=True)
class Batch:
    """Requests that are sent together.

    Attributes:
        name: ours, unique; the provider stores it, so that a batch can be found whose id was not written in time.
        keys: cache keys of its requests.
        made: time of creation, seconds since 1970.
        id: the provider's; None before it is received.
    """

    name: str
    keys: tuple[str, ...]
    made: float
    id: str | None = None


class BatchFolder:
    """The batches below one folder, which is made when the first is."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, batch: Batch, suffix: str) -> Path:
        """Return one of a batch's files."""
        return self.folder / f"{batch.name}{suffix}"

    def make(self, lines: Mapping[str, bytes]) -> Batch:
        """Write the requests `lines`, by key, before they are uploaded; return their batch."""
        batch = Batch(uuid.uuid4().hex, tuple(lines), time.time())
        write_bytes(self.path(batch, REQUESTS), b"".join(lines.values()))
        return self.note(batch)

    def note(self, batch: Batch) -> Batch:
        """Write the state of a batch, and return it."""
        write_json(self.path(batch, STATE), batch.__dict__, indent=None)
        return batch

    def keep(self, batch: Batch, answers: bytes) -> None:
        """Write the answers of a batch; its requests are removed."""
        write_bytes(self.path(batch, ANSWERS), answers)
        self.path(batch, REQUESTS).unlink(missing_ok=True)

    def all(self) -> list[Batch]:
        """Return every batch in the folder."""
        batches = []
        for path in sorted(self.folder.glob(f"*{STATE}")):
            values = json.loads(path.read_bytes())
            batches.append(Batch(**{**values, "keys": tuple(values["keys"])}))
        return batches

    def answers(self, batch: Batch) -> dict[str, dict[str, Any]] | None:
        """Return the answered lines by key; None while the answers are not here."""
        try:
            return lines_by_key(self.path(batch, ANSWERS).read_bytes())
        except FileNotFoundError:
            return None

    def remove(self, batch: Batch) -> None:
        """Remove a batch."""
        for suffix in (STATE, REQUESTS, ANSWERS):
            self.path(batch, suffix).unlink(missing_ok=True)


def lines_by_key(answers: bytes) -> dict[str, dict[str, Any]]:
    """Return the lines of an answer file by their `custom_id`, which is the key."""
    lines = [json.loads(line) for line in answers.splitlines() if line.strip()]
    return {line["custom_id"]: line for line in lines}
