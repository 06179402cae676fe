"""Keeps spending below `budget_usd`, over many calls at once, several processes, and restarts.

What a call may cost at most is reserved before it is sent and settled when its cost is known. Reservations and
settlements are lines of a ledger file. A reservation that was never settled, because its process was killed, counts as
spent: the provider may have billed it.
"""

from __future__ import annotations

import json
import math
import os
import threading
import uuid
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from dsd_lightning.agents.failures import BudgetExceeded


@dataclass(frozen=True)
class Reservation:
    """Money set aside for one call."""

    name: str
    usd: float


class Budget:
    """Dollars that may be spent, and those that have been.

    Args:
        budget_usd: bound of all spending in the ledger; None is no bound.
        ledger: file of what was spent, shared by every process that spends of this budget, and kept over restarts;
            None counts in memory, for this object alone.
    """

    def __init__(self, budget_usd: float | None, ledger: str | Path | None = None) -> None:
        if budget_usd is not None and budget_usd < 0:
            raise ValueError(f"budget_usd={budget_usd}: must be >= 0, or null for no bound")
        self.budget_usd = budget_usd
        self.ledger = None if ledger is None else Path(ledger)
        self._thread = threading.Lock()
        self._read_to = 0
        self._spent, self._tokens = 0.0, 0
        self._open: dict[str, float] = {}
        self._mine: set[str] = set()
        self._lock: AbstractContextManager[Any] = nullcontext()
        if self.ledger is not None:
            self.ledger.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(f"{self.ledger}.lock")

    @property
    def tokens(self) -> int:
        """Return the tokens of all calls that are settled, by all processes, those of models without a price among them."""
        with self._thread, self._lock:
            self._catch_up()
            return self._tokens

    @property
    def spent_usd(self) -> float:
        """Return what is spent by now, by all processes, with the reservations that are open."""
        with self._thread, self._lock:
            self._catch_up()
            return self._spent + sum(self._open.values(), 0.0)

    def reserve(self, usd: float, name: str | None = None) -> Reservation | None:
        """Set `usd` aside; None if there is too little now, but calls of this object are under way that may free some.

        Args:
            usd: what the call may cost.
            name: of a call that outlives its process; its open reservation is replaced.

        Raises:
            BudgetExceeded: there is too little, for good.
        """
        with self._thread, self._lock:
            self._catch_up()
            reserved = sum((each for call, each in self._open.items() if call != name), 0.0)
            if self.budget_usd is not None and self._spent + reserved + usd > self.budget_usd:
                if self._mine:
                    return None
                raise BudgetExceeded(self._explanation(usd, reserved))
            reservation = Reservation(name or uuid.uuid4().hex, usd)
            self._write({"call": reservation.name, "reserved_usd": usd})
            self._mine.add(reservation.name)
            return reservation

    def settle(self, reservation: Reservation, usd: float, tokens: int = 0) -> None:
        """Replace what was set aside by the `usd` that the call has cost, and note its tokens.

        The ledger holds both without a bound, too: one that is set later counts what was spent before.
        """
        with self._thread, self._lock:
            self._catch_up()
            self._mine.discard(reservation.name)
            self._write({"call": reservation.name, "spent_usd": usd, "tokens": tokens})

    def _explanation(self, usd: float, reserved: float) -> str:
        remains = (
            f" and {reserved:.4f} USD set aside by calls that have not reported back (of another process, or of a killed "
            "one, which may have been billed)"
            if reserved
            else ""
        )
        where = f" (ledger: {self.ledger})" if self.ledger is not None else ""
        return (
            f"budget_usd={self.budget_usd}: {self._spent:.4f} USD are spent{remains}{where}, and the next call may cost up "
            f"to {usd:.4f} USD, so it was not sent. To go on, run the same command again with a higher bound, such as "
            f"agents.budget.budget_usd={math.ceil(200 * (self._spent + reserved + usd)) / 100:.2f}: every answer so far is "
            "stored, and no API call is repeated or paid twice"
        )

    def _write(self, entry: dict[str, Any]) -> None:
        self._apply(entry)
        if self.ledger is None:
            return
        with self.ledger.open("ab") as stream:
            stream.write(json.dumps(entry).encode() + b"\n")
            stream.flush()
            self._read_to = os.fstat(stream.fileno()).st_size

    def _catch_up(self) -> None:
        """Read what other processes have written since."""
        if self.ledger is None or not self.ledger.exists():
            return
        with self.ledger.open("rb+") as stream:
            stream.seek(self._read_to)
            for line in stream:
                if not line.endswith(b"\n"):
                    # The machine went down in the middle of a line; the next one must not continue it.
                    stream.write(b"\n")
                self._apply_line(line)
            self._read_to = stream.tell()

    def _apply_line(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
        except ValueError:
            return
        self._apply(entry)

    def _apply(self, entry: dict[str, Any]) -> None:
        if "reserved_usd" in entry:
            self._open[entry["call"]] = entry["reserved_usd"]
        else:
            self._open.pop(entry["call"], None)
            self._spent += entry["spent_usd"]
            self._tokens += entry.get("tokens", 0)
