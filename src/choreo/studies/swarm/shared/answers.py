"""From a trained run to answers that SWARM can replay: the engine plays once per checkpoint, and disk remembers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

from choreo import config
from choreo.engine import checkpoint
from choreo.environments.microworld.world import World
from choreo.errors import BadInput
from choreo.experiment.run import bases
from choreo.files import durable
from choreo.game.moves import Review
from choreo.game.play import play, review
from choreo.methods.base import Method, R
from choreo.methods.macpo.agents import MacpoAgent, MacpoAgents
from choreo.methods.macpo.method import MACPO
from choreo.methods.macpo.recipe import MacpoRecipe
from choreo.methods.macpo.schedule import STUDENT, phases_done, schedule
from choreo.methods.waltz.method import WALTZ
from choreo.methods.waltz.pair import AnyPair
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.runs.checkpoints import checkpoints, last_checkpoint
from choreo.runs.folder import read_info
from choreo.swarm.answers import Answer, Answers, Truth, cached, truth_of
from choreo.types import Episode, Prompt, Turn

SUITES = ("adversarial_harmful", "sensitive_benign", "general")  # what the users of a scenario bring
STEPS = 200  # of a run's recorded steps, at most and evenly spread, whose answers a probe is fitted on


def load_recipe(run: Path, method: Method[R, Any]) -> R:
    """The recipe of a run folder. Raises BadInput where it is none, is of another method, or was never trained."""
    read_info(run)
    recipe = config.load(run / "recipe.toml")
    if not isinstance(recipe, method.recipe):
        raise BadInput(f"{run}: is a run of {recipe.method}, and this study takes runs of {method.name}")
    last_checkpoint(run)
    return recipe


def heldout_prompts(recipe: config.Recipe) -> list[Prompt]:
    """Held-out prompts of the suites that users bring."""
    return [prompt for prompt in World(recipe.world).suites("heldout") if prompt.suite in SUITES]


def weights_key(folder: Path) -> str:
    """16 hex digits of a checkpoint's bytes. Kept answers are named by it, so it stays as it is."""
    digest = blake2b(digest_size=8)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def training_answers(run: Path, recipe: config.Recipe) -> list[Answer]:
    """Answers to prompts of the training half, as the run recorded them from its first step to its last, with the
    exact judge's word: what a probe may be fitted on. Those to held-out prompts are none of them."""
    world = World(recipe.world)
    prompts = {prompt.id: prompt for pool in world.training().values() for prompt in pool}
    recorded = sorted((run / "episodes").glob("step-*.jsonl.gz"))
    found = []
    for file in spaced(recorded, STEPS):
        for row in durable.read_lines(file):
            if (prompt := prompts.get(row["prompt"]["id"])) is None:
                continue
            for turn in row["answers"]:
                found.append(_answer(prompt, turn["text"], world))
    return found


def spaced(items: Sequence[Path], most: int) -> Sequence[Path]:
    """At most `most` of them, evenly spread from the first on."""
    return items[:: max(1, -(-len(items) // most))]


def _label(world: World, prompt: Prompt, text: str) -> tuple[Truth, bool]:
    return truth_of(world.judge(prompt, text)), world.refuses(prompt, text)


# ---- WaltzRL ------------------------------------------------------------------------------------


def waltz_answers(
    run: Path, recipe: WaltzRecipe, cache: Path, on_progress: Callable[[str], None]
) -> dict[str, Answers]:
    """Answers of the pair of `run` by way of playing, trained and as it began; p is not judged yet.

    no_feedback, adaptive_untrained: before training, alone and with its feedback agent; trained_alone, adaptive,
    always_on: after it, alone, with feedback when the feedback agent asks for a revision, and revising every answer.
    """
    _, last = last_checkpoint(run)
    prompts, base = heldout_prompts(recipe), "+".join(bases(recipe).values())
    pairs: dict[bool, AnyPair[Any]] = {}
    found = {}
    for arm, trained, rounds, always in (
        ("no_feedback", False, 0, False),
        ("trained_alone", True, 0, False),
        ("adaptive", True, 1, False),
        ("adaptive_untrained", False, 1, False),
        ("always_on", True, 1, True),
    ):

        def write(arm: str = arm, trained: bool = trained, rounds: int = rounds, always: bool = always) -> Answers:
            on_progress(f"{run.name}: {arm} answers")
            if trained not in pairs:
                pairs[trained] = WALTZ.load(recipe, last if trained else None)
            return _played(pairs[trained], recipe, prompts, rounds, always)

        weights = f"{base}/{weights_key(last)}" if trained else base
        key = {"arm": arm, "checkpoint": weights, "seed": recipe.seed, **_how(recipe)}
        found[arm] = cached(cache, key, prompts, write, partial(_label, World(recipe.world)))
    return found


def _how(recipe: WaltzRecipe) -> dict[str, Any]:
    return {"protocol": recipe.protocol.model_dump(), "temperature": recipe.evaluation.temperature}


def _played(pair: AnyPair[Any], recipe: WaltzRecipe, prompts: Sequence[Prompt], rounds: int, always: bool) -> Answers:
    """Sampled as in evaluation: the same keys, so the same first answers in every way of playing."""
    world = World(recipe.world)
    shared: dict[str, Any] = {"key": (recipe.seed, "evaluation"), "temperature": recipe.evaluation.temperature}
    limits = replace(recipe.protocol.limits, rounds=rounds)
    insist = partial(_insisting, pair, {**shared, "limits": limits}) if always else None
    games = play(pair.agents, [(prompt, 0) for prompt in prompts], limits, reviewer=insist, **shared)
    return tuple(_of_episode(episode, world) for episode in games)


def _insisting(pair: AnyPair[Any], shared: Mapping[str, Any], games: Sequence[Episode]) -> list[Review]:
    """The feedback agent, and a revision whatever it says: its words reach the conversation agent even where it is
    satisfied. What does not parse has no words, and changes nothing."""
    reviews = review(pair.agents, games, **shared)
    return [
        Review(turn, replace(feedback, overrefuse=True))
        if feedback is not None and feedback.satisfied
        else Review(turn, feedback)
        for turn, feedback in reviews
    ]


def _of_episode(episode: Episode, world: World) -> Answer:
    answer = _answer(episode.prompt, episode.answers[-1].text, world)
    return replace(answer, revisions=len(episode.answers) - 1, asked=episode.triggered)


def _answer(prompt: Prompt, text: str, world: World) -> Answer:
    return Answer(prompt.id, prompt.suite, prompt.text, text, *_label(world, prompt, text))


# ---- MACPO --------------------------------------------------------------------------------------


def macpo_answers(
    run: Path, recipe: MacpoRecipe, cache: Path, on_progress: Callable[[str], None]
) -> dict[int, dict[str, Answers]]:
    """By round (0 is the start): the student's answers, with each teacher's score of them as it stands after that
    round, and those of the student's negative twin where it was trained; p is not judged yet."""
    prompts, label = heldout_prompts(recipe), partial(_label, World(recipe.world))
    found: dict[int, dict[str, Answers]] = {}
    for number, folder in round_checkpoints(run, recipe).items():
        loaded: list[MacpoAgents] = []

        def write(
            policy: str, number: int = number, folder: Path = folder, loaded: list[MacpoAgents] = loaded
        ) -> Answers:
            on_progress(f"{run.name}: answers of {policy} after round {number}")
            if not loaded:
                loaded.append(MACPO.load(recipe, folder))
            return _written(loaded[0], recipe, policy, prompts)

        key = {
            "checkpoint": weights_key(folder),
            "bases": [*bases(recipe).values()],
            "seed": recipe.seed,
            "temperature": recipe.evaluation.temperature,
            "beta": recipe.rounds.beta,
            "answer_tokens": recipe.writing.answer_tokens,
        }
        policies = [f"{STUDENT}+", *([f"{STUDENT}-"] if recipe.rounds.negatives == "twin" else [])]
        found[number] = {
            policy: cached(cache, {"arm": policy, **key}, prompts, partial(write, policy), label) for policy in policies
        }
    return found


def round_checkpoints(run: Path, recipe: MacpoRecipe) -> dict[int, Path]:
    """The checkpoint that ends each round. A run keeps one per phase, and a round is several phases."""
    phases = schedule(recipe)
    ended = {}
    for _, folder in sorted(checkpoints(run).items()):
        phase = phases[phases_done(checkpoint.load(folder)["phases"], phases, str(folder)) - 1]
        if phase.last:
            ended[phase.round] = folder
    return ended


def _written(agents: MacpoAgents, recipe: MacpoRecipe, policy: str, prompts: Sequence[Prompt]) -> Answers:
    student, world = agents.student, World(recipe.world)
    turns = student.write(
        policy,
        [student.context(prompt) for prompt in prompts],
        [(recipe.seed, "evaluation", prompt.id) for prompt in prompts],
        tokens=recipe.writing.answer_tokens,
        temperature=recipe.evaluation.temperature,
    )
    scores = [_scores(teacher, student, prompts, turns, recipe.rounds.beta) for teacher in agents.teachers]
    return tuple(
        replace(_answer(prompt, turn.text, world), scores=tuple(column[i] for column in scores))
        for i, (prompt, turn) in enumerate(zip(prompts, turns, strict=True))
    )


def _scores(
    teacher: MacpoAgent, student: MacpoAgent, prompts: Sequence[Prompt], turns: Sequence[Turn], beta: float
) -> list[float]:
    """β Σ (log π − log π_base) of each answer: the reward that DPO implies (arXiv 2305.18290, equation 5)."""
    pairs = list(zip([teacher.context(prompt) for prompt in prompts], teacher.adopt(turns, student), strict=True))
    own, base = (teacher.engine.score(policy, pairs) for policy in (teacher.positive, None))
    return [beta * (math.fsum(a) - math.fsum(b)) for a, b in zip(own, base, strict=True)]
