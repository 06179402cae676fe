"""A local server that speaks the providers' protocols, to rehearse and test runs without paying.

It answers by rule, counts what it is asked, and fails on request: `python -m rehearsal_server --help`.
"""

from rehearsal_server.http import RehearsalServer
from rehearsal_server.script import Asked, Fault, Script, load_script

__all__ = ["Asked", "Fault", "RehearsalServer", "Script", "load_script"]
