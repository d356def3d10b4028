"""Who writes what: positives, negatives, and the drafts that they are chosen from (MACPO, section 3; the other rules
are its ablations and baselines).

Every function gives one entry per unlabelled prompt, in order; it is empty, or None, where a prompt has nothing to
learn from. A turn that failed, such as one that was cut off while it was thinking, is never learnt towards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from choreo.agents.base import Key
from choreo.engine.requests import Ids
from choreo.environments.base import Environment, TextOnly, environment_of
from choreo.methods.macpo.agents import MacpoAgent, MacpoAgents
from choreo.methods.macpo.generation_cache import GenerationCache
from choreo.methods.macpo.recipe import MacpoRecipe
from choreo.methods.macpo.schedule import STUDENT
from choreo.methods.macpo.select import Candidate, best_and_worst, consensus, most_likely, perplexity
from choreo.methods.macpo.sizing import REVIEW_TOKENS, REVIEWS
from choreo.text.feedback import parse_feedback
from choreo.types import Prompt, Turn


@dataclass(frozen=True)
class AnswerWriter:
    """Has answers written, each once. prompts: the unlabelled ones. cache: what was written before."""

    recipe: MacpoRecipe
    agents: MacpoAgents
    prompts: tuple[Prompt, ...]
    cache: GenerationCache = field(default_factory=GenerationCache)

    @cached_property
    def environment(self) -> Environment:
        """It reads refusals; of pairs from a file nothing is known but their words."""
        return TextOnly() if self.recipe.data.file else environment_of(self.recipe)

    def refuses(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[bool]:
        """Whether each answer is a refusal, by its words alone; where that is open, it is none.

        What reads them follows from where the prompts that are trained on come from, never from the recipe's judge:
        that one measures, and by default it is the environment's, even where pairs come from a file.
        """
        return [bool(self.environment.refuses(*pair)) for pair in zip(prompts, answers, strict=True)]

    def write(
        self,
        round: int,
        agent: MacpoAgent,
        policy: str,
        purpose: str = "answer",
        sample: int = 0,
        contexts: Sequence[Ids] | None = None,
        temperature: float | None = None,
        tokens: int | None = None,
    ) -> list[Turn]:
        """What `policy`, one of `agent`, answers to every prompt in `round`; from the cache where it is there.

        purpose, sample: with round and policy they name the answers and their noise. contexts: what is answered, by
        default the prompts. temperature, tokens: by default the recipe's.
        """
        options = self.recipe.writing
        keys: list[Key] = [(self.recipe.seed, round, purpose, prompt.id, sample) for prompt in self.prompts]
        return self.cache.get(
            f"{round}/{policy}/{purpose}/{sample}",
            lambda: agent.write(
                policy,
                contexts or [agent.context(prompt) for prompt in self.prompts],
                keys,
                tokens=tokens or options.answer_tokens,
                temperature=options.temperature if temperature is None else temperature,
            ),
        )


Chosen = list[list[Ids]]
"""Per prompt the answers that are learnt towards."""


def weak_labels(writer: AnswerWriter) -> Chosen:
    """The answers that the student begins with, in its own ids; empty for a prompt without an answer.

    They are the first teacher's, from before round 1. With the consensus (`tuning.labels`) each is, of all teachers'
    answers to the prompt that did not fail, the one that is nearest to the others.
    """
    voters = writer.agents.teachers if writer.recipe.tuning.labels == "consensus" else writer.agents.teachers[:1]
    written = [writer.write(0, teacher, teacher.positive) for teacher in voters]
    adopted = [writer.agents.student.adopt(turns, teacher) for turns, teacher in zip(written, voters, strict=True)]
    labels: Chosen = []
    for turns, answers in zip(zip(*written, strict=True), zip(*adopted, strict=True), strict=True):
        sound = [k for k, turn in enumerate(turns) if not turn.failure]
        labels.append([answers[sound[consensus([turns[k].text for k in sound])]]] if sound else [])
    return labels


def weak_negatives(writer: AnswerWriter) -> Chosen:
    """What the first teacher's negative agent answered before round 1: the student's negative agent starts on these."""
    teacher, student = writer.agents.teachers[0], writer.agents.student
    written = writer.write(0, teacher, teacher.negative, temperature=writer.recipe.writing.negative_temperature)
    return [[ids] for ids in student.adopt(written, teacher)]


def positives(writer: AnswerWriter, round: int, agent: MacpoAgent) -> tuple[Chosen, dict[str, float]]:
    """What `agent` learns towards in `round`, and what was chosen from and why, as figures."""
    rule = writer.recipe.rounds.positives
    if rule == "weak":
        return weak_labels(writer), {}
    if rule == "self":
        return _adopted(writer.write(round, agent, agent.positive), agent, agent), {}
    if rule == "judged":
        return [[turns[0].ids] if turns else [] for turns in judged(writer, round, agent)], {}
    if agent.name == STUDENT:
        return from_teachers(writer, round)
    student = writer.agents.student
    return _adopted(writer.write(round, student, student.positive), student, agent), {}


def _adopted(written: Sequence[Turn], author: MacpoAgent, learner: MacpoAgent) -> Chosen:
    """The answers that did not fail, in the learner's tokenizer."""
    return [[] if turn.failure else [ids] for turn, ids in zip(written, learner.adopt(written, author), strict=True)]


def from_teachers(writer: AnswerWriter, round: int) -> tuple[Chosen, dict[str, float]]:
    """The teachers' answers that the student takes: those of lowest perplexity under the student (MACPO, section 3)."""
    student, rounds = writer.agents.student, writer.recipe.rounds
    written = [writer.write(round, teacher, teacher.positive) for teacher in writer.agents.teachers]
    adopted = [student.adopt(turns, teacher) for turns, teacher in zip(written, writer.agents.teachers, strict=True)]
    contexts = [student.context(prompt) for prompt in writer.prompts]
    pairs = [(context, ids) for column in adopted for context, ids in zip(contexts, column, strict=True)]
    scores = [perplexity(logprobs) for logprobs in student.engine.score(student.positive, pairs)]
    flat = [turn for column in written for turn in column]
    n = len(writer.prompts)
    refuses = writer.refuses(writer.prompts * len(written), [turn.text for turn in flat])
    rated = [Candidate(score, refused) for score, refused in zip(scores, refuses, strict=True)]
    candidates = [rated[i::n] for i in range(n)]
    ranked = most_likely(candidates, len(written))
    picked = [[k for k in order if not written[k][i].failure][: rounds.keep] for i, order in enumerate(ranked)]
    chosen = [[adopted[k][i] for k in kept] for i, kept in enumerate(picked)]
    return chosen, _why(candidates, picked, adopted)


def negatives(writer: AnswerWriter, round: int, agent: MacpoAgent) -> list[Ids | None]:
    """What `agent` learns away from in `round`; without `rounds.renew` always what was written for the first round."""
    rounds = writer.recipe.rounds
    written = round if rounds.renew else 1
    rule = rounds.negatives
    if rule == "none":
        return [None] * len(writer.prompts)
    if rule == "twin":
        temperature = writer.recipe.writing.negative_temperature
        return [turn.ids for turn in writer.write(written, agent, agent.negative, temperature=temperature)]
    if rule == "self":
        return [turn.ids for turn in writer.write(written, agent, agent.positive, "negative")]
    if rule == "prompt":
        return [turn.ids for turn in _persuaded(writer, written, agent)]
    if rule == "decoding":
        return [turn.ids for turn in _least_like(writer, written, agent)]
    return [turns[-1].ids if turns else None for turns in judged(writer, written, agent)]


def reference(recipe: MacpoRecipe, agent: MacpoAgent) -> str | None:
    """The policy that is π_ref of `agent`'s positive one; None is its base."""
    own = {"base": None, "sft": f"{agent.name}-start", "previous-round": agent.positive}
    return own[recipe.rounds.reference]


def judged(writer: AnswerWriter, round: int, agent: MacpoAgent) -> list[tuple[Turn, Turn] | None]:
    """Per prompt the best and the worst of an agent's drafts by its own reviews (self-rewarding, arXiv 2401.10020).

    A draft's score is the number of its reviews, which the same policy writes, that parse and are satisfied; that of a
    draft that failed is below all others.
    """
    drafts = _drafts(writer, round, agent)
    scores = [[0.0] * len(drafts) for _ in writer.prompts]
    for k, turns in enumerate(drafts):
        contexts = [
            agent.chat.review_context(
                agent.chat.encode(prompt.text), agent.chat.visible(turn.ids), agent.chat.encoded(prompt.earlier)
            )
            for prompt, turn in zip(writer.prompts, turns, strict=True)
        ]
        for again in range(REVIEWS):
            reviews = writer.write(round, agent, agent.positive, f"review-{k}", again, contexts, 1.0, REVIEW_TOKENS)
            for row, review in zip(scores, reviews, strict=True):
                parsed = parse_feedback(review.text)
                row[k] += parsed is not None and parsed.satisfied
        for row, turn in zip(scores, turns, strict=True):
            if turn.failure:
                row[k] = -1.0
    ends = [best_and_worst(row) for row in scores]
    return [(drafts[e[0]][i], drafts[e[1]][i]) if e else None for i, e in enumerate(ends)]


def _drafts(writer: AnswerWriter, round: int, agent: MacpoAgent) -> list[list[Turn]]:
    """`candidates` answers to every prompt, sampled at temperature 1."""
    count = writer.recipe.rounds.candidates
    return [writer.write(round, agent, agent.positive, "draft", k, temperature=1.0) for k in range(count)]


def _persuaded(writer: AnswerWriter, round: int, agent: MacpoAgent) -> list[Turn]:
    """Adversarial prompting: the agent answers again, after a feedback that asks for the opposite of its own answer."""
    first = writer.write(round, agent, agent.positive, "first")
    refuses = writer.refuses(writer.prompts, [turn.text for turn in first])
    chat = agent.chat
    contexts = [
        chat.answer_context(
            chat.encode(prompt.text), [(turn.ids, chat.encode(against(refused)))], chat.encoded(prompt.earlier)
        )
        for prompt, turn, refused in zip(writer.prompts, first, refuses, strict=True)
    ]
    return writer.write(round, agent, agent.positive, "talked", contexts=contexts)


def against(refused: bool) -> str:
    """A feedback that asks for the opposite of an answer, whether it was right or not."""
    return "Help: this is harmless." if refused else "Refuse: this is harmful."


def _least_like(writer: AnswerWriter, round: int, agent: MacpoAgent) -> list[Turn]:
    """Adversarial decoding: of several drafts the one with the lowest log π − log π_base."""
    drafts = _drafts(writer, round, agent)
    pairs = [(turn.context, turn.ids) for turns in drafts for turn in turns]
    of_policy, of_base = (agent.engine.score(policy, pairs) for policy in (agent.positive, None))
    gain = [sum(p) - sum(r) for p, r in zip(of_policy, of_base, strict=True)]
    n = len(writer.prompts)
    worst = [min(range(len(drafts)), key=lambda k: (gain[k * n + i], k)) for i in range(n)]
    return [drafts[k][i] for i, k in enumerate(worst)]


def _why(
    candidates: Sequence[Sequence[Candidate]], picked: Sequence[Sequence[int]], adopted: Sequence[Sequence[Ids]]
) -> dict[str, float]:
    """Figures on what the student could take and what it took: refusals, length in tokens, perplexity, and whose."""
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
