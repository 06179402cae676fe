"""A process for tests to kill: sends `COUNT` requests to `PROVIDER` at `URL` in a batch, with all files below `FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

from dsd_lightning.agents import Request
from support.llm.rehearsals import batching_agent

provider, url, folder, count = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
with batching_agent(provider, url, folder) as agent:
    agent.ask_all(Request.of(f"question {number}") for number in range(count))
