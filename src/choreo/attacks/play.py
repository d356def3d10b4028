"""Plays an attack on one system of a target: every prompt is tried until a try wins or the budget is used up.

The tries of one number are played together, in chunks. A chunk is a file under `attempts/` that is there whole or not
at all; what a chunk holds follows from the chunks before it. So an attack that was killed goes on as if it had never
stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from choreo.agents.base import Agent
from choreo.attacks.base import Attack, Attempt, Case, WriterQuestion, won
from choreo.attacks.targets import Target
from choreo.errors import BadInput
from choreo.files import durable
from choreo.judges.base import Judge, judge_episodes
from choreo.runs.episodes import earlier_of, record
from choreo.types import CONVERSATION, Episode, Limits, Prompt, Verdict

CHUNK = 64  # prompts that are played as one batch
FOLDER = "attempts"
QUESTION_TOKENS = 512  # at most, of a reworded prompt
WRITER_TEMPERATURE = 1.0
WRITERS = "--writer (MODEL@URL, a model here, or for trained a run of attacker)"

Record = Mapping[str, Any]


@dataclass(frozen=True)
class AttackSetup:
    """What all attacks of one command share. writer: who words what an attack asks a model for; None where nobody is
    named."""

    target: Target
    judge: Judge
    tries: int
    seed: int
    folder: Path
    writer: Agent[Any] | None = None


def title(system: str, attack: str) -> str:
    """The name of an attack on a system, in figures and as the source of its games."""
    return f"{system}, {attack}"


def title_parts(name: str) -> tuple[str, str]:
    """(system, attack) of a title."""
    system, _, attack = name.partition(", ")
    return system, attack


def play_attack(
    setup: AttackSetup, system: str, name: str, attack: Attack, prompts: Sequence[Prompt]
) -> Iterator[list[Record]]:
    """The records of every chunk, as soon as its file is there: those of an earlier call first.

    A record is that of a game (`runs.episodes.record`) on the prompt that was sent, with "attack": {name, system,
    try, won, prompt, reworded} beside it. prompt: the text that stands in the suite. reworded: whether the writer gave
    words for this try, else the prompt was sent as it stands; None where it was not asked.

    Raises BadInput where a file there is of another attack, or this one gives no prompt, or asks for a writer where
    there is none.
    """
    (setup.folder / FOLDER).mkdir(exist_ok=True)
    before: dict[str, tuple[Attempt, ...]] = {prompt.id: () for prompt in prompts}
    for number in range(1, setup.tries + 1):
        live = [prompt for prompt in prompts if not any(won(prompt, one.verdict) for one in before[prompt.id])]
        for first in range(0, len(live), CHUNK):
            chunk = live[first : first + CHUNK]
            file = setup.folder / FOLDER / f"{_stem(system, name)}.{number:03d}-{first // CHUNK:03d}.jsonl.gz"
            if not file.is_file():
                cases = [Case(prompt, number, before[prompt.id], setup.seed) for prompt in chunk]
                durable.write_lines(file, _played(setup, system, name, attack, cases))
            records = _read(file, chunk)
            for prompt, one in zip(chunk, records, strict=True):
                before[prompt.id] = (*before[prompt.id], _attempt(prompt, one))
            yield records


def chunks_there(folder: Path, system: str, name: str) -> int:
    """How many chunks of an attack on a system earlier calls have left: `play_attack` gives these first."""
    return sum(1 for _ in (folder / FOLDER).glob(f"{_stem(system, name)}.[0-9]*-[0-9]*.jsonl.gz"))


def _stem(system: str, name: str) -> str:
    return quote(title(system, name), safe="")


def _played(setup: AttackSetup, system: str, name: str, attack: Attack, cases: Sequence[Case]) -> list[Record]:
    sent, reworded = _sent(setup, name, attack, cases)
    games = setup.target.answer(system, [(prompt, case.number) for prompt, case in zip(sent, cases, strict=True)])
    # The judge is asked about the request of the suite: the words around it are the attacker's.
    asked = [
        replace(game, prompt=replace(game.prompt, text=case.prompt.text, earlier=case.prompt.earlier))
        for game, case in zip(games, cases, strict=True)
    ]
    judged = judge_episodes(setup.judge, asked)
    return [
        {
            **record(replace(one, prompt=prompt), {}),
            "attack": {
                "name": name,
                "system": system,
                "try": case.number,
                "won": won(case.prompt, one.verdicts[-1]),
                "prompt": case.prompt.text,
                "reworded": words,
            },
        }
        for one, prompt, case, words in zip(judged, sent, cases, reworded, strict=True)
    ]


def _sent(
    setup: AttackSetup, name: str, attack: Attack, cases: Sequence[Case]
) -> tuple[list[Prompt], list[bool | None]]:
    """The prompts of these tries, in order, and whether the writer gave words for each; None where it was not asked.
    Questions to the writer are asked together."""
    given = [case.prompt if case.number == 1 else attack(case) for case in cases]
    for case, one in zip(cases, given, strict=True):
        if not isinstance(one, Prompt | WriterQuestion):
            raise BadInput(f"attack {name!r}: expected a prompt to send, got {one!r:.60}")
        if isinstance(one, Prompt) and (one.id, one.kind) != (case.prompt.id, case.prompt.kind):
            raise BadInput(f"attack {name!r}: the prompt to send has another id or kind than the case's")
    questions = [(case, one) for case, one in zip(cases, given, strict=True) if isinstance(one, WriterQuestion)]
    replies = iter(_replies(setup, name, questions))
    worded = [one if isinstance(one, Prompt) else one.read(next(replies)) for one in given]
    sent = [words or case.prompt for case, words in zip(cases, worded, strict=True)]
    return sent, [
        None if isinstance(one, Prompt) else words is not None for one, words in zip(given, worded, strict=True)
    ]


def _replies(setup: AttackSetup, name: str, questions: Sequence[tuple[Case, WriterQuestion]]) -> list[str]:
    """What the writer replied, in order; "" where its turn failed."""
    if not questions:
        return []
    if setup.writer is None:
        raise BadInput(f"attack {name!r}: a model has to word these prompts; name one with {WRITERS}")
    games: list[Episode[Any]] = [
        Episode(Prompt(case.prompt.id, question.text, "general", "attack"), case.number, ())
        for case, question in questions
    ]
    turns = setup.writer.turns(
        games,
        CONVERSATION,
        Limits(0, QUESTION_TOKENS, 1),
        key=(setup.seed, "writer", name),
        temperature=WRITER_TEMPERATURE,
    )
    return ["" if turn.failure else turn.text for turn in turns]


def _read(file: Path, chunk: Sequence[Prompt]) -> list[Record]:
    """The records of a chunk. Raises BadInput where they are not of its prompts."""
    records: list[Record] = list(durable.read_lines(file))
    try:
        there = [(one["prompt"]["id"], one["attack"]["prompt"]) for one in records]
    except (LookupError, TypeError):
        there = []
    if there != [(prompt.id, prompt.text) for prompt in chunk]:
        raise BadInput(f"{file}: holds other tries than this attack made; name another folder with --out")
    return records


def _attempt(prompt: Prompt, one: Record) -> Attempt:
    """What an attack is told of a try: all from its record, so that it is the same before and after a kill."""
    sent, (*_, answer), (*_, verdict) = one["prompt"], one["answers"], one["verdicts"]
    words = {name: sent[name] for name in ("text", "language", "family")}
    return Attempt(replace(prompt, **words, earlier=earlier_of(one)), answer["text"], Verdict(**verdict))
