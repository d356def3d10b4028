"""MACPO measured: every agent after every round, and what a run ends with.

Nothing that training uses calls a judge: verdicts on the unlabelled prompts must not reach it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from choreo.engine.requests import Ids
from choreo.environments.task import Task
from choreo.evaluation.intervals import Estimate, bootstrap_mean, share
from choreo.evaluation.metrics import measure, satisfactory
from choreo.methods.base import reporting
from choreo.methods.macpo.agents import MacpoAgent, MacpoAgents
from choreo.methods.macpo.recipe import MacpoRecipe
from choreo.methods.measuring import Judged, figures_of, judged_by_all
from choreo.runs.folder import Run
from choreo.runs.progress import Progress
from choreo.types import Episode, Prompt

Figures = dict[str, Any]


def measure_round(
    task: Task,
    recipe: MacpoRecipe,
    agents: MacpoAgents,
    number: int,
    prompts: Sequence[Prompt],
    progress: Progress,
    run: Run,
) -> tuple[dict[str, Figures], Judged]:
    """Figures of every agent on `prompts`, by policy, and the student's judged episodes. `run` keeps the games of all.

    Negative agents are measured after the start alone, for they learn nothing later. Raises Interrupted.
    """
    policies = [(agent, agent.positive) for agent in agents if agent.team.version[agent.positive]]
    if number == 0:
        policies += [(agent, agent.negative) for agent in agents if agent.team.version[agent.negative]]
    progress.start(f"measuring {'the start' if number == 0 else f'round {number}'}", len(policies))
    on_progress = reporting(progress)
    figures: dict[str, Figures] = {}
    shown: Judged = {}
    for done, (agent, policy) in enumerate(policies, start=1):
        played = agents.answers_of(agent, policy, prompts, recipe.seed)
        judged = judged_by_all(task, played)
        answered = [e.prompt for e in played], [e.answers[-1].text for e in played]
        refuses, grades = task.refuses(*answered), task.grades(*answered)
        nats = _nats(agents.student, agent, played)
        figures[policy], games = figures_of(task, judged, partial(_described, nats, refuses, grades, recipe.seed))
        run.save_measured(policy, figures[policy], games, number)
        if policy == agents.student.positive:
            shown = judged
        on_progress(done)
    return figures, shown


def _described(
    nats: Sequence[tuple[float, int]],
    refuses: Sequence[bool | None],
    grades: Sequence[float | None],
    seed: int,
    episodes: list[Episode],
    ability: bool,
) -> Figures:
    return describe(episodes, nats, refuses, grades, seed, ability=ability)


def describe(
    episodes: Sequence[Episode],
    nats: Sequence[tuple[float, int]],
    refuses: Sequence[bool | None],
    grades: Sequence[float | None] = (),
    seed: int = 0,
    *,
    ability: bool = True,
) -> Figures:
    """What `describe_answers` has, and
    perplexity: exp of the mean over all tokens of −log π under the student as it stands.

    nats: (Σ −log π, tokens) per answer.
    """
    return {
        **describe_answers(episodes, refuses, grades, seed, ability=ability),
        "perplexity": math.exp(math.fsum(n for n, _ in nats) / max(1, sum(count for _, count in nats))),
    }


def describe_answers(
    episodes: Sequence[Episode],
    refuses: Sequence[bool | None],
    grades: Sequence[float | None] = (),
    seed: int = 0,
    *,
    ability: bool = True,
) -> Figures:
    """reward (share of satisfactory answers; what the judge left open counts against it), asr, orr, f1, general,
    degenerate, suites and, where there are several, turns as in `metrics.measure`, and beside them
    graded: mean grade of the answers (`Task.grades`), where they have grades.
    refusal_rate: of all answers, by their words; refused_benign: of those to benign and general prompts;
    length: mean tokens of an answer; distinct_2: share of distinct bigrams of words among all.

    refuses: whether it is a refusal, per answer (`Task.refuses`). ability: see `metrics.measure`.
    """
    measured = measure(episodes, seed=seed, ability=ability)
    harmless = [r for episode, r in zip(episodes, refuses, strict=True) if episode.prompt.kind != "harmful"]
    kept = ("asr", "orr", "f1", "general", "degenerate", "suites", "turns")
    known = [grade for grade in grades if grade is not None]
    return {
        "reward": reward(episodes),
        **({"graded": bootstrap_mean(known, seed)} if known else {}),
        **{name: measured[name] for name in kept if name in measured},
        "refusal_rate": share(refuses),
        "refused_benign": share(harmless),
        "length": bootstrap_mean([len(episode.answers[-1].ids) for episode in episodes], seed),
        "distinct_2": distinct(2, [episode.answers[-1].text for episode in episodes]),
    }


def reward(episodes: Sequence[Episode]) -> Estimate:
    """The share of games whose last answer satisfies the judge; one that it leaves open does not."""
    return share([bool(satisfactory(episode.verdicts[-1])) for episode in episodes])


def distinct(n: int, texts: Sequence[str]) -> float | None:
    """Distinct n-grams of words over all n-grams (arXiv 1510.03055); None where no text is long enough."""
    grams = [tuple(words[i : i + n]) for words in map(str.split, texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def duel(ours: Mapping[str, bool | None], theirs: Mapping[str, bool | None]) -> dict[str, Estimate]:
    """win, tie, lose: shares of prompts on which ours is satisfactory and theirs is not, both or neither, the reverse.

    ours, theirs: by prompt, whether the last answer is satisfactory; what was left open is not.

    Raises ValueError for answers to different prompts.
    """
    if ours.keys() != theirs.keys():
        raise ValueError("two systems are compared on the same prompts")
    pairs = [(bool(good), bool(theirs[prompt])) for prompt, good in ours.items()]
    return {
        "win": share([a and not b for a, b in pairs]),
        "tie": share([a == b for a, b in pairs]),
        "lose": share([b and not a for a, b in pairs]),
    }


def pgr(student: float, weak: float, ceiling: float) -> float | None:
    """Performance gap recovered (Burns et al. 2023): (student − weak) / (ceiling − weak); None without a gap."""
    return None if ceiling <= weak else (student - weak) / (ceiling - weak)


def warnings(rounds: Sequence[Mapping[str, Any]], recipe: MacpoRecipe) -> list[str]:
    """What the collapse monitor says of the last round, against the start, agent by agent."""
    first, last = rounds[0]["agents"], rounds[-1]["agents"]
    found = []
    for policy in last.keys() & first.keys():
        if policy.endswith("-"):
            continue
        then, now = first[policy], last[policy]
        refused = (then["refused_benign"]["value"] or 0.0, now["refused_benign"]["value"] or 0.0)
        if refused[1] - refused[0] > recipe.watch.refusals:
            shares = [f"{100 * share:.0f} %" for share in refused]
            found.append(f"{policy} refuses {shares[1]} of harmless prompts; at the start it was {shares[0]}")
        lengths = (then["length"]["value"], now["length"]["value"])
        if max(lengths) > recipe.watch.length * max(1e-9, min(lengths)):
            found.append(f"{policy} writes {lengths[1]:.0f} tokens an answer; at the start it was {lengths[0]:.0f}")
    return sorted(found)


def _nats(student: MacpoAgent, author: MacpoAgent, episodes: Sequence[Episode]) -> list[tuple[float, int]]:
    """(Σ −log π, tokens) of every answer under the student; (0, 0) for an answer that in the student's tokens is longer
    than its positions."""
    ids: list[Ids] = student.adopt([episode.answers[-1] for episode in episodes], author)
    pairs = list(zip([student.context(episode.prompt) for episode in episodes], ids, strict=True))
    limit = student.team.positions
    within = [limit is None or len(context) + len(answer) <= limit for context, answer in pairs]
    fitting = [pair for pair, fits in zip(pairs, within, strict=True) if fits]
    scores = iter(student.engine.score(student.positive, fitting))
    rows = [next(scores) if fits else () for fits in within]
    return [(-math.fsum(row), len(row)) for row in rows]
