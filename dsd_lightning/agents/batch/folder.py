"""Which batches are under way, and what did they answer? Files in a folder, so that a killed run goes on with them.

    FOLDER/NAME.json             keys of the requests, when it was made, and its id once the provider has given one
    FOLDER/NAME.requests.jsonl   what is uploaded; removed when the answers are here
    FOLDER/NAME.answers.jsonl    what came back, as the provider wrote it

Everything is written beside and then renamed. Any number of processes may share a folder.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STATE, REQUESTS, ANSWERS = ".json", ".requests.jsonl", ".answers.jsonl"


@dataclass(frozen=True)
class Batch:
    """Requests that are asked together.

    Attributes:
        name: ours, unique; the provider is told it, so that a batch can be found whose id was not noted in time.
        keys: cache keys of its requests.
        made: when, seconds since 1970.
        id: the provider's; None until it is known.
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
        """Keep the requests `lines`, by key, before they are uploaded; return their batch."""
        batch = Batch(uuid.uuid4().hex, tuple(lines), time.time())
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(self.path(batch, REQUESTS), b"".join(lines.values()))
        return self.note(batch)

    def note(self, batch: Batch) -> Batch:
        """Keep what is known of a batch, and return it."""
        _write(self.path(batch, STATE), json.dumps(batch.__dict__).encode())
        return batch

    def keep(self, batch: Batch, answers: bytes) -> None:
        """Keep what a batch answered; its requests are needed no more."""
        _write(self.path(batch, ANSWERS), answers)
        self.path(batch, REQUESTS).unlink(missing_ok=True)

    def all(self) -> list[Batch]:
        """Return every batch that is noted."""
        found = []
        for path in sorted(self.folder.glob(f"*{STATE}")):
            values = json.loads(path.read_bytes())
            found.append(Batch(**{**values, "keys": tuple(values["keys"])}))
        return found

    def answers(self, batch: Batch) -> dict[str, dict[str, Any]] | None:
        """Return the answered lines by key; None while the answers are not here."""
        try:
            return lines_by_key(self.path(batch, ANSWERS).read_bytes())
        except FileNotFoundError:
            return None

    def remove(self, batch: Batch) -> None:
        """Forget a batch."""
        for suffix in (STATE, REQUESTS, ANSWERS):
            self.path(batch, suffix).unlink(missing_ok=True)


def lines_by_key(answers: bytes) -> dict[str, dict[str, Any]]:
    """Return the lines of an answer file by the key that each bears as its `custom_id`."""
    lines = [json.loads(line) for line in answers.splitlines() if line.strip()]
    return {line["custom_id"]: line for line in lines}


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)
