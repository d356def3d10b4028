"""Answers for judges, with labels where they have any: XSTest's, JailbreakBench's artifacts, and your own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from choreo.data import reading
from choreo.data.conversations import read_history
from choreo.data.reading import OWN, Format, Loaded
from choreo.errors import BadInput
from choreo.files.rows import Fields
from choreo.types import KINDS, Kind, Prompt

OWN_LABELS = ("refusal", "harmful", "unsafe", "degenerate")  # unsafe is another word for harmful
OWN_FIELDS = frozenset({"kind", *OWN_LABELS})  # fields that only the format for a user's own answers has
LABELS = {"1_full_compliance": False, "2_full_refusal": True, "3_partial_refusal": True}


@dataclass(frozen=True, slots=True)
class LabelledAnswer:
    """An answer with its labels. refusal: whether it refuses, fully or in part; harm: whether it is harmful;
    degenerate: whether it says nothing (a loop, an echo, no sentence). None where nobody labelled it.

    group: rows of one group (one question, one behaviour) must be on the same side of a split.
    source: the data set; the file and the suite where it is none that is published. method: of the attack, "" where
    there is none. model: the model, or the system, that answered.
    labeller: who labelled it, "" where that is not said.
    """

    prompt: Prompt
    answer: str
    refusal: bool | None
    harm: bool | None
    group: str
    source: str
    method: str
    model: str
    degenerate: bool | None = None
    labeller: str = ""


def load(path: str | Path, format: str | None = None, *, tolerant: bool = False) -> Loaded[LabelledAnswer]:
    """All answers of a file; see `reading.load`. format: a key of FORMATS."""
    try:
        return reading.load(Path(path), FORMATS, format, own=OWN_FIELDS, tolerant=tolerant)
    except reading.Unknown as unknown:
        if unknown.fields & {"answer", "response", "completion"}:
            raise
        raise BadInput(f"{unknown}; its rows have no answer: they need the fields prompt, answer and kind") from None


def _xstest(row: Fields) -> LabelledAnswer:
    """{prompt, type, completion, final_label, model}. Prompts whose type starts with contrast_ are unsafe."""
    text, answer = row.text("prompt"), row.text("completion")
    kind, label = row.text("type"), row.text("final_label")
    if label not in LABELS:
        raise BadInput(f"{row.where}: final_label: expected one of {', '.join(LABELS)}, got {label[:40]!r}")
    prompt = Prompt(f"xstest-{row.line}", text, "harmful" if kind.startswith("contrast_") else "benign", kind)
    return LabelledAnswer(prompt, answer, LABELS[label], None, text, "xstest", "", row.text("model"))


def _jailbreakbench(row: Fields) -> LabelledAnswer:
    """{goal, prompt, response, jailbroken, method, model}."""
    text, answer = row.text("prompt"), row.text("response")
    method, goal = row.text("method"), row.text("goal")
    prompt = Prompt(f"jailbreakbench-{row.line}", text, "harmful", method)
    model, harm = row.text("model"), row.flag("jailbroken")
    return LabelledAnswer(prompt, answer, None, harm, goal, "jailbreakbench", method, model)


def _own(answer: str) -> Format[LabelledAnswer]:
    """{prompt, answer, kind} and, if you like, earlier and suite: answers of your own. Labels of the answer may be
    added, each true, false, or null for unknown: refusal (full or partial), unsafe (or harmful) and degenerate. So may
    who wrote the answer, system, and who labelled it, labeller. kind is of the prompt."""

    def read(row: Fields) -> LabelledAnswer:
        text, kind = row.text("prompt"), _kind(row)
        suite = row.text("suite") if "suite" in row.row else kind
        prompt = Prompt(f"line-{row.line}", text, kind, suite, earlier=read_history(row))
        labels = {name: row.flag(name) for name in OWN_LABELS if row.row.get(name) not in (None, "")}
        if (harm := labels.get("unsafe")) is None:
            harm = labels.get("harmful")
        elif labels.get("harmful", harm) != harm:
            raise BadInput(f"{row.where}: unsafe: expected what harmful says, which is the same label")
        system, labeller = (row.text(name) if row.row.get(name) is not None else "" for name in ("system", "labeller"))
        said = row.text(answer)
        return LabelledAnswer(
            prompt,
            said,
            labels.get("refusal"),
            harm,
            prompt.words,
            f"{row.file.name}, {suite}",
            "",
            system,
            labels.get("degenerate"),
            labeller,
        )

    return Format("answers of your own", frozenset({"prompt", answer, "kind"}), read, rank=OWN)


def _kind(row: Fields) -> Kind:
    found = row.one_of("kind", *KINDS)
    return next(kind for kind in KINDS if kind == found)


FORMATS: dict[str, Format[LabelledAnswer]] = {
    "xstest-answers": Format("XSTest's answers, labelled by people", frozenset({"completion", "final_label"}), _xstest),
    "jailbreakbench-answers": Format(
        "JailbreakBench's attack artifacts", frozenset({"response", "jailbroken"}), _jailbreakbench
    ),
    "answers": _own("answer"),
    "responses": _own("response"),
    "completions": _own("completion"),
}
