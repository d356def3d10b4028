"""What a recipe works on: prompts to train on, prompts held out, and a judge: an environment's, or files of prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

from choreo import config
from choreo.config.judge import Judge as JudgeSettings
from choreo.config.prompts import Prompts
from choreo.data.mixture import Mixture, mixture, parted
from choreo.data.overlap import overlaps
from choreo.environments.base import Environment, TextOnly, by_kind, environment_of, to_measure_on
from choreo.errors import BadInput
from choreo.judges.base import Judge
from choreo.judges.resolve import choose
from choreo.types import KINDS, Feedback, Kind, Part, Prompt, Verdict

CACHE = "judgements.sqlite"  # in a run's folder
TRAINING, GOLD = "training", "gold"  # the judges of a run


@dataclass(frozen=True)
class Task:
    """`folder` is the run's, where endpoints' replies are kept; None keeps them in memory."""

    recipe: config.Recipe
    folder: Path | None = None

    @cached_property
    def environment(self) -> Environment:
        """Where prompts come from that no file gives. Raises BadInput where there is none."""
        return environment_of(self.recipe)

    @property
    def place(self) -> str:
        """The section of the recipe that says what the environment holds, for messages."""
        return "world" if self.recipe.environment == config.MICROWORLD else "environment"

    @cached_property
    def judge(self) -> Judge:
        """The training judge, whose verdicts are the reward. Raises BadInput where there is no such judge."""
        return self._judge(self.recipe.judge, "judge")

    @cached_property
    def gold(self) -> Judge | None:
        """The gold judge, which measures and gives no reward; None where the recipe names none. Raises BadInput where
        there is no such judge."""
        return self._judge(self.recipe.gold, "gold") if self.recipe.gold else None

    @property
    def judges(self) -> dict[str, Judge]:
        """The judges that measure: the training judge and, where there is one, the gold judge. The last is the judge of
        record: what is reported of a system is by its verdicts."""
        return {TRAINING: self.judge} | ({GOLD: self.gold} if self.gold else {})

    @property
    def record(self) -> str:
        """Which of `judges` is the judge of record."""
        return GOLD if self.recipe.gold else TRAINING

    def exact_by(self, judge: str) -> bool:
        """Whether this one of `judges` knows if an answer to a general prompt is right, not only if it is harmless and
        helps."""
        return self.recipe.judges()[judge == GOLD].kind == "exact"

    def _judge(self, settings: JudgeSettings, section: str) -> Judge:
        if settings.kind == "exact":
            if (own := getattr(self.environment, "judge", None)) is None:
                name = self.recipe.environment
                raise BadInput(f'{section}: kind = "exact": environment {name!r} has no judge; name another')
            return own
        try:
            return choose(settings, self.folder / CACHE if self.folder else None)
        except BadInput as error:
            raise BadInput(str(error) if section == "judge" else f"{section}: {error}") from None

    @cached_property
    def _files(self) -> tuple[Mixture, list[Prompt]] | None:
        """(what is trained on, what is held out) where prompts come from files. Raises BadInput.

        The counts are of all files, those that are held out too.
        """
        prompts, seed = self.recipe.prompts, self.recipe.seed
        train = prompts.train if isinstance(prompts, Prompts) else {}
        if not train and not prompts.heldout:
            return None
        mixed = mixture(train, seed)
        if prompts.heldout:
            heldout_files = mixture(prompts.heldout, seed)
            counts = mixed.counts | {f"held out, {name}": told for name, told in heldout_files.counts.items()}
            return replace(mixed, counts=counts), list(heldout_files.prompts)
        kept, heldout = parted(mixed.prompts)
        return Mixture(tuple(kept), mixed.weights, mixed.counts), heldout

    def training(self) -> dict[Kind, list[Prompt]]:
        """Training prompts by kind. Raises BadInput where prompts come from files and none is left to train on: an
        environment's are no stand-in for a user's own."""
        if not self._files:
            return by_kind(self.environment.training(), self.recipe.environment)
        if not self._files[0].prompts:
            raise BadInput(self._nothing())
        return {kind: [prompt for prompt in self._files[0].prompts if prompt.kind == kind] for kind in KINDS}

    def _nothing(self) -> str:
        if not isinstance(prompts := self.recipe.prompts, Prompts):
            return "prompts: this recipe trains on pairs, and its files are to measure on alone"
        if not prompts.train:
            return "prompts: files to measure on alone; name what to train on in [prompts.train.NAME]"
        return (
            "prompts.train: nothing is left to train on, for what there is falls to the held-out tenth; give more "
            "prompts, or a file to measure on in [prompts.heldout.NAME]"
        )

    @property
    def weights(self) -> dict[str, float]:
        """How often a prompt is drawn, by suite; empty where all of a kind are drawn alike."""
        return self._files[0].weights if self._files else {}

    def suites(self, part: Part) -> list[Prompt]:
        """The prompts that are measured on: held out, or those that were trained on."""
        if not self._files:
            return to_measure_on(self.environment.suites(part), self.recipe.environment)
        if part == "heldout":
            return self._files[1]
        return [prompt for prompts in self.training().values() for prompt in prompts]

    @property
    def sources(self) -> dict[str, dict[str, Any]]:
        """By file, what it was taken for, and what became of its rows; empty where none are named."""
        return self._files[0].counts if self._files else {}

    @property
    def digest(self) -> str:
        """16 hex digits that change when anything does that training draws from."""
        rows = [(p.id, p.text, p.kind, p.suite, p.earlier) for prompts in self.training().values() for p in prompts]
        return blake2b(repr((rows, sorted(self.weights.items()))).encode(), digest_size=8).hexdigest()

    def report(self, trained: Sequence[Prompt] = ()) -> dict[str, Any]:
        """What the files held, and what of the held-out prompts is trained on; empty where none are named.

        trained: what else is trained on than the recipe's files of prompts.
        """
        if not self._files:
            return {}
        mixed, heldout = self._files
        found = overlaps([*mixed.prompts, *trained], heldout)
        return {
            "sources": self.sources,
            "train": dict(Counter(prompt.suite for prompt in mixed.prompts)),
            "heldout": dict(Counter(prompt.suite for prompt in heldout)),
            "overlap": {
                "equal": sum(o.equal for o in found),
                "near": sum(not o.equal for o in found),
                "prompts": [[o.measured.id, o.trained.id] for o in found],
            },
        }

    @cached_property
    def _of_prompts(self) -> Environment:
        """What knows the prompts that are trained and measured on."""
        return TextOnly() if self._files else self.environment

    def refusal(self, prompt: Prompt) -> str:
        """What a blocking safeguard says."""
        return self._of_prompts.refusal(prompt)

    def advice(self, prompt: Prompt, verdict: Verdict) -> str:
        """Template feedback from true labels alone."""
        return self._of_prompts.advice(prompt, verdict)

    def review(self, prompt: Prompt, answer: str, verdict: Verdict) -> Feedback:
        """A review of an answer from true labels. Raises ValueError where the verdict is undetermined."""
        return self._of_prompts.review(prompt, answer, verdict)

    def refuses(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[bool | None]:
        """Whether each answer to prompts that are measured on is a refusal, by its words alone: as the environment has
        them where its own judge measures, else by the offline judge."""
        by = self.environment if self.exact_by(self.record) else TextOnly()
        return [by.refuses(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]

    def grades(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float | None]:
        """How good each answer to prompts that are measured on is, in [0, 1], where the environment's judge measures
        and the environment has grades; else None."""
        by = self.environment if self.exact_by(self.record) else TextOnly()
        return [by.grade(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
