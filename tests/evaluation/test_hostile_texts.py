"""Names of methods and measures stay text in every format of a table."""

from __future__ import annotations

from dsd_lightning.evaluation.scores.formats import to_html, to_latex
from dsd_lightning.evaluation.scores.tables import Table

SCRIPT = '"><script>alert("1")</script>'
COMMAND = r"\input{/etc/passwd}"


def test_a_page_of_tables_escapes_every_name() -> None:
    table = Table(SCRIPT, SCRIPT, None, ((SCRIPT, SCRIPT),), ((SCRIPT, ((SCRIPT, SCRIPT),)),), (SCRIPT,))
    page = to_html([table])
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 6


def test_a_table_for_latex_reads_no_file() -> None:
    table = Table(COMMAND, COMMAND, None, ((COMMAND, COMMAND),), ((COMMAND, ((COMMAND, COMMAND),)),), (COMMAND,))
    assert r"\input" not in to_latex([table])
