"""What choreo asks of a way of training: `Method`, and the `Agents` that it trains.

A method is one object. WaltzRL and MACPO are two (`choreo.methods.waltz.method`, `choreo.methods.macpo.method`); a
user's own is named in a recipe as `method = "mine.py:METHOD"`. Nothing outside the methods asks which one it is.

A method has to give `name`, `recipe`, `load` and `train`. Everything else has a default, which goes for a method whose
agents answer prompts: `OneModel` and `training_loop` (`choreo.methods.one_model`) are such agents and their loop.

This module imports nothing heavy: it is loaded to read a recipe.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple

from typing_extensions import TypeVar

from choreo.config.common import Weights
from choreo.config.reading import METHODS
from choreo.config.reading import load as load_recipe
from choreo.config.recipe import Recipe
from choreo.errors import BadInput, Interrupted
from choreo.methods import cards
from choreo.methods.agents import Agents
from choreo.methods.passes import Lengths, Pass
from choreo.runs.checkpoints import checkpoint_at
from choreo.runs.folder import read_info
from choreo.types import Episode, Part, Prompt

if TYPE_CHECKING:  # these load PyTorch, NumPy or matplotlib
    from choreo.environments.task import Task
    from choreo.models.chat import Chat
    from choreo.report.record import Record
    from choreo.runs.folder import Run
    from choreo.runs.progress import Progress


@dataclass(frozen=True)
class Measurement:
    """What was measured.

    systems: by name, the measures of each, as `evaluation.metrics.measure` gives them. episodes: by system, the judged
    episodes that they are of. extra: what else the summary of a run says.
    """

    systems: dict[str, dict[str, Any]]
    episodes: dict[str, list[Episode]]
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PlannedModel:
    """A model that a recipe loads, for `choreo plan` and for checks before a run begins.

    whose: the agents on it, in words. base, template: as the recipe names them. policies: how many are trained or
    kept on it. optimisers: how many of these have an optimiser at the same time. judged: the judge reads what it
    writes. rounds: of feedback that its chat template has to hold. micro_tokens: padded tokens per micro-batch. how: it
    is loaded and trained; None is as the recipe says.
    """

    whose: str
    base: str
    template: str = ""
    policies: int = 1
    optimisers: int = 1
    judged: bool = True
    rounds: int = 1
    micro_tokens: int = 8192
    how: Weights | None = None


class Work(NamedTuple):
    """What training takes at most: updates, and tokens that are sampled. None is not known."""

    steps: int | None = None
    tokens: int | None = None


R = TypeVar("R", bound=Recipe, default=Any)
A = TypeVar("A", bound=Agents, default=Any)


class Method(ABC, Generic[R, A]):
    """A way of training.

    name: in recipes, summaries and messages. recipe: its recipe, a subclass of `choreo.Recipe`.
    title, paper: as cards of exported agents name it; the paper by its arXiv number, or "".
    has_pair: its agents play the game of answer and feedback, so that they can be served; they then have what
    `choreo.methods.waltz.agents.Pair` has.
    """

    name: ClassVar[str]
    recipe: type[R]
    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    has_pair: ClassVar[bool] = False

    # ---- what a method has to give ------------------------------------------------------------------

    @abstractmethod
    def load(self, recipe: R, checkpoint: Path | None = None) -> A:
        """The agents as `checkpoint` has them, a folder of a run; None is as they begin.

        Raises BadInput where there is no such base, or the checkpoint is of another recipe.
        """

    @abstractmethod
    def train(self, recipe: R, run: Run, task: Task, progress: Progress) -> A:
        """Trains to the recipe's end, from the run's last checkpoint if there is one, and returns the agents.

        Writes a line per step to metrics.jsonl (`run.log`, with "seconds" in it) and checkpoints (`run.checkpoint`).
        What it does follows from the recipe and the task: a run that was stopped and resumed equals one that was not.
        Raises Interrupted, with its state saved, when `progress.interrupted` is set.
        """

    # ---- before, and the whole ----------------------------------------------------------------------

    def check(self, recipe: R, task: Task, agents: A, trains: bool = True) -> None:
        """Raises BadInput or TooFew for what would stop a run after it has begun, such as prompts that do not fit.

        agents: as `load` gives them; for `choreo plan` they have no weights, so nothing may be computed with them.
        trains: False where the agents are only to be measured.
        """
        if trains:
            task.training()
        agents.fitting(self.measured_prompts(recipe, task, "heldout"), "heldout")

    def run(self, recipe: R, run: Run, task: Task, progress: Progress) -> Measurement:
        """Trains, and measures on held-out prompts. A method that measures while it trains does both here."""
        agents = self.train(recipe, run, task, progress)
        run.note(device=str(agents.device))
        measured = self.measure(recipe, agents, task, "heldout", progress, run)
        return replace(measured, extra={"device": str(agents.device), **measured.extra})

    def further_prompts(self, recipe: R) -> Sequence[Prompt]:
        """Prompts that are trained on beside the task's: a run says which held-out prompts are among them."""
        return ()

    def trained_prompts(self, recipe: R, task: Task) -> Sequence[Prompt]:
        """Prompts such as are trained on, by whose lengths `choreo plan` reckons."""
        return list(self.further_prompts(recipe)) or [one for some in task.training().values() for one in some]

    # ---- measuring ----------------------------------------------------------------------------------

    def measured_prompts(self, recipe: R, task: Task, part: Part) -> Sequence[Prompt]:
        """The prompts that every system is measured on."""
        return task.suites(part)

    def systems(self, recipe: R) -> Mapping[str, bool]:
        """The systems that a run is measured by, in order, and whether they are of the trained agents."""
        return {"base": False, self.name: True}

    def measure_system(
        self,
        system: str,
        recipe: R,
        agents: A,
        prompts: Sequence[Prompt],
        task: Task,
        on_progress: Callable[[int], None] = lambda done: None,
    ) -> tuple[dict[str, Any], list[Episode]]:
        """The measures of one system on prompts that fit, and its judged episodes.

        agents: those that play it, trained or not. on_progress: is given how many prompts are done, and may raise.
        """
        from choreo.methods.measuring import measure_answers

        return measure_answers(recipe, agents, prompts, task, on_progress)

    def measure(
        self, recipe: R, agents: A, task: Task, part: Part, progress: Progress, run: Run | None = None
    ) -> Measurement:
        """Every system on its prompts of `part`. Raises Interrupted where the user asks to stop.

        run: keeps every system as soon as it is measured. What it has kept before a stop is not measured again.
        """
        prompts = agents.fitting(self.measured_prompts(recipe, task, part), part, progress)
        untrained = agents.untrained()
        measured = Measurement({}, {})
        for system, trained in self.systems(recipe).items():
            kept = run.measured(system, prompts) if run else None
            if not kept:
                progress.start(f"measuring {system}", len(prompts))
                playing = agents if trained else untrained
                kept = self.measure_system(system, recipe, playing, prompts, task, reporting(progress))
                if run:
                    run.save_measured(system, *kept)
            measured.systems[system], measured.episodes[system] = kept
        return measured

    # ---- `choreo plan` ------------------------------------------------------------------------------

    def models(self, recipe: R) -> list[PlannedModel]:
        """Every model that a run loads."""
        return [PlannedModel("agent", base, recipe.weights().template) for base in recipe.bases()]

    def work(self, recipe: R) -> Work:
        """What training takes; what is measured is not in it."""
        return Work()

    def passes(self, recipe: R, lengths: Lengths) -> list[Pass]:
        """What training computes, for its time; empty where the method does not say. lengths: of contexts."""
        return []

    # ---- `choreo export` ----------------------------------------------------------------------------

    def exported(self, recipe: R, agents: A) -> Sequence[str]:
        """The policies that are exported where the user names none."""
        return list(agents.policies())

    def export_files(self, recipe: R, agents: A) -> Mapping[str, Mapping[str, Any]]:
        """Further JSON files beside the agents' folders, by name."""
        return {}

    def usage(self, recipe: R, policy: str, chat: Chat) -> cards.CardUsage:
        """How the Python in an exported agent's card makes the agent's context."""
        return cards.CardUsage("answer", (f"messages = {chat.messages()['answer']}",), "64")

    def card_notes(self, recipe: R) -> Sequence[str]:
        """Paragraphs on how an exported agent is to be used."""
        return ()

    def limits(self, recipe: R) -> Sequence[str]:
        """Sentences on what was not tried, or is known to go wrong."""
        return ()

    def learnt_from(self, recipe: R, info: Mapping[str, Any]) -> str:
        """On what the agents learnt, by whose verdicts, and what they were measured on. info: what run.json holds."""
        return cards.learnt_from(recipe, info)

    # ---- `choreo report` ----------------------------------------------------------------------------

    def report(self, record: Record) -> str:
        """The HTML of a run's report, from what its folder holds so far. It must not load PyTorch."""
        from choreo.report.run_pages import systems_page

        return systems_page(record, trained=(self.name,))


def method_of(recipe: Recipe) -> Method:
    """The method of a recipe."""
    found: Method = METHODS.get(recipe.method)
    return found


def run_of_a_pair(run: Path, step: int | None = None) -> tuple[Any, int, Path | None]:
    """(recipe, step, checkpoint) of a run of a pair, whose recipe has a `protocol`, whatever its method. step: of the
    checkpoint, by default the last; 0 where there is none, and then the pair is untrained.

    Raises BadInput where it is no run of a pair, or has no such checkpoint.
    """
    read_info(run)
    recipe = load_recipe(run / "recipe.toml")
    method = method_of(recipe)
    if not method.has_pair:
        pairs = " or ".join(methods_with_a_pair())
        raise BadInput(f"{run}: is a run of {method.name}; expected one of a pair, by {pairs}")
    return recipe, *checkpoint_at(run, step)


def methods_with_a_pair() -> list[str]:
    """The names of the methods whose runs can be served."""
    return [name for name in METHODS.names() if METHODS.get(name).has_pair]


def reporting(progress: Progress) -> Callable[[int], None]:
    """What an evaluation calls after every part of it: the progress is shown, and where the user has asked to stop,
    Interrupted is raised."""

    def on_progress(done: int) -> None:
        progress.advance(done)
        if progress.interrupted:
            raise Interrupted("the measurement that was running is not kept")

    return on_progress
