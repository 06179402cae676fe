"""How can a run be rehearsed, and tested, without paying? A local server that speaks the providers' protocols.

It answers by rule, counts what it is asked, and fails on request: `python -m dsd_lightning.agents.server --help`.
"""

from dsd_lightning.agents.server.http import RehearsalServer
from dsd_lightning.agents.server.script import Asked, Fault, Script, load_script

__all__ = ["Asked", "Fault", "RehearsalServer", "Script", "load_script"]
