"""MACPO as a method: what choreo asks of it, and where each part of it stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from choreo.config.common import MICROWORLD
from choreo.methods.base import Method, PlannedModel, Work
from choreo.methods.cards import environment, gold_of, judge_of, of_files
from choreo.methods.macpo.recipe import MacpoRecipe
from choreo.methods.macpo.schedule import STUDENT, ceiling_of, schedule, teacher_names
from choreo.methods.macpo.sizing import macpo_passes, steps_of, written
from choreo.methods.passes import Lengths, Pass
from choreo.types import Episode, Prompt

if TYPE_CHECKING:  # these load PyTorch
    from choreo.environments.task import Task
    from choreo.methods.base import Measurement
    from choreo.methods.macpo.agents import MacpoAgents
    from choreo.report.record import Record
    from choreo.runs.folder import Run
    from choreo.runs.progress import Progress


class Macpo(Method[MacpoRecipe, "MacpoAgents"]):
    """Weak teachers and a strong student that learn from each other's answers (arXiv 2410.07672)."""

    name, title, paper = "macpo", "MACPO", "2410.07672"
    recipe = MacpoRecipe

    def load(self, recipe: MacpoRecipe, checkpoint: Path | None = None) -> MacpoAgents:
        from choreo.methods.macpo.run import restore

        return restore(recipe, checkpoint)

    def train(self, recipe: MacpoRecipe, run: Run, task: Task, progress: Progress) -> MacpoAgents:
        from choreo.methods.macpo.trainer import train

        *_, (_, agents) = train(recipe, run, progress, task=task)
        return agents

    def check(self, recipe: MacpoRecipe, task: Task, agents: MacpoAgents, trains: bool = True) -> None:
        from choreo.methods.macpo.split import split_prompts
        from choreo.methods.macpo.trainer import without_overflow

        if trains:
            without_overflow(recipe, split_prompts(recipe), agents)
        agents.fitting(task.suites("heldout"), "heldout")

    def run(self, recipe: MacpoRecipe, run: Run, task: Task, progress: Progress) -> Measurement:
        """Every agent is measured after every round."""
        from choreo.methods.macpo.run import run_macpo

        return run_macpo(recipe, run, progress, task)

    def further_prompts(self, recipe: MacpoRecipe) -> Sequence[Prompt]:
        from choreo.methods.macpo.split import split_prompts

        data = split_prompts(recipe)
        return [*(row.prompt for row in data.labelled), *data.unlabelled]

    def systems(self, recipe: MacpoRecipe) -> dict[str, bool]:
        return {"base": False, recipe.name: True}

    def measure_system(
        self,
        system: str,
        recipe: MacpoRecipe,
        agents: MacpoAgents,
        prompts: Sequence[Prompt],
        task: Task,
        on_progress: Callable[[int], None] = lambda done: None,
    ) -> tuple[dict[str, Any], list[Episode]]:
        from choreo.methods.macpo.run import measure_student

        measured = measure_student(recipe, agents, prompts, task)
        on_progress(len(prompts))
        return measured

    def models(self, recipe: MacpoRecipe) -> list[PlannedModel]:
        policies = 3 if recipe.rounds.reference == "sft" else 2
        names = [STUDENT, *teacher_names(recipe)]
        return [
            PlannedModel(
                whose=name,
                base=base,
                template=recipe.agents.template_of(name),
                policies=policies,
                optimisers=int(name == STUDENT),  # one policy at a time has one, the student's is the largest
                micro_tokens=recipe.micro_tokens,
            )
            for name, base in zip(names, recipe.bases(), strict=True)
        ]

    def work(self, recipe: MacpoRecipe) -> Work:
        """Of the run and, where it trains one, of its strong ceiling."""
        runs = [recipe, *([ceiling_of(recipe)] if recipe.ceiling else [])]
        return Work(sum(steps_of(run, phase) for run in runs for phase in schedule(run)), sum(map(written, runs)))

    def passes(self, recipe: MacpoRecipe, lengths: Lengths) -> list[Pass]:
        runs = [recipe, *([ceiling_of(recipe)] if recipe.ceiling else [])]
        return [one for run in runs for one in macpo_passes(run, lengths)]

    def exported(self, recipe: MacpoRecipe, agents: MacpoAgents) -> Sequence[str]:
        return [agents.student.positive]

    def limits(self, recipe: MacpoRecipe) -> Sequence[str]:
        return ("MACPO's students tend to refuse more, round by round; ORR beside its base's tells how much.",)

    def learnt_from(self, recipe: MacpoRecipe, info: Mapping[str, Any]) -> str:
        file, heldout = recipe.data.file, recipe.prompts.heldout
        pairs = f"from preference pairs in `{Path(file).name}`" if file else f"in {environment(recipe)}"
        counts = info.get("prompts", {}).get("heldout")
        world = "microworld" if recipe.environment == MICROWORLD else "environment"
        measured = of_files(heldout, counts) if heldout else f"held-out prompts of the {world}"
        judge = f"the gold judge `{gold_of(recipe, info)}`" if recipe.gold else judge_of(recipe, info)
        return f"It learnt {pairs}; no judge's verdict taught it. It was measured by {judge}, on {measured}."

    def report(self, record: Record) -> str:
        from choreo.methods.macpo.report_sections import sections, warnings_of
        from choreo.report.judge_sections import judge_sections
        from choreo.report.run_pages import alarms_of, sections_page
        from choreo.report.turn_sections import turn_sections

        rounds = record.array("rounds.json")
        return sections_page(
            record,
            [
                *sections(rounds, record.metrics, record.summary),
                *turn_sections(record.summary),
                *judge_sections(record.summary, record.metrics),
            ],
            [*warnings_of(rounds), *alarms_of(record.metrics)],
            none_yet="No round has been measured yet.",
            no_warning="The collapse monitor has nothing to say.",
            warning="The collapse monitor warns",
        )


MACPO = Macpo()
