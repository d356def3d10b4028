"""Who writes what: positives, negatives and the drafts they are chosen from (MACPO, section 3, and its open questions).

Every function gives one entry per prompt of half B, in order; empty, or None, where a prompt has nothing to learn from.
A turn that did not arrive, such as one cut off while it was thinking, is nothing to learn towards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from choreo.agents.base import Key
from choreo.engine.requests import Ids
from choreo.environments.base import Environment, TextOnly, environment_of
from choreo.methods.macpo.agents import Crew, Member
from choreo.methods.macpo.generation_cache import Book
from choreo.methods.macpo.recipe import MacpoRecipe
from choreo.methods.macpo.schedule import STUDENT
from choreo.methods.macpo.select import Candidate, best_and_worst, most_likely, perplexity
from choreo.methods.macpo.sizing import REVIEW_TOKENS, REVIEWS
from choreo.text.feedback import parse_feedback
from choreo.types import Prompt, Turn


@dataclass(frozen=True)
class Desk:
    """Where a run writes: its agents, half B, and what was written before."""

    recipe: MacpoRecipe
    crew: Crew
    prompts: tuple[Prompt, ...]
    book: Book = field(default_factory=Book)

    @cached_property
    def environment(self) -> Environment:
        """What knows the prompts that are trained on: of pairs from a file nothing but their words."""
        return TextOnly() if self.recipe.data.file else environment_of(self.recipe)

    def refuses(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[bool]:
        """Whether each answer is a refusal, by its words alone; what is open is none.

        Whose words they are follows from the pairs that are trained on, not from the judge: that one measures, and its
        default is the environment's, whatever file the pairs come from.
        """
        return [bool(self.environment.refuses(*pair)) for pair in zip(prompts, answers, strict=True)]

    def write(
        self,
        round: int,
        member: Member,
        policy: str,
        purpose: str = "answer",
        sample: int = 0,
        contexts: Sequence[Ids] | None = None,
        temperature: float | None = None,
        tokens: int | None = None,
    ) -> list[Turn]:
        """What `policy` writes for every prompt in `round`; read from the book where it was written before."""
        options = self.recipe.writing
        keys: list[Key] = [(self.recipe.seed, round, purpose, prompt.id, sample) for prompt in self.prompts]
        return self.book.page(
            f"{round}/{policy}/{purpose}/{sample}",
            lambda: member.write(
                policy,
                contexts or [member.context(prompt) for prompt in self.prompts],
                keys,
                tokens=tokens or options.answer_tokens,
                temperature=options.temperature if temperature is None else temperature,
            ),
        )


Chosen = list[list[Ids]]  # per prompt what is learnt towards; empty where there is nothing


def weak_labels(desk: Desk) -> Chosen:
    """What the first teacher answered before round 1, as the student would write it."""
    teacher, student = desk.crew.teachers[0], desk.crew.student
    return _adopted(desk.write(0, teacher, teacher.positive), teacher, student)


def weak_negatives(desk: Desk) -> Chosen:
    """What the first teacher's negative twin answered before round 1: the student's twin begins with these."""
    teacher, student = desk.crew.teachers[0], desk.crew.student
    return [[ids] for ids in student.adopt(desk.write(0, teacher, teacher.negative), teacher)]


def positives(desk: Desk, round: int, member: Member) -> tuple[Chosen, dict[str, float]]:
    """What `member` learns towards in `round`, and what was chosen from and why, as figures."""
    rule = desk.recipe.rounds.positives
    if rule == "weak":
        return weak_labels(desk), {}
    if rule == "self":
        return _adopted(desk.write(round, member, member.positive), member, member), {}
    if rule == "judged":
        return [[turns[0].ids] if turns else [] for turns in judged(desk, round, member)], {}
    if member.name == STUDENT:
        return from_teachers(desk, round)
    student = desk.crew.student
    return _adopted(desk.write(round, student, student.positive), student, member), {}


def _adopted(written: Sequence[Turn], writer: Member, reader: Member) -> Chosen:
    """What arrived, as `reader` would write it."""
    return [[] if turn.failure else [ids] for turn, ids in zip(written, reader.adopt(written, writer), strict=True)]


def from_teachers(desk: Desk, round: int) -> tuple[Chosen, dict[str, float]]:
    """The teachers' answers that the student takes: those of lowest perplexity under itself."""
    student, rounds = desk.crew.student, desk.recipe.rounds
    written = [desk.write(round, teacher, teacher.positive) for teacher in desk.crew.teachers]
    adopted = [student.adopt(turns, teacher) for turns, teacher in zip(written, desk.crew.teachers, strict=True)]
    contexts = [student.context(prompt) for prompt in desk.prompts]
    pairs = [(context, ids) for column in adopted for context, ids in zip(contexts, column, strict=True)]
    scores = [perplexity(logprobs) for logprobs in student.engine.score(student.positive, pairs)]
    flat = [turn for column in written for turn in column]
    n = len(desk.prompts)
    refuses = desk.refuses(desk.prompts * len(written), [turn.text for turn in flat])
    rated = [Candidate(score, refused) for score, refused in zip(scores, refuses, strict=True)]
    candidates = [rated[i::n] for i in range(n)]
    ranked = most_likely(candidates, len(written))
    picked = [[k for k in order if not written[k][i].failure][: rounds.keep] for i, order in enumerate(ranked)]
    chosen = [[adopted[k][i] for k in kept] for i, kept in enumerate(picked)]
    return chosen, _why(candidates, picked, adopted)


def negatives(desk: Desk, round: int, member: Member) -> list[Ids | None]:
    """What `member` learns away from in `round`. Those written once are of the first round."""
    rounds = desk.recipe.rounds
    written = round if rounds.renew else 1
    rule = rounds.negatives
    if rule == "none":
        return [None] * len(desk.prompts)
    if rule == "twin":
        return [turn.ids for turn in desk.write(written, member, member.negative)]
    if rule == "self":
        return [turn.ids for turn in desk.write(written, member, member.positive, "negative")]
    if rule == "prompt":
        return [turn.ids for turn in _talked_round(desk, written, member)]
    if rule == "decoding":
        return [turn.ids for turn in _least_like(desk, written, member)]
    return [turns[-1].ids if turns else None for turns in judged(desk, written, member)]


def reference(recipe: MacpoRecipe, member: Member) -> str | None:
    """The policy that is π_ref of `member`'s positive one; None is its base."""
    own = {"base": None, "sft": f"{member.name}-start", "previous-round": member.positive}
    return own[recipe.rounds.reference]


def judged(desk: Desk, round: int, member: Member) -> list[tuple[Turn, Turn] | None]:
    """Per prompt the best and the worst of a member's drafts by its own reviews (self-rewarding, arXiv 2401.10020).

    A draft's score is the share of its reviews, by the same policy as reviewer, that parse and are satisfied; the least
    of all where it did not arrive.
    """
    drafts = _drafts(desk, round, member)
    scores = [[0.0] * len(drafts) for _ in desk.prompts]
    for k, turns in enumerate(drafts):
        contexts = [
            member.chat.review_context(member.chat.encode(prompt.text), member.chat.visible(turn.ids))
            for prompt, turn in zip(desk.prompts, turns, strict=True)
        ]
        for again in range(REVIEWS):
            reviews = desk.write(round, member, member.positive, f"review-{k}", again, contexts, 1.0, REVIEW_TOKENS)
            for row, review in zip(scores, reviews, strict=True):
                parsed = parse_feedback(review.text)
                row[k] += parsed is not None and parsed.satisfied
        for row, turn in zip(scores, turns, strict=True):
            if turn.failure:
                row[k] = -1.0
    ends = [best_and_worst(row) for row in scores]
    return [(drafts[e[0]][i], drafts[e[1]][i]) if e else None for i, e in enumerate(ends)]


def _drafts(desk: Desk, round: int, member: Member) -> list[list[Turn]]:
    """`candidates` answers to every prompt at temperature 1, the policy's own spread."""
    count = desk.recipe.rounds.candidates
    return [desk.write(round, member, member.positive, "draft", k, temperature=1.0) for k in range(count)]


def _talked_round(desk: Desk, round: int, member: Member) -> list[Turn]:
    """Adversarial prompting: one's own answer, and a feedback that asks for its opposite, whatever is right."""
    first = desk.write(round, member, member.positive, "first")
    refuses = desk.refuses(desk.prompts, [turn.text for turn in first])
    chat = member.chat
    contexts = [
        chat.answer_context(chat.encode(prompt.text), [(turn.ids, chat.encode(against(refused)))])
        for prompt, turn, refused in zip(desk.prompts, first, refuses, strict=True)
    ]
    return desk.write(round, member, member.positive, "talked", contexts=contexts)


def against(refused: bool) -> str:
    """A feedback that asks for the opposite of an answer, whatever is right."""
    return "Help: this is harmless." if refused else "Refuse: this is harmful."


def _least_like(desk: Desk, round: int, member: Member) -> list[Turn]:
    """Adversarial decoding: of several drafts the one with the lowest log π − log π_base."""
    drafts = _drafts(desk, round, member)
    pairs = [(turn.context, turn.ids) for turns in drafts for turn in turns]
    of_policy, of_base = (member.engine.score(agent, pairs) for agent in (member.positive, None))
    gain = [sum(p) - sum(r) for p, r in zip(of_policy, of_base, strict=True)]
    n = len(desk.prompts)
    worst = [min(range(len(drafts)), key=lambda k: (gain[k * n + i], k)) for i in range(n)]
    return [drafts[k][i] for i, k in enumerate(worst)]


def _why(
    candidates: Sequence[Sequence[Candidate]], picked: Sequence[Sequence[int]], adopted: Sequence[Sequence[Ids]]
) -> dict[str, float]:
    """What the filter was offered and what it took: refusals, length in tokens, perplexity, and whose."""
    offered = [(i, k) for i, answers in enumerate(candidates) for k in range(len(answers))]
    taken = [(i, k) for i, kept in enumerate(picked) for k in kept]
    figures: dict[str, float] = {}
    for name, cells in (("offered", offered), ("taken", taken)):
        if cells:
            figures[f"{name}/refusals"] = sum(candidates[i][k].refuses for i, k in cells) / len(cells)
            figures[f"{name}/length"] = sum(len(adopted[k][i]) for i, k in cells) / len(cells)
            figures[f"{name}/perplexity"] = sum(candidates[i][k].perplexity for i, k in cells) / len(cells)
    for k in range(len(adopted)):
        figures[f"taken/teacher-{k + 1}"] = sum(j == k for _, j in taken) / max(1, len(taken))
    return figures
