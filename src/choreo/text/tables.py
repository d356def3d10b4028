"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def plain_columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text, all of one length, as plain columns. The first row has the heads."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
