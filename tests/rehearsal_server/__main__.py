"""Starts the rehearsal server.

python -m rehearsal_server --port 8765 --script rehearsal.yaml
python -m rehearsal_server --port 8765 --script my_rules.py:answer
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rehearsal_server.http import RehearsalServer
from rehearsal_server.script import FAULTS, load_script

_EPILOG = """A script in YAML (match: a regular expression on the last turn's text):

  answers:
    - {match: "identical", say: ["They are. yes", "They differ. no"]}
    - {say: "a grid of four images of one cat"}
  faults:
    - {fault: rate_limited, retry_after: 2.0, every: 10}
    - {fault: unavailable, first: 1, match: "grid"}

Faults: """


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m rehearsal_server",
        description="Speak OpenAI's chat completions and images, and Gemini's generateContent, by script. GET /counts counts.",
        epilog=_EPILOG + "\n        ".join(f"{name}: {what}" for name, what in FAULTS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=int, default=8765, help="0 takes a free one (default: 8765)")
    parser.add_argument("--script", required=True, help="FILE.yaml, FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION")
    parser.add_argument("--latency", type=float, default=0.0, metavar="SECONDS", help="before each answer (default: 0)")
    options = parser.parse_args(arguments)
    try:
        server = RehearsalServer(load_script(options.script), options.port, options.latency)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{server.url} (OpenAI's base_url: {server.url}/v1; counts: {server.url}/counts)", flush=True)
    try:
        server.serve()
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
