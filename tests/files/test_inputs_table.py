"""The table of docs/inputs.md says what the readers do with every kind of input."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.data.inputs import table, tried

PAGE = Path(__file__).parents[2] / "docs" / "inputs.md"


def test_the_page_holds_what_the_readers_do(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow.parquet", reason="parquet is an optional extra")
    (tmp_path / "inputs").mkdir()
    computed = table(tried(tmp_path / "inputs"))
    (tmp_path / "table.md").write_text(computed, encoding="utf-8")
    assert computed in PAGE.read_text(encoding="utf-8"), f"put the table of {tmp_path / 'table.md'} into {PAGE}"
