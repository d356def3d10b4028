"""Judge formats: how a language model is asked for a verdict, and how its reply is read. Each is a file here.

A file says the names of its formats: FORMATS = {"name": FormatEntry(MyFormat)}. A user's own format is a class with
`ask` and `read` (`choreo.judges.base.Format`), and a recipe names it: judge.kind = "mine.py:MyFormat".
"""

from choreo.judges.base import FormatEntry
from choreo.registry import discover

FORMATS: dict[str, FormatEntry] = discover(__name__, "FORMATS")
