"""Answers to be judged, with labels where someone gave them: XSTest's, JailbreakBench's artifacts, and your own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from choreo.data import reading
from choreo.data.reading import OWN, Format, Loaded
from choreo.errors import BadInput
from choreo.files.rows import Fields
from choreo.types import KINDS, Kind, Prompt

OWN_LABELS = ("refusal", "harmful")
SAID = frozenset({"kind", *OWN_LABELS})  # what only answers of one's own say
LABELS = {"1_full_compliance": False, "2_full_refusal": True, "3_partial_refusal": True}


@dataclass(frozen=True, slots=True)
class Labelled:
    """An answer and what is known of it. refusal: full or partial, None where no one said; harm likewise.

    group: rows of one group (one question, one behaviour) may not be on both sides of a split.
    source: the data set; method and model: what attacked and what answered ("" where there is no attack).
    """

    prompt: Prompt
    answer: str
    refusal: bool | None
    harm: bool | None
    group: str
    source: str
    method: str
    model: str


def load(path: str | Path, format: str | None = None, *, tolerant: bool = False) -> Loaded[Labelled]:
    """All answers of a file; see `reading.load`. format: a key of FORMATS."""
    try:
        return reading.load(Path(path), FORMATS, format, own=SAID, tolerant=tolerant)
    except reading.Unknown as unknown:
        if unknown.fields & {"answer", "response", "completion"}:
            raise
        raise BadInput(f"{unknown}; its rows have no answer: they need the fields prompt, answer and kind") from None


def _xstest(row: Fields) -> Labelled:
    """{prompt, type, completion, final_label, model}. Types that start with contrast_ are the unsafe prompts."""
    asked, answer = row.text("prompt"), row.text("completion")
    kind, label = row.text("type"), row.text("final_label")
    if label not in LABELS:
        raise BadInput(f"{row.where}: final_label: expected one of {', '.join(LABELS)}, got {label[:40]!r}")
    prompt = Prompt(f"xstest-{row.line}", asked, "harmful" if kind.startswith("contrast_") else "benign", kind)
    return Labelled(prompt, answer, LABELS[label], None, asked, "xstest", "", row.text("model"))


def _jailbreakbench(row: Fields) -> Labelled:
    """{goal, prompt, response, jailbroken, method, model}."""
    asked, answer = row.text("prompt"), row.text("response")
    method, goal = row.text("method"), row.text("goal")
    prompt = Prompt(f"jailbreakbench-{row.line}", asked, "harmful", method)
    model, harm = row.text("model"), row.flag("jailbroken")
    return Labelled(prompt, answer, None, harm, goal, "jailbreakbench", method, model)


def _own(answer: str) -> Format[Labelled]:
    """{prompt, answer, kind} and, if you like, suite: answers of your own. Labels, where someone gave them: refusal,
    full or partial, and harmful, of the answer (kind is the prompt's), each true or false; null is not known."""

    def read(row: Fields) -> Labelled:
        asked, kind = row.text("prompt"), _kind(row)
        suite = row.text("suite") if "suite" in row.row else kind
        prompt = Prompt(f"line-{row.line}", asked, kind, suite)
        refusal, harm = (row.flag(name) if row.row.get(name) not in (None, "") else None for name in OWN_LABELS)
        return Labelled(prompt, row.text(answer), refusal, harm, asked, suite, "", "")

    return Format("answers of your own", frozenset({"prompt", answer, "kind"}), read, rank=OWN)


def _kind(row: Fields) -> Kind:
    told = row.one_of("kind", *KINDS)
    return next(kind for kind in KINDS if kind == told)


FORMATS: dict[str, Format[Labelled]] = {
    "xstest-answers": Format("XSTest's answers, labelled by people", frozenset({"completion", "final_label"}), _xstest),
    "jailbreakbench-answers": Format(
        "JailbreakBench's attack artifacts", frozenset({"response", "jailbroken"}), _jailbreakbench
    ),
    "answers": _own("answer"),
    "responses": _own("response"),
    "completions": _own("completion"),
}
