"""The training prompts: some with labels, for the weak teachers, and the others without, for the strong student.

Labels of the unlabelled prompts do not exist here, but for the strong ceiling.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

from choreo import config
from choreo.data.conversations import flatten
from choreo.data.preferences import load
from choreo.data.reading import counted
from choreo.environments.base import by_kind, environment_of
from choreo.errors import BadInput, TooFew
from choreo.methods.macpo.agents import MacpoAgents
from choreo.methods.macpo.recipe import MacpoRecipe
from choreo.methods.macpo.sizing import REVIEW_TOKENS
from choreo.types import Prompt


@dataclass(frozen=True, slots=True)
class LabelledPrompt:
    """A prompt with the answer that a person chose and the one that was rejected."""

    prompt: Prompt
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True)
class PromptSplit:
    """labelled: the teachers' prompts, with labels. unlabelled: the student's, with their meaning taken out, so that
    nothing can judge or label them. ceiling: the unlabelled prompts with labels, where the recipe trains the strong
    ceiling, else empty. counts: what a file was taken for, and of its rows: read, used, and left out by reason; empty
    where prompts are the environment's.
    """

    labelled: tuple[LabelledPrompt, ...]
    unlabelled: tuple[Prompt, ...]
    ceiling: tuple[LabelledPrompt, ...] = ()
    counts: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """16 hex digits that change when anything does that is trained on."""
        rows = [(row.prompt.words, row.chosen, row.rejected) for row in (*self.labelled, *self.ceiling)]
        return blake2b(repr((rows, [prompt.words for prompt in self.unlabelled])).encode(), digest_size=8).hexdigest()


Label = Callable[[Prompt], LabelledPrompt]


def split_prompts(recipe: MacpoRecipe) -> PromptSplit:
    """The recipe's training prompts, split so that none stands on both sides: the environment's, as many of each of the
    recipe's kinds, or those of the recipe's file. The split and the labels follow from (seed, split seed) and the file.

    Raises TooFew where the world has too few prompts; BadInput where the file has, or does not fit its format.
    """
    data = recipe.data
    drawn, label, counts = _of_file(recipe) if data.file else _of_environment(recipe)
    random.Random(f"halves/{recipe.seed}").shuffle(drawn)
    first, second = drawn[: data.labels], drawn[data.labels :]
    labelled = noisy([label(prompt) for prompt in first], data.noise, recipe.seed)
    unlabelled = tuple(replace(prompt, meaning=None) for prompt in second)
    ceiling = [label(prompt) for prompt in second] if recipe.tuning.labels == "human" else []
    return PromptSplit(tuple(labelled), unlabelled, tuple(ceiling), counts)


def without_overflow(recipe: MacpoRecipe, data: PromptSplit, agents: MacpoAgents) -> PromptSplit:
    """The split without what overflows the positions of some agent's model; `counts` says how many prompts that is.

    Raises BadInput where no labelled or no unlabelled prompt is left.
    """
    reviewed = "judged" in (recipe.rounds.positives, recipe.rounds.negatives) or recipe.rounds.negatives == "prompt"
    tokens = recipe.writing.answer_tokens

    def fits(prompt: Prompt, *labels: str) -> bool:
        return all(
            agent.fits_labelled(prompt, label, agent.chat.room(int(reviewed), tokens, max(tokens, REVIEW_TOKENS)))
            for agent in agents
            for label in labels or ("",)
        )

    labelled = tuple(row for row in data.labelled if fits(row.prompt, row.chosen, row.rejected))
    unlabelled = tuple(prompt for prompt in data.unlabelled if fits(prompt))
    ceiling = tuple(row for row in data.ceiling if fits(row.prompt, row.chosen))
    lost = len(data.labelled) + len(data.unlabelled) - len(labelled) - len(unlabelled)
    if not labelled or not unlabelled:
        raise BadInput(
            f"every {'unlabelled' if labelled else 'labelled'} prompt overflows the positions of a model, with "
            f"{tokens} tokens of answer (writing.answer_tokens)"
        )
    counts = {**data.counts, "overflow a model's positions": lost} if lost else data.counts
    return PromptSplit(labelled, unlabelled, ceiling, counts)


def noisy(rows: Sequence[LabelledPrompt], share: float, seed: int) -> list[LabelledPrompt]:
    """The rows with the two answers exchanged in `share` of them, the same ones for a higher share and more."""
    order = list(range(len(rows)))
    random.Random(f"noise/{seed}").shuffle(order)
    flipped = set(order[: round(share * len(rows))])
    return [LabelledPrompt(r.prompt, r.rejected, r.chosen) if i in flipped else r for i, r in enumerate(rows)]


def _of_environment(recipe: MacpoRecipe) -> tuple[list[Prompt], Label, dict[str, Any]]:
    environment, data = environment_of(recipe), recipe.data
    pools = by_kind(environment.training(), recipe.environment)
    drawn: list[Prompt] = []
    for i, kind in enumerate(data.kinds):
        wanted = (data.labels + data.prompts + len(data.kinds) - 1 - i) // len(data.kinds)
        if wanted > len(pools[kind]):
            gives = "train_prompts" if recipe.environment == config.MICROWORLD else "the environment"
            raise TooFew(
                f"data.labels and data.prompts together need {wanted} {kind} prompts, but {gives} gives "
                f"{len(pools[kind])}"
            )
        drawn += random.Random(f"halves/{recipe.seed}/{kind}").sample(pools[kind], wanted)
    return drawn, lambda prompt: LabelledPrompt(prompt, *environment.labels(prompt, recipe.seed)), {}


def _of_file(recipe: MacpoRecipe) -> tuple[list[Prompt], Label, dict[str, Any]]:
    """One pair of every prompt, so that no prompt can stand on both sides. Their kind is not known: "general"."""
    data = recipe.data
    loaded = load(data.file, data.format or None)
    left_out = loaded.counts
    rows: dict[str, LabelledPrompt] = {}
    for pair in loaded.rows:
        text = flatten(pair.turns)
        if pair.rejected is None:
            left_out["no rejected answer"] += 1
        elif data.words and max(len(part.split()) for part in (text, pair.chosen, pair.rejected)) > data.words:
            left_out[f"more than {data.words} words"] += 1
        elif text in rows:
            left_out["another pair of the same prompt"] += 1
        else:
            prompt = Prompt(f"line-{pair.line}", text, "general", "file")
            rows[text] = LabelledPrompt(prompt, pair.chosen, pair.rejected)
    wanted = data.labels + data.prompts
    if len(rows) < wanted:
        why = ", ".join(f"{reason}: {count}" for reason, count in left_out.most_common())
        raise BadInput(
            f"{data.file}: needed are {wanted} prompts with a chosen and a rejected answer "
            f"(data.labels {data.labels} + data.prompts {data.prompts}), "
            f"but the file has {len(rows)}{f'; left out: {why}' if why else ''}"
        )
    drawn = random.Random(f"halves/{recipe.seed}/file").sample([row.prompt for row in rows.values()], wanted)
    left_out["more than are needed"] = len(rows) - len(drawn)
    left_out["rows with a kind (MACPO does not use it)"] = sum(pair.has_kind for pair in loaded.rows)
    counts = counted(loaded) | {"used": len(drawn)} | {why: n for why, n in left_out.items() if n}
    return drawn, lambda prompt: rows[prompt.text], counts
