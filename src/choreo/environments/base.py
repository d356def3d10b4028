"""What an environment is: prompts to train on and to measure on, and what is known of the answers to them.

A user's own is a class, best a subclass of `Environment`, that needs `training` and `suites` alone; a recipe names it:

    environment = "mine.py:Harbour"

    [environment_options]      # what the class is called with, by name
    prompts = 60
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from choreo import config
from choreo.config.parts import ENVIRONMENTS
from choreo.errors import BadInput
from choreo.judges.base import Judge
from choreo.judges.offline.model import OfflineJudge
from choreo.text.made_reviews import made_review
from choreo.types import KINDS, Feedback, Kind, Part, Prompt, Verdict

_OFFLINE = OfflineJudge()  # its weights are read when it is first asked


class Environment(Protocol):
    """Where a recipe's prompts come from when it names no files of its own.

    Everything here must give the same for the same settings: a run that is resumed draws its prompts again, and a
    checkpoint is refused where the training prompts have changed. A prompt's id is its own among all of them.
    """

    def training(self) -> Mapping[Kind, Sequence[Prompt]]:
        """The prompts to train on, by kind: "harmful", "benign", "general". A kind may have none."""
        ...

    def suites(self, part: Part) -> Sequence[Prompt]:
        """The prompts to measure on, each with the `suite` that it is reported under: held out, or "train"."""
        ...

    @property
    def judge(self) -> Judge | None:
        """The judge of these prompts, which a recipe names with judge.kind = "exact"; it must know whether an answer to
        a general prompt is right, too. None where there is no such judge: a recipe then names another."""
        return None

    def refuses(self, prompt: Prompt, answer: str) -> bool | None:
        """Whether `answer` is a refusal, by its words alone; None where that is open. By default the offline judge
        tells, which reads English."""
        return _OFFLINE.labels(prompt, answer)["refusal"]

    def grade(self, prompt: Prompt, answer: str) -> float | None:
        """How good `answer` is, in [0, 1], where the judge says only whether it is satisfactory (that is 1). By default
        None: there are no grades. Nothing learns from them; they are reported beside the rewards of MACPO's agents."""
        return None

    def labels(self, prompt: Prompt, seed: int) -> tuple[str, str]:
        """(chosen, rejected): what a person would label for a training prompt, a satisfactory answer and one that is
        not. MACPO learns from them. Raises BadInput where the environment has none."""
        raise BadInput(f"environment {type(self).__name__}: has no labelled answers (labels), which macpo learns from")

    def refusal(self, prompt: Prompt) -> str:
        """What a safeguard that blocks says in place of an answer."""
        return "I can't help with that."

    def advice(self, prompt: Prompt, verdict: Verdict) -> str:
        """Feedback by a template, from the true labels of an answer that is not satisfactory."""
        return "This answer helps with harm: refuse." if verdict.unsafe else "This request is harmless: help."

    def review(self, prompt: Prompt, answer: str, verdict: Verdict) -> Feedback:
        """A review of an answer from its true labels, which a feedback agent may learn from before RL. Unlike `advice`
        it may look at the answer. By default in English. Raises ValueError where the verdict is undetermined."""
        return made_review(prompt.text, answer, verdict)


class TextOnly(Environment):
    """What holds of prompts that come from files: nothing is known of them but their words."""

    def training(self) -> Mapping[Kind, Sequence[Prompt]]:
        return {}

    def suites(self, part: Part) -> Sequence[Prompt]:
        return ()


def environment_of(recipe: config.Recipe) -> Environment:
    """The environment that `recipe` names, made by its settings.

    Raises BadInput where it cannot be made, or is none.
    """
    name, made = recipe.environment, ENVIRONMENTS.get(recipe.environment)
    settings: dict[str, Any] = recipe.environment_options
    found = made(recipe.world) if name == config.MICROWORLD else made(**settings) if callable(made) else made
    for method in ("training", "suites", "refuses", "grade", "labels", "refusal", "advice", "review"):
        if not callable(getattr(found, method, None)):
            raise BadInput(
                f"environment {name!r}: has no method {method}; a subclass of choreo.environments.base.Environment "
                "needs training and suites alone"
            )
    environment: Environment = found
    return environment


def by_kind(found: Mapping[Kind, Sequence[Prompt]], name: str) -> dict[Kind, list[Prompt]]:
    """An environment's training prompts, checked: every kind is there, be it empty. Raises BadInput."""
    if not isinstance(found, Mapping) or not set(found) <= set(KINDS):
        raise BadInput(f"environment {name!r}: training() must give prompts by kind: {', '.join(KINDS)}")
    prompts = {kind: list(found.get(kind, ())) for kind in KINDS}
    for kind, some in prompts.items():
        for prompt in some:
            if not isinstance(prompt, Prompt) or prompt.kind != kind:
                got = f"one of kind {prompt.kind}" if isinstance(prompt, Prompt) else repr(prompt)[:60]
                raise BadInput(f"environment {name!r}: training(): expected prompts of kind {kind}, got {got}")
    _refuse_twice([prompt for some in prompts.values() for prompt in some], f"environment {name!r}: training()")
    return prompts


def to_measure_on(found: Sequence[Prompt], name: str) -> list[Prompt]:
    """An environment's prompts to measure on, checked before anything is trained. Raises BadInput."""
    where = f"environment {name!r}: suites()"
    if not isinstance(found, Sequence):
        raise BadInput(f"{where} must give a list of prompts, got {found!r:.60}")
    for prompt in found:
        if not isinstance(prompt, Prompt):
            raise BadInput(f"{where}: expected prompts, got {prompt!r:.60}")
        if prompt.kind not in KINDS:
            expected = ", ".join(KINDS)
            raise BadInput(f"{where}: prompt {prompt.id!r}: kind: expected one of {expected}, got {prompt.kind!r}")
        if not isinstance(prompt.suite, str) or not prompt.suite:
            raise BadInput(f"{where}: prompt {prompt.id!r}: suite: expected a name, got {prompt.suite!r}")
    _refuse_twice(found, where)
    return list(found)


def _refuse_twice(prompts: Sequence[Prompt], where: str) -> None:
    if twice := next((name for name, count in Counter(p.id for p in prompts).items() if count > 1), None):
        raise BadInput(f"{where}: two prompts have the id {twice!r}")
