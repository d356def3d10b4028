"""A new arena: which answers are shown, against which others, and the attention items among them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from choreo.arena.items import CHOICES, Item, Mode, RatedAnswer
from choreo.arena.sources import Answered, SystemAnswers, read_source
from choreo.arena.store import create
from choreo.data.conversations import read_history
from choreo.errors import BadInput
from choreo.files.rows import Fields, rows
from choreo.files.utf8 import is_text
from choreo.types import KINDS, Turns

GUIDELINES = Path(__file__).parent


@dataclass(frozen=True)
class ArenaPlan:
    """What a new arena is made of.

    systems: a name and its source, see `read_source`. guidelines, attention: files, or None. prompts: how many are
    drawn, None for all. seed: of that draw, and of the order and the sides that each rater sees.
    """

    mode: Mode
    systems: Sequence[tuple[str, str]]
    guidelines: Path | None = None
    attention: Path | None = None
    prompts: int | None = None
    seed: int = 0


def new_arena(folder: Path, plan: ArenaPlan) -> dict[str, Any]:
    """Makes the arena and says what is in it: {mode, systems, prompts, asked, items, attention, equal, left_out}.

    asked: how many prompts the plan wanted to draw. Where fewer are there, all of them are taken.

    Raises BadInput, and makes nothing, where something is there already or a file cannot be used.
    """
    names = [name for name, _ in plan.systems]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise BadInput(f"--system {twice[0]}: two systems have this name")
    if plan.mode == "pairs" and len(names) < 2:
        raise BadInput("arena new --pairs: needs two systems or more, --system NAME=SOURCE for each")
    sources = [read_source(name, where, kinds=plan.mode == "labels") for name, where in plan.systems]
    prompts, left_out = _shared(sources)
    if plan.prompts is not None:
        prompts = random.Random(f"prompts {plan.seed}").sample(prompts, min(plan.prompts, len(prompts)))
    made, equal = (_pairs if plan.mode == "pairs" else _single)(sources, prompts)
    attention = read_attention(plan.attention, plan.mode) if plan.attention else []
    if not made:
        raise BadInput("arena new: the systems' answers are all equal, so there is nothing to rate")
    items = [Item(number, *one) for number, one in enumerate([*made, *attention], 1)]
    about = {
        "mode": plan.mode,
        "seed": plan.seed,
        "systems": names,
        "sources": dict(plan.systems),
        "prompts": len(prompts),
        "equal": equal,
        "left_out": left_out,
        "guidelines": _guidelines(plan),
    }
    create(folder, about, items)
    told = {key: about[key] for key in ("mode", "systems", "prompts", "equal", "left_out")}
    return told | {"asked": plan.prompts, "items": len(made), "attention": len(attention)}


def _shared(sources: Sequence[SystemAnswers]) -> tuple[list[Turns], dict[str, int]]:
    """The prompts that all systems have answered, in the order of the first, and how many were left out for what."""
    everything = dict.fromkeys(prompt for source in sources for prompt in source.answers)
    shared = [prompt for prompt in everything if all(prompt in source.answers for source in sources)]
    if not shared:
        raise BadInput("arena new: there is no prompt that all systems have answered; is its text the same in each?")
    left_out = sum((source.left_out for source in sources), Counter[str]())
    left_out["prompts not answered by all"] = len(everything) - len(shared)
    for prompt in shared:
        kinds = {source.answers[prompt].kind for source in sources} - {""}
        if len(kinds) > 1:
            raise BadInput(
                f"arena new: the prompt {prompt[-1][1][:60]!r} is {' and '.join(sorted(kinds))}, by its sources"
            )
    return shared, dict(+left_out)


Made = tuple[Any, ...]  # the fields of an Item, without its id


def _pairs(sources: Sequence[SystemAnswers], prompts: Sequence[Turns]) -> tuple[list[Made], dict[str, int]]:
    """Every two systems on every prompt. Two equal answers are shown to nobody: they are counted, by pair."""
    made, equal = list[Made](), Counter[str]()
    for prompt in prompts:
        *earlier, (_, text) = prompt
        told = _known([source.answers[prompt] for source in sources])
        for one, other in combinations(sources, 2):
            a, b = one.answers[prompt].answer, other.answers[prompt].answer
            if a.text.strip() == b.text.strip():
                equal[f"{one.system} = {other.system}"] += 1
            else:
                made.append((text, *told, (a, b), "", None, tuple(earlier)))
    return made, dict(equal)


def _single(sources: Sequence[SystemAnswers], prompts: Sequence[Turns]) -> tuple[list[Made], dict[str, int]]:
    made = list[Made]()
    for one in (source.answers[prompt] for prompt in prompts for source in sources):
        *earlier, (_, text) = one.turns
        made.append((text, one.kind, one.suite, (one.answer,), "", None, tuple(earlier)))
    return made, {}


def _known(answers: Sequence[Answered]) -> tuple[str, str]:
    """The kind and the suite of a prompt, from the first source that says them."""
    return next((one.kind for one in answers if one.kind), ""), next((one.suite for one in answers if one.suite), "")


def read_attention(file: Path, mode: Mode) -> list[Made]:
    """Attention items, ready for `Item`. Raises BadInput that names file, line and field."""
    made = []
    for line, row in rows(file):
        if isinstance(row, BadInput):
            raise row
        fields = Fields(file, line, row)
        prompt, expected = fields.text("prompt"), fields.one_of("expected", *CHOICES[mode])
        names = ("a", "b") if mode == "pairs" else ("answer",)
        kind = fields.one_of("kind", *KINDS) if mode == "labels" or row.get("kind") else ""
        degenerate = fields.flag("degenerate") if mode == "labels" and row.get("degenerate") is not None else None
        made.append(
            (
                prompt,
                kind,
                kind,
                tuple(RatedAnswer("", fields.text(name)) for name in names),
                expected,
                degenerate,
                read_history(fields),
            )
        )
    if not made:
        raise BadInput(f"{file}: holds no rows")
    return made


def _guidelines(plan: ArenaPlan) -> str:
    file = plan.guidelines or GUIDELINES / f"{plan.mode}.md"
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BadInput(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadInput(f"{file}: not UTF-8") from None
    if not text.strip() or not is_text(text):
        raise BadInput(f"{file}: holds no text")
    return text


def lines_of(told: Mapping[str, Any]) -> list[str]:
    """What `new_arena` says, in words."""
    found = [f"{told['items']} items on {told['prompts']} prompts, of {', '.join(told['systems'])}"]
    if (told["asked"] or 0) > told["prompts"]:
        found.append(f"fewer prompts than --prompts {told['asked']}: all systems have answered only {told['prompts']}")
    found += [f"attention items: {told['attention']}"] if told["attention"] else []
    found += [f"equal answers, shown to nobody: {count} pairs, {pair}" for pair, count in told["equal"].items()]
    return found + [f"left out: {count} {why}" for why, count in told["left_out"].items()]
