"""What the batch providers share: requests are gathered, and each waits for its own line of the answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dsd_lightning.agents.batch.gathering import BatchService, Gatherer, Gathering
from dsd_lightning.agents.providers.provider import Remote

TIMEOUT = 600.0
"""Seconds for one submission, poll or download."""

CLOCKS_DIFFER = 3600.0
"""Seconds by which the provider's clock may be behind ours."""

LISTED = 100
"""Batches a page of the provider's list."""


class BatchRemote(Remote, BatchService):
    """A provider behind a URL whose requests travel in batches; stands before the provider's own class among the bases.

    Args:
        batches: how requests are gathered.
        settings: as for the provider that answers at once.
    """

    def __init__(self, batches: Gathering, **settings: Any) -> None:
        super().__init__(**settings)
        self._batches = batches
        self._gatherer: Gatherer | None = None

    async def _line(self, key: str, request: Callable[[], bytes]) -> dict[str, Any]:
        """Return the answered line of the request `key`, whose own line `request` returns."""
        if self._gatherer is None:
            self._gatherer = Gatherer(self, self._batches)
        return await self._gatherer.answer(key, request)

    async def close(self) -> None:
        if self._gatherer is not None:
            await self._gatherer.close()
            self._gatherer = None
        await super().close()
