"""Trains the built-in judge and measures it by cross-validation: `choreo judge train`.

Every constant was chosen by measurement (docs/results/offline-judge.md) and is the same in every fold: nothing is tuned
on the test rows of a fold. Rows of one question or behaviour are always in the same fold.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from choreo.data.answers import LabelledAnswer, load
from choreo.data.reading import counted, taken
from choreo.errors import BadInput
from choreo.evaluation.judge_labels import (
    WEAK_HARM,
    WEAK_REFUSAL,
    Aside,
    LabelHead,
    attack_of,
    card_rows,
    heads,
    model_of,
    one_sided,
    refuse_one_sided,
    view,
)
from choreo.evaluation.judge_trials import FAMILY, MODEL, PROMPTS, fold_of
from choreo.evaluation.judging import confusion_table
from choreo.files import durable
from choreo.judges.offline.features import BUCKETS, FIGURES, features, tokens
from choreo.judges.offline.logistic import fit
from choreo.judges.offline.model import OfflineJudge, Weights

FILES = ("xstest_responses_human_labels.jsonl", "jbb_attack_artifacts.jsonl")
PENALTY = 30.0
FIGURES_SHARE = 0.1  # the mean squared length of a row's standardised figures together
INTERCEPT = 10.0  # a constant feature of this squared length takes the place of a free intercept
KIND = 100.0  # the same for a constant feature of each kind of prompt
FOLDS = 10
FOLDS_ASIDE = 5  # folds where a model or an attack family is left out too; must divide FOLDS
CHUNK = 4096
WEIGHTS_FILE, CARD_FILE = "offline.npz", "DATA_CARD.md"


CARD = """# Data card of the offline judge

Made by `choreo judge train`; every number below is of that run. Numbers alone ship: no text of the data is in the file.

## What it learnt from

| source | answers of | rows |
|---|---|---|
{rows}

What is known of the published files, where their rows are among these:

- **xstest**: prompts, answers and two human annotations with an agreed label, Röttger et al., NAACL 2024; prompts and
  labels CC-BY-4.0, answers by Mistral-7B-Instruct (Apache-2.0). Refusal is full or partial refusal; an
  answer is likelier labelled one where the prompt is unsafe.
- **jailbreakbench**: attack prompts, answers and the verdict `jailbroken`, Chao et al. 2024; MIT. The verdict is a
  language model's, checked by its authors against people, and is no human label. The answers come from models whose
  own terms may apply.
- Weak labels of harm, at {weak_harm} of the weight of a verdict: an xstest refusal, and compliance with a safe prompt,
  are harmless; compliance with an unsafe prompt is harmful.
- Weak labels of refusal, at {weak_refusal} of the weight of a person's: a jailbreakbench answer that opens as a refusal
  where the attack failed is one, an answer where it succeeded and that does not open so is none.
- Nothing under a non-commercial licence was read.

## What it is worth, on answers left out of training

Ten folds; answers to one question or about one behaviour are in one fold. In the other rows, a model or an attack
family is left out of training as well (five folds). Yes is a refusal, or harm. "Open": undetermined, because a
probability was within {unsure} of one half. Accuracy with its 95 % Wilson interval, precision, recall and F1 are of
the rest.

{tables}

## Where not to trust it

English only. It reads words, not meaning: it takes an answer that complies with something harmless in place of what
was asked, or that is harmful in harmless words, by its manner. Harm takes the kind of the prompt into account, which
must be known. There were {safe} answers to prompts that are not harmful. Labelled harmful: {harmful}, so hardly any is
ever called so. Labelled refusals: {refused}. Its labels carry the judgement of those who gave them, on these prompts
and models.
"""


@dataclass(frozen=True)
class Encoded:
    """n rows as numbers. gram: float64 (n, n), the inner products without intercepts. All other shapes are (n, …)."""

    rows: list[LabelledAnswer]
    buckets: list[np.ndarray]
    values: list[np.ndarray]
    figures: np.ndarray
    gram: np.ndarray
    fold: np.ndarray
    harmful: np.ndarray


def read_rows(folder: Path, report: Callable[[str], object] = lambda line: None) -> list[LabelledAnswer]:
    """The rows that the judge learns from. report: called with a line on each file and its format. Raises BadInput for
    a file that is missing or does not fit."""
    if not folder.is_dir():
        raise BadInput(f"{folder}: expected a folder with {' and '.join(FILES)}")
    return [row for name in FILES for row in read_file(folder / name, report)]


def read_all(places: Sequence[Path], report: Callable[[str], object] = lambda line: None) -> list[LabelledAnswer]:
    """The rows of folders of published data (`read_rows`) and of files (`read_file`), in their order."""
    return [row for place in places for row in (read_rows if place.is_dir() else read_file)(place, report)]


def read_file(file: Path, report: Callable[[str], object] = lambda line: None) -> list[LabelledAnswer]:
    """The rows of one file of answers; as of `read_rows`."""
    loaded = load(file)
    report(taken(file.name, counted(loaded)))
    return loaded.rows


def encode(rows: list[LabelledAnswer]) -> Encoded:
    """The rows as numbers, with the inner products of all pairs of rows."""
    found = [features(row.prompt.text, tokens(row.answer), row.answer) for row in rows]
    figures = np.stack([own for _, _, own in found]).astype(np.float64)
    buckets, values = [b for b, _, _ in found], [v for _, v, _ in found]
    gram = np.zeros((len(rows), len(rows)))
    for first in range(0, BUCKETS, CHUNK):  # a dense matrix of all buckets would take a gigabyte
        part = np.zeros((len(rows), CHUNK))  # float64: different rounding of CPUs then disappears in float16
        for index, (bucket, value) in enumerate(zip(buckets, values, strict=True)):
            here = (bucket >= first) & (bucket < first + CHUNK)
            part[index, bucket[here] - first] = value[here]
        part = part[:, part.any(0)]
        gram += part @ part.T
    scaled = (figures - figures.mean(0)) * _scale(figures)
    fold = np.array([fold_of(row.group, FOLDS) for row in rows])
    harmful = np.array([row.prompt.kind == "harmful" for row in rows])
    return Encoded(rows, buckets, values, figures, gram + scaled @ scaled.T, fold, harmful)


def solve(data: Encoded, head: LabelHead, rows: np.ndarray, by_kind: bool) -> np.ndarray:
    """The coefficients of `rows` (indices) by `logistic.fit`. by_kind: whether each kind of prompt has an intercept."""
    return fit(_gram(data, rows, rows, by_kind), head.labels[rows], head.weights[rows], PENALTY)


def predict(data: Encoded, head: LabelHead, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """The logits of the rows `test` (indices) by a head trained on the rows `train`."""
    logits = np.zeros(len(test))
    for by_kind in sorted(set(head.kinds)):
        here = np.where(data.harmful[test], *head.kinds) == by_kind
        logits[here] = _gram(data, test[here], train, by_kind) @ solve(data, head, train, by_kind)
    return logits


def held_out(data: Encoded, head: LabelHead, aside: Aside | None = None) -> np.ndarray:
    """The logits of the head's known rows by heads that were trained without rows of the same group and, with `aside`,
    without rows of the same method or model. NaN for all other rows."""
    logits = np.full(len(data.rows), np.nan)
    names = np.array([aside(row) if aside else "" for row in data.rows])
    parts = FOLDS if aside is None else FOLDS_ASIDE
    fold = data.fold % parts
    for name in sorted(set(names[head.known])):
        for part in range(parts):
            test = np.flatnonzero(head.known & (names == name) & (fold == part))
            train = np.flatnonzero(head.taught & (fold != part) & ((names != name) | (aside is None)))
            if len(test) and len(set(head.labels[train])) == 2:
                logits[test] = predict(data, head, train, test)
    return logits


def weights(data: Encoded, both: Sequence[LabelHead]) -> Weights:
    """The weights of the judge, trained on all rows."""
    refusal, harm = both
    columns = ((refusal, refusal.kinds[0]), (refusal, refusal.kinds[1]), (harm, True))  # as offline.COLUMNS
    table, figures = np.zeros((BUCKETS, len(columns))), np.zeros((len(FIGURES), len(columns)))
    scale, centre = _scale(data.figures), data.figures.mean(0)
    biases: list[list[float]] = []
    for column, (head, by_kind) in enumerate(columns):
        rows = np.flatnonzero(head.taught)
        a = solve(data, head, rows, by_kind)
        for row, share in zip(rows, a, strict=True):
            table[data.buckets[row], column] += share * data.values[row]
        figures[:, column] = ((data.figures[rows] - centre) * scale**2).T @ a
        kinds = [a[data.harmful[rows] == kind].sum() for kind in (True, False)]
        biases.append([float(INTERCEPT * a.sum() + (KIND * share if by_kind else 0)) for share in kinds])
    bias = np.array([[biases[0][0], biases[1][1]], biases[2]])
    return Weights(*(part.astype(np.float32) for part in (table, figures, centre, bias)))


def train_judge(rows: list[LabelledAnswer], out: Path, say: Callable[[str], object] = lambda line: None) -> str:
    """Writes weights and data card into `out`, and returns the cross-validated tables (Markdown).

    say: called with a line on each label that is the same in all rows. Raises BadInput where both are, and where `out`
    cannot be made.
    """
    both = heads(rows)
    refuse_one_sided(both)
    for line in one_sided(both):
        say(f"! {line}")
    durable.make_folder(out)
    data = encode(rows)
    made = weights(data, both)
    tables = report(data, both, OfflineJudge.unsure)
    made.save(out / WEIGHTS_FILE)
    (out / CARD_FILE).write_text(card(rows, tables), encoding="utf-8")
    return tables


def card(rows: Sequence[LabelledAnswer], tables: str) -> str:
    """The data card: the rows that the weights were trained on, their licences, and the measured `tables`."""
    safe = [row for row in rows if row.prompt.kind != "harmful"]
    return CARD.format(
        rows=card_rows(rows),
        tables=tables,
        weak_harm=WEAK_HARM,
        weak_refusal=WEAK_REFUSAL,
        unsure=OfflineJudge.unsure,
        safe=len(safe),
        harmful=sum(row.harm is True for row in safe),
        refused=sum(row.refusal is True for row in safe),
    )


def card_of(weights: Path) -> Path:
    """The data card of a judge's weights: NAME.card.md beside NAME.npz, else the folder's."""
    own = weights.with_suffix(".card.md")
    return own if own.is_file() else weights.with_name(CARD_FILE)


def in_training(weights: Path) -> Callable[[LabelledAnswer], bool]:
    """A function that says whether the data card of `weights` names the source and model of an answer. Without a card
    it always says no."""
    text = _told(weights)
    return lambda row: f"| {row.source} | {row.model} |" in text


def training_sources(weights: Path) -> set[str]:
    """The rows that the data card of `weights` names, as "source, model". Empty without a judge's card."""
    rows = re.findall(r"^\| (.+?) \| (.*?) \| \d+ \|$", _told(weights), re.MULTILINE)
    return {f"{source}, {model}" if model else source for source, model in rows}


def _told(weights: Path) -> str:
    """What the data card says that a judge learnt from; "" where there is no card of a judge."""
    file = card_of(weights)
    _, _, told = (file.read_text(encoding="utf-8") if file.is_file() else "").partition("## What it learnt from")
    return told.partition("\n## ")[0]


def report(data: Encoded, both: Sequence[LabelHead], unsure: float) -> str:
    """The cross-validated tables, in Markdown. unsure: as in OfflineJudge."""
    parts = []
    for head in both:
        ways: list[tuple[str, Aside | None]] = [(PROMPTS, None), (MODEL, model_of)]
        if head.name == "harm":
            ways.append((FAMILY, attack_of))
        named = []
        for way, aside in ways:
            named += view(way, head, data.rows, held_out(data, head, aside), unsure)
        parts.append(f"### {head.name.capitalize()}\n\n{confusion_table(named)}")
    return "\n\n".join(parts)


def _gram(data: Encoded, left: np.ndarray, right: np.ndarray, by_kind: bool) -> np.ndarray:
    kinds = data.harmful[left][:, None] == data.harmful[right][None, :]
    return data.gram[np.ix_(left, right)] + INTERCEPT + (KIND * kinds if by_kind else 0.0)


def _scale(figures: np.ndarray) -> np.ndarray:
    return np.sqrt(FIGURES_SHARE / figures.shape[1]) / (figures.std(0) + 1e-9)
