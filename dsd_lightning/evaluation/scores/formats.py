"""Formats tables for the terminal and as CSV, Markdown, LaTeX and HTML."""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple
from itertools import groupby

from dsd_lightning.evaluation.scores.estimates import Scores, estimates
from dsd_lightning.evaluation.scores.tables import Table

_CSV_COLUMNS = (
    "method",
    "estimate",
    "value",
    "low",
    "high",
    "subjects",
    "images",
    "scored",
    "missing",
    "rule",
    "judge",
)


def _caption(table: Table) -> str:
    rule = "" if table.rule is None else f" Rule: {table.rule}."
    return f"{table.title}. Judge: {table.judge}.{rule}"


def _spans(table: Table) -> list[tuple[str, int]]:
    return [(name, len(list(members))) for name, members in groupby(table.columns, key=lambda column: column[0])]


def to_text(tables: Sequence[Table]) -> str:
    """Return tables for a terminal, cells of several lines."""
    blocks = []
    for table in tables:
        lines: list[list[tuple[str, ...]]] = [[("Method",), *((heading,) for _, heading in table.columns)]]
        lines += [[(name,), *cells] for name, cells in table.rows]
        widths = [max(len(line) for row in lines for line in row[column]) for column in range(len(lines[0]))]
        out = [_caption(table), _headings(table, widths)]
        for number, row in enumerate(lines):
            height = max(len(cell) for cell in row)
            for place in range(height):
                parts = [cell[place] if place < len(cell) else "" for cell in row]
                padded = [parts[0].ljust(widths[0]), *(p.rjust(w) for p, w in zip(parts[1:], widths[1:], strict=True))]
                out.append("  ".join(padded).rstrip())
            if number == 0:
                out.append("  ".join("-" * width for width in widths))
        blocks.append("\n".join([*out, *table.notes]))
    return "\n\n".join(blocks) + "\n"


def _headings(table: Table, widths: Sequence[int]) -> str:
    line, place = " " * widths[0], 1
    for name, count in _spans(table):
        line += "  " + name.center(sum(widths[place : place + count]) + 2 * (count - 1))
        place += count
    return line.rstrip()


def to_markdown(tables: Sequence[Table]) -> str:
    """Return tables for Markdown, lines of a cell separated by <br>."""
    blocks = []
    for table in tables:
        headings = [f"{group.split()[0]} {heading}" if group else heading for group, heading in table.columns]
        rows = [["Method", *headings], ["---", *["---:"] * len(headings)]]
        rows += [[name, *("<br>".join(filter(None, cell)) for cell in cells)] for name, cells in table.rows]
        body = "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in rows)
        blocks.append(f"**{_caption(table)}**\n\n{body}\n\n" + "\n\n".join(table.notes))
    return "\n\n".join(blocks) + "\n"


_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
)


def to_latex(tables: Sequence[Table]) -> str:
    """Return tables for LaTeX (packages booktabs and makecell)."""
    blocks = []
    for table in tables:
        groups = ["", *(f"\\multicolumn{{{count}}}{{c}}{{{name.translate(_LATEX)}}}" for name, count in _spans(table))]
        rows = [["Method", *(heading.translate(_LATEX).replace(" x ", r" $\times$ ") for _, heading in table.columns)]]
        body = [
            [name.translate(_LATEX), *(_latex_cell(tuple(filter(None, cell))) for cell in cells)]
            for name, cells in table.rows
        ]
        blocks.append(
            "\n".join(
                [
                    r"\begin{table}",
                    r"\centering",
                    f"\\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
                    r"\toprule",
                    " & ".join(groups) + r" \\",
                    *(" & ".join(row) + r" \\" for row in rows),
                    r"\midrule",
                    *(" & ".join(row) + r" \\" for row in body),
                    r"\bottomrule",
                    r"\end{tabular}",
                    f"\\caption{{{' '.join([_caption(table), *table.notes]).translate(_LATEX)}}}",
                    r"\end{table}",
                ]
            )
        )
    return "% needs \\usepackage{booktabs,makecell}\n" + "\n\n".join(blocks) + "\n"


def _latex_cell(lines: tuple[str, ...]) -> str:
    texts = [line.translate(_LATEX) for line in lines]
    # A bracket after \\ would be read as a length.
    return texts[0] if len(texts) == 1 else r"\makecell[r]{" + r" \\ ".join("{" + text + "}" for text in texts) + "}"


def to_html(tables: Sequence[Table]) -> str:
    """Return tables as a self-contained page."""
    blocks = []
    for table in tables:
        groups = "".join(f'<th colspan="{count}">{html.escape(name)}</th>' for name, count in _spans(table))
        headings = "".join(f"<th>{html.escape(heading)}</th>" for _, heading in table.columns)
        rows = "".join(
            f"<tr><th>{html.escape(name)}</th>"
            + "".join(
                f"<td>{html.escape(cell[0])}"
                + "".join(f"<br><small>{html.escape(line)}</small>" for line in cell[1:] if line)
                + "</td>"
                for cell in cells
            )
            + "</tr>\n"
            for name, cells in table.rows
        )
        notes = "".join(f"<p><small>{html.escape(note)}</small></p>" for note in table.notes)
        blocks.append(
            f"<table><caption>{html.escape(_caption(table))}</caption>\n<tr><th></th>{groups}</tr>\n"
            f"<tr><th>Method</th>{headings}</tr>\n{rows}</table>{notes}"
        )
    style = (
        "body{font:15px system-ui,sans-serif;margin:2em}table{border-collapse:collapse;margin-top:2em}"
        "caption{text-align:left;font-weight:600;padding-bottom:.4em}td,th{padding:.3em .7em;text-align:right;"
        "border-bottom:1px solid #ccc}th:first-child{text-align:left}small{color:#555}"
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Evaluation</title>'
        f"<style>{style}</style>\n" + "\n".join(blocks) + "\n</html>\n"
    )


def to_csv(rows: Sequence[Scores]) -> str:
    """Return every estimate of every method as a line, with interval, counts, rule and judge."""
    lines = [
        (row.method, name, *astuple(each), row.rule, row.judge) for row in rows for name, each in estimates(row).items()
    ]
    return csv_text(_CSV_COLUMNS, lines)


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table as CSV, floats with six digits; cells of NaN are empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_number(value) for value in row] for row in rows)
    return out.getvalue()


def _number(value: object) -> object:
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.6f}"
