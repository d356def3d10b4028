"""A study is arms × seeds. Every training has a run folder, and every further measurement a file.

study.json                      name, seeds and settings, which `--resume` reads again; planned: the seeds it began with
logs/ARM-seedK.log              the output of a run, where several are trained at once
runs/ARM-seedK/                 what `choreo train` leaves; a finished run is kept, an unfinished one is resumed
measured/SYSTEM-seedK.json      systems that the runs did not measure themselves; SYSTEM-seedK.jsonl.gz: their games
study.html, study.md, answers.json    the answers: to look at, to quote and to compute with

A seed K sets both `seed` and `world.split_seed`, so that intervals over seeds also contain the luck of the split.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from choreo import config
from choreo.environments.microworld.world import World
from choreo.environments.task import Task
from choreo.errors import BadInput, Interrupted
from choreo.evaluation.paired import Tables
from choreo.experiment.paths import rooted
from choreo.experiment.report import write_report
from choreo.experiment.run import check, run_recipe
from choreo.experiment.tracking import tracking
from choreo.files import durable, toml
from choreo.files.json_file import read_object
from choreo.methods.base import method_of, reporting
from choreo.report.page import PageSection, Table, write_study
from choreo.runs.callbacks import Callback, notify
from choreo.runs.checkpoints import checkpoint_digest, checkpoints, last_checkpoint
from choreo.runs.folder import Run, is_finished, read_info
from choreo.runs.heldout import games_of, heldout_games, measured_file, write_measured
from choreo.runs.progress import Progress
from choreo.studies.shared import equal_runs, kept
from choreo.studies.shared.paired import tables
from choreo.studies.shared.parallel_runs import train_in_parallel

SEEDS = (0, 1, 2)
MEASURED_OF = "checkpoint"  # in a file of measures: the digest of the checkpoint that they are of; "" is untrained
_OF_SEEDS = {("seed",), ("world", "split_seed"), ("name",)}

Entry = dict[str, Any]  # one system of one seed, as `metrics.measure` gives it
Runs = Mapping[str, Sequence[Path]]  # run folders by arm, in the order of the seeds


@dataclass(frozen=True)
class Arm:
    """A shipped recipe, and the settings that this arm changes in it, written as for --set ("a.b=c").

    of_file: what the recipe's file says is what the arm is about, so settings of the study do not change it.
    first: how many of the study's seeds this arm uses, from the first; None: all.
    longer: how many times the steps (learning.steps) of its recipe it trains.
    """

    name: str
    recipe: str = "waltz"
    settings: tuple[str, ...] = ()
    of_file: bool = True
    first: int | None = None
    longer: int = 1

    def __post_init__(self) -> None:
        """Raises BadInput for what is no arm: a user writes them by hand."""
        if isinstance(self.settings, str):
            raise BadInput(f"arm {self.name}: settings: expected several texts, as ({self.settings!r},)")
        for what in ("first", "longer"):
            if (number := getattr(self, what)) is not None and number < 1:
                raise BadInput(f"arm {self.name}: {what}: expected a whole number of 1 or more, got {number}")


@dataclass(frozen=True)
class Study:
    """A study in its folder. `settings` hold for every run of it, except where an arm sets the same key itself.

    planned: the seeds that the study began with, before its first run. Seeds that are added after a look at the others
    make what they decide exploratory, and the page says so.
    jobs: how many runs are trained at once, each in a process of its own.
    registered: the seeds that the study was written down with (docs/studies/registered.md); none: it was not.
    reuse: folders of other studies, from which finished runs of equal recipes are copied.
    defaults: settings of the study's own, with which it was registered.
    code: SHA-256 of the file of a user's own study when its first run began; "" for choreo's. edited: it changed since.
    """

    name: str
    folder: Path
    seeds: tuple[int, ...]
    settings: tuple[str, ...]
    progress: Progress
    jobs: int = 1
    planned: tuple[int, ...] = ()
    registered: tuple[int, ...] = ()
    reuse: tuple[Path, ...] = ()
    defaults: tuple[str, ...] = ()
    code: str = ""
    edited: bool = False

    @classmethod
    def open(
        cls,
        name: str,
        folder: Path,
        seeds: Sequence[int] | None,
        settings: Sequence[str],
        progress: Progress,
        jobs: int = 1,
        registered: Sequence[int] = (),
        reuse: Sequence[Path] = (),
        defaults: Sequence[str] = (),
        code: str = "",
    ) -> Study:
        """The study in `folder`, new or begun before. Seeds and settings that are not given are those of the folder.

        A new study has the registered seeds, or else SEEDS, where none are given. It has the settings `defaults`; a
        given setting takes the place of one of these, or of the folder's, with the same key.

        Raises BadInput when the folder holds another study, or when a setting is one that the seeds decide.
        """
        if len({*registered}) < len(registered) or any(type(seed) is not int or seed < 0 for seed in registered):
            raise BadInput(f"{name}: SEEDS: expected different whole numbers, such as (100, 101), got {registered!r}")
        saved = _saved(folder)
        if saved and saved["name"] != name:
            raise BadInput(f"{folder}: holds the study {saved['name']}, not {name}")
        for setting in settings:
            if toml.assign({}, setting)[0] in ("environment", "environment_options"):
                raise BadInput(f"--set {setting}: a study asks about the microworld; it takes no other environment")
            if (keys := toml.assign({}, setting)) in _OF_SEEDS:
                raise BadInput(f"--set {setting}: {'.'.join(keys)} differs between the runs of a study; see --seeds")
        seeds = tuple(seeds or saved.get("seeds") or registered or SEEDS)
        planned = tuple(saved.get("planned") or saved.get("seeds") or seeds)
        # Of two that set the same key the later one, as when a recipe is read.
        latest = {toml.assign({}, setting): setting for setting in (*saved.get("settings", defaults), *settings)}
        settings = tuple(latest.values())
        # A study that was stopped while it copied goes on copying. Runs of a study that is gone are trained.
        before = [path for path in map(Path, saved.get("reuse", ())) if (path / "study.json").is_file()]
        return cls(
            name,
            folder,
            seeds,
            settings,
            progress,
            jobs,
            planned,
            registered=tuple(registered),
            reuse=tuple(reuse or before),
            defaults=tuple(defaults),
            code=saved.get("code", code),
            edited=saved.get("code", code) != code,
        )

    def recipe(self, arm: Arm, seed: int) -> config.Recipe:
        """The recipe of one run. Raises BadInput as `config.load` does."""
        seeded = (f"seed={seed}", f"world.split_seed={seed}")
        own = toml.read(config.find(arm.recipe))[1] if arm.of_file else {}
        shared = [setting for setting in self.settings if toml.assign({}, setting) not in own]
        try:
            recipe = config.load(arm.recipe, (*shared, *arm.settings, *seeded))
        except BadInput as error:
            raise BadInput(f"arm {arm.name}: {error}") from None
        if arm.longer > 1:
            steps = f"learning.steps={arm.longer * recipe.model_dump()['learning']['steps']}"
            recipe = config.load(arm.recipe, (*shared, *arm.settings, *seeded, steps))
        return rooted(recipe.model_copy(update={"name": arm.name}))

    def train(self, arms: Sequence[Arm]) -> Runs:
        """Trains what is not finished yet. Arms whose recipes are equal are trained once and share their runs.

        Raises BadInput, before anything is trained, when a run in the folder was made with another recipe, and
        Interrupted, with all state saved, after a stop.
        """
        if len({arm.name for arm in arms}) < len(arms):
            raise BadInput(f"{self.name}: two arms have one name: their seeds would be counted twice")
        plan: dict[str, tuple[Path, config.Recipe]] = {}
        runs: dict[str, list[Path]] = {arm.name: [] for arm in arms}
        for number, seed in enumerate(self.seeds):
            for arm in (arm for arm in arms if arm.first is None or number < arm.first):
                recipe = self.recipe(arm, seed)
                path = self.folder / "runs" / f"{arm.name}-seed{seed}"
                path, _ = plan.setdefault(equal_runs.nameless(recipe), (path, recipe))
                runs[arm.name].append(path)
        elsewhere = equal_runs.finished_elsewhere(self.reuse, self.folder)
        for path, recipe in plan.values():
            equal_runs.refuse_other(path, recipe)
            if not is_finished(path):
                check(recipe)
        durable.make_folder(self.folder)
        begun = {"name": self.name, "seeds": self.seeds, "planned": self.planned, "settings": self.settings}
        reuse = [str(folder.resolve()) for folder in self.reuse]
        durable.write_json(self.folder / "study.json", begun | {"reuse": reuse, "code": self.code})
        for path, original in equal_runs.copy_equal(dict(plan.values()), elsewhere).items():
            self.progress.say(f"{path.name}: a copy of {original}")
        if self.jobs > 1:
            for path, recipe in plan.values():
                if not (path / "recipe.toml").is_file():
                    _created(path, recipe).close()
            unfinished = [path for path, _ in plan.values() if not is_finished(path)]
            train_in_parallel(unfinished, self.jobs, self.folder / "logs", self.progress)
            return runs
        for number, (path, recipe) in enumerate(plan.values(), start=1):
            self._run(path, recipe, f"run {number} of {len(plan)}, {path.name}:")
        return runs

    def trained(self, runs: Sequence[Path], system: str) -> list[Entry]:
        """What finished runs measured of `system` themselves, one entry per seed."""
        return [summary["systems"][system] for summary in self.summaries(runs)]

    @staticmethod
    def summaries(runs: Sequence[Path]) -> list[dict[str, Any]]:
        """summary.json of finished runs."""
        return [json.loads((run / "summary.json").read_text(encoding="utf-8")) for run in runs]

    def measured(
        self, label: str, system: str, runs: Sequence[Path], *, trained: bool = True, language: str | None = None
    ) -> list[Entry]:
        """`system`, measured on held-out prompts with the agents of `runs`; one entry per seed.

        label: names the files that keep the entries and the games. trained: with the trained agents, or else with the
        agents as they began. language: held-out prompts of this language only. Raises Interrupted; finished entries are
        kept.
        """
        entries = []
        for seed, run in zip(self.seeds, runs, strict=False):  # an arm may have the first seeds alone
            file, found = self._measured_file(label, seed), checkpoints(run)
            measured_of = checkpoint_digest(found[max(found)] if trained and found else None)
            # Checkpoints may be removed once all is measured.
            if not games_of(file).is_file() or not _is_of(file, measured_of if found else None):
                recipe = config.load(run / "recipe.toml")
                method = method_of(recipe)
                agents = method.load(recipe, last_checkpoint(run)[1] if trained else None)
                prompts = World(recipe.world).suites("heldout", (language,) if language else None)
                self.progress.start(f"measuring {label}, seed {seed}", len(prompts))
                task, on_progress = Task(recipe), reporting(self.progress)
                entry, games = method.measure_system(system, recipe, agents, prompts, task, on_progress)
                file.parent.mkdir(exist_ok=True)
                write_measured(file, entry | {MEASURED_OF: measured_of}, games)
            entries.append({key: value for key, value in read_object(file).items() if key != MEASURED_OF})
        return entries

    def outcomes(self, system: str, runs: Sequence[Path], round: int | None = None) -> list[Tables]:
        """Every held-out outcome of a system that finished runs measured themselves, one table per seed.

        round: of MACPO's policies, after which round. Raises BadInput where a run has no games of it.
        """
        for run in runs:
            if not measured_file(run, system, round).is_file():
                after = "" if round is None else f" after round {round}"
                raise BadInput(
                    f"{run}: lacks the held-out games of {system}{after}, by which systems are paired: an older choreo "
                    f"measured it; `choreo train {run}/recipe.toml --run {run} --overwrite` trains it again, with them"
                )
        return [tables(heldout_games(run, system, round)) for run in runs]

    def measured_outcomes(self, label: str) -> list[Tables]:
        """The same of what `measured` kept under that label, of as many of the first seeds as it measured."""
        files = takewhile(Path.is_file, (games_of(self._measured_file(label, seed)) for seed in self.seeds))
        return [tables(durable.read_lines(file)) for file in files]

    def _measured_file(self, label: str, seed: int) -> Path:
        return self.folder / "measured" / f"{label}-seed{seed}.json"

    def write(self, title: str, intro: str, sections: Sequence[PageSection], *, world: bool = True) -> str:
        """Writes study.html, study.md and answers.json, and returns the verdicts as plain text.

        world: whether the prompts are the microworld's, which a seed splits into training and held-out.
        answers.json: {schema, name, seeds, planned, settings, page, made, sections: [{heading, verdict, columns,
        rows}]}; for `made` see `kept.made`.
        """
        seeds = f"Seeds {', '.join(map(str, self.seeds))}" if len(self.seeds) > 1 else f"Seed {self.seeds[0]} alone"
        several = len(self.seeds) > 1
        alike = "the halves of the world they hold out overlap" if world else "hold out the same prompts"
        how = (
            f"{seeds}; a seed sets the random numbers{' and the split of the world' if world else ''}. Figures are on "
            "held-out prompts, with 95 % intervals over seeds that are never narrower than what the number of prompts "
            "allows"
            + (
                f". All seeds begin from one base, and {alike}."
                if several
                else " (one seed: the prompts alone, so luck in training is not in them)."
            )
        )
        if set(self.planned) != set(self.seeds):
            how += (
                f" Begun with the seeds {', '.join(map(str, self.planned))} and changed after that, so every verdict "
                "is exploratory."
            )
        if self.registered and set(self.registered) != set(self.seeds):
            how += (
                f" Registered with the seeds {', '.join(map(str, self.registered))}, and run with others, so every "
                "verdict is exploratory."
            )
        if self.registered and set(self.settings) != set(self.defaults):
            how += " Registered with other settings, so every verdict is exploratory."
        infos = [read_info(path) for path in (self.folder / "runs").glob("*-seed*")]
        if altered := sorted({name for info in infos for name in info.get("edited", ())}):
            how += f" The code of {', '.join(altered)} changed in the middle of a run, so verdicts are exploratory."
        if copies := equal_runs.copies(self.folder / "runs"):
            how += f" {len(copies)} runs, of equal recipes, were trained before for other studies: {', '.join(copies)}."
        if self.settings:
            how += f" Changed from the shipped recipes in every run: {', '.join(self.settings)}."
        made = kept.made(self.folder)
        if self.code:
            edited = ", edited after the first run began, so every verdict is exploratory" if self.edited else ""
            how += f" Its arms, seeds and contrasts are in {self.name}, SHA-256 {self.code[:16]}…{edited}."
        elif self.registered:
            how += " Its hypotheses are in docs/studies/registered.md."
        how += f" `choreo study {self.name}` made this page: {kept.told(made)}."
        path = write_study(self.folder / "study.html", title, f"{intro}\n\n{how}", sections)
        answers = {
            "schema": 1,
            "name": self.name,
            "seeds": self.seeds,
            "planned": self.planned,
            "settings": self.settings,
            "page": str(path),
            "made": made,
            "sections": [_plain(section) for section in sections],
        }
        durable.write_json(self.folder / "answers.json", answers)
        texts = [f"{section.heading}\n{section.verdict}" for section in sections]
        return "\n\n".join([title, *texts, f"study: {path}"])

    def _run(self, path: Path, recipe: config.Recipe, label: str) -> None:
        if is_finished(path):
            return
        begun = (path / "recipe.toml").is_file()
        with Run.open(path) if begun else _created(path, recipe) as run:
            run.callbacks = tuple(trackers := tracking(run))
            try:
                run.finish(run_recipe(run, Progress([_OneRun(self.progress, label), *trackers])))
            finally:
                notify(trackers, "on_end")
            write_report(path)
        if self.progress.interrupted:
            raise Interrupted(f"{path} is finished")


class _OneRun(Callback):
    """Reports one run to the progress of the study. The label of every phase begins with the name of the run."""

    def __init__(self, study: Progress, run: str):
        self._study, self._run = study, run

    def on_phase(self, label: str, total: int, done: int) -> None:
        self._study.start(f"{self._run} {label}", total, done)

    def on_progress(self, done: int, figures: Mapping[str, float]) -> None:
        self._study.advance(done, figures)

    def on_message(self, text: str) -> None:
        self._study.say(text)

    def wants_stop(self) -> bool:
        return self._study.interrupted


def _is_of(file: Path, checkpoint: str | None) -> bool:
    """Whether the measures in `file` are of this checkpoint. Those of an older choreo do not say, and are taken; so are
    all where nobody knows the checkpoint (None)."""
    return file.is_file() and checkpoint in (None, read_object(file).get(MEASURED_OF, checkpoint))


def _created(path: Path, recipe: config.Recipe) -> Run:
    """A new run, which knows with what it is begun."""
    run = Run.create(path, recipe, overwrite=True)
    run.note(source=kept.source())
    return run


def _saved(folder: Path) -> dict[str, Any]:
    file = folder / "study.json"
    if not file.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise BadInput(f"{folder}: holds other things and no study.json; name another folder with --run")
        return {}
    saved = read_object(file)
    if "name" not in saved:
        raise BadInput(f"{file}: not the record of a study")
    return saved


def _plain(section: PageSection) -> dict[str, Any]:
    table = section.table or Table((), ())
    return {"heading": section.heading, "verdict": section.verdict, "columns": table.columns, "rows": table.rows}
