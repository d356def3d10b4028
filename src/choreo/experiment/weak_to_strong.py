"""`choreo world w2s`: whether a world has what MACPO needs, measured before any MACPO; and the gates that it must pass.

A method that lets a strong student learn from weak teachers can show something only where the student could do better
than its teachers, where their errors are not what it would learn first, and where it can tell some of them. All of this
is a matter of the world, the bases and the labels, so it is measured on supervised starts alone. One gate reads the
pairs that a first round of MACPO would learn from; none looks at what MACPO makes of them.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from choreo import config
from choreo.engine.requests import Ids
from choreo.environments.microworld import habits
from choreo.environments.microworld.world import World
from choreo.errors import BadInput, Interrupted
from choreo.files import durable
from choreo.files.json_file import read_object
from choreo.methods.judge_watch import JudgeWatch
from choreo.methods.macpo.agents import MacpoAgent, MacpoAgents
from choreo.methods.macpo.answers import AnswerWriter, from_teachers, negatives
from choreo.methods.macpo.measure import pgr
from choreo.methods.macpo.recipe import MacpoRecipe
from choreo.methods.macpo.schedule import STUDENT, Phase, ceiling_of
from choreo.methods.macpo.select import perplexity
from choreo.methods.macpo.split import LabelledPrompt, PromptSplit, split_prompts, without_overflow
from choreo.methods.macpo.trainer import train_phase
from choreo.models.resolve import base_folder
from choreo.runs.folder import Run
from choreo.runs.progress import Progress
from choreo.types import Prompt, Turn

FEW = 0.2  # the student's few labels, as a share of the teachers'
CURVE = (0.25, 0.5, 1.0)  # the shares of the weak labels that the student's curve is measured at
PENALTY = 0.1  # C of the probe's logistic regression
FOLDS = 5  # of its cross-validation
AT_ONCE = 64

Flags = NDArray[np.bool_]  # one for each prompt


@dataclass(frozen=True, slots=True)
class Gate:
    """What a measure must be for MACPO to be able to show something here. name: of the measure. words: what it is.

    least, most: its bounds, either may be open. They were written down before MACPO was first run in this world. A mean
    over few seeds is held to them, so that a gate which is just met may be met by luck.
    """

    name: str
    words: str
    least: float | None = None
    most: float | None = None

    def passes(self, value: float) -> bool:
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


GATES = (
    Gate("few_minus_teacher", "reward of the student with few labels, minus the best teacher's", least=0.0),
    Gate("few_of_ceiling", "reward of the student with few labels, as a share of its ceiling's", least=0.9),
    Gate("teacher_ceiling", "reward of the best teacher with the labels of all prompts", most=0.8),
    Gate("errors_from_features", "AUC of a probe of the student's base for a teacher's errors, the highest", most=0.65),
    Gate("errors_correlate", "correlation of two teachers' errors, the highest", most=0.4),
    Gate("curve_rises", "reward with all weak labels, minus with the fewest", least=0.01),
    Gate("curve_minus_flips", "reward with weak labels, minus with as many random flips, the lowest", least=-0.05),
    Gate("naive_pgr", "PGR of naive SFT, at least", least=0.2),
    Gate("naive_pgr", "PGR of naive SFT, at most", most=0.6),
    Gate("pairs_in_order", "pairs whose chosen answer is the better one", least=0.85),
)


def weak_to_strong(
    recipe: MacpoRecipe, seeds: Sequence[int], progress: Progress, kept: Path | None = None
) -> dict[str, Any]:
    """Measures the world of `recipe` with every seed, each with the split of its own number.

    kept: a file that every seed's measures are written to; seeds that it has are not measured again.
    Returns {"seeds": {seed: measures}, "gates": [{name, words, least, most, value, passes}]}; a gate
    is decided by the mean over seeds, and what cannot be measured passes none. Raises Interrupted after a stop, and
    BadInput where scikit-learn is not installed, the environment is not the microworld, the recipe has no negative
    agents, or `kept` is of another recipe.
    """
    if recipe.environment != "microworld" or recipe.data.file:
        raise BadInput("world w2s: measures the microworld; the recipe names other prompts")
    if recipe.rounds.negatives != "twin":
        raise BadInput(
            f'world w2s: rounds.negatives: expected "twin", got "{recipe.rounds.negatives}"; one gate is about the '
            "negative agents' answers"
        )
    _probe()
    if kept:
        durable.check_place(kept)
    text = config.to_toml(recipe)
    there: dict[str, Any] = {"recipe": text, "seeds": {}}
    if kept and kept.is_file():
        there = read_object(kept)
    if there.get("recipe") != text:
        raise BadInput(f"{kept}: holds the measures of another recipe; name another file with --out")
    found = {seed: there["seeds"][str(seed)] for seed in seeds if str(seed) in there["seeds"]}
    for seed in (seed for seed in seeds if seed not in found):
        with tempfile.TemporaryDirectory() as folder:
            split = {"seed": seed, "world": recipe.world.model_copy(update={"split_seed": seed})}
            found[seed] = _measured(recipe.model_copy(update=split), Path(folder), progress)
        there["seeds"][str(seed)] = found[seed]
        if kept:
            durable.write_json(kept, there)
    gates = []
    for gate in GATES:
        measured = [measures[gate.name] for measures in found.values()]
        value = math.nan if None in measured else fmean(measured)  # a file has None for NaN
        gates.append({**_fields(gate), "value": value, "passes": gate.passes(value)})
    return {"seeds": {str(seed): found[seed] for seed in seeds}, "gates": gates}


def _fields(gate: Gate) -> dict[str, Any]:
    return {"name": gate.name, "words": gate.words, "least": gate.least, "most": gate.most}


@dataclass
class OneSeed:
    """What all measures of one seed share. data: with the labels of all prompts. known: prompts by id, with meaning.

    begun: every agent's positive policy as it was before any training, by the agent's name.
    """

    recipe: MacpoRecipe
    world: World
    agents: MacpoAgents
    data: PromptSplit
    known: Mapping[str, Prompt]
    run: Run
    progress: Progress
    step: int = field(default=0)
    begun: dict[str, dict[str, Any]] = field(init=False)

    @classmethod
    def of(cls, recipe: MacpoRecipe, folder: Path, progress: Progress) -> OneSeed:
        """The agents of the recipe, not trained yet. folder: for the record of their training."""
        world, agents = World(recipe.world), MacpoAgents.load(recipe)
        data = without_overflow(recipe, split_prompts(ceiling_of(recipe)), agents)
        known = {prompt.id: prompt for prompts in world.training().values() for prompt in prompts}
        return cls(recipe, world, agents, data, known, Run.create(folder / "run", recipe), progress)

    def __post_init__(self) -> None:
        self.begun = {agent.name: agent.team.state_dict(agent.positive) for agent in self.agents}

    def train(self, writer: AnswerWriter, data: PromptSplit, phase: Phase) -> None:
        total = _updates(self.recipe, len(self.data.labelled), len(self.data.ceiling))
        self.progress.start(f"seed {self.recipe.seed}, {phase.agent}{phase.side}", total, self.step)
        self.step = train_phase(writer, data, phase, self.run, self.progress, JudgeWatch(None, self.run), self.step)
        if self.progress.interrupted:
            raise Interrupted(
                "the seed that was being measured is not kept; those before it are, where --out names a file"
            )

    def reward(self, name: str) -> float:
        """The share of satisfactory answers of an agent on held-out."""
        agent, prompts = self.agents[name], self.world.suites("heldout")
        played = self.agents.answers_of(agent, agent.positive, prompts, self.recipe.seed)
        return fmean(self.right(prompt, game.answers[-1].text) for prompt, game in zip(prompts, played, strict=True))

    def right(self, prompt: Prompt, answer: str) -> bool:
        return bool(self.world.judge(self.known.get(prompt.id, prompt), answer).satisfactory)

    def grade(self, prompt: Prompt, answer: str) -> float:
        return self.world.judge.grade(self.known.get(prompt.id, prompt), answer)

    def of_student(self, rows: Sequence[LabelledPrompt]) -> float:
        """The reward of a student that begins anew and is trained on `rows`. The agents are as before behind it."""
        return self._anew(STUDENT, replace(self.data, ceiling=tuple(rows)))

    def of_teacher(self, name: str, rows: Sequence[LabelledPrompt]) -> float:
        """As `of_student`, of a teacher."""
        return self._anew(name, replace(self.data, labelled=tuple(rows)))

    def _anew(self, name: str, data: PromptSplit) -> float:
        agent = self.agents[name]
        kept = agent.team.state_dict(agent.positive)
        agent.team.load_state_dict(agent.positive, self.begun[name])
        try:
            self.train(AnswerWriter(self.recipe, self.agents, data.unlabelled), data, Phase(0, name, "+"))
            return self.reward(name)
        finally:
            agent.team.load_state_dict(agent.positive, kept)


def _measured(recipe: MacpoRecipe, folder: Path, progress: Progress) -> dict[str, Any]:
    """All measures of one seed, those of GATES and what they are made of."""
    lab = OneSeed.of(recipe, folder, progress)
    agents, data = lab.agents, lab.data
    writer, blind = AnswerWriter(recipe, agents, data.unlabelled), replace(data, ceiling=())
    names = [teacher.name for teacher in agents.teachers]
    for name in names:
        lab.train(writer, blind, Phase(0, name, "+"))
    lab.train(writer, blind, Phase(0, names[0], "-"))
    lab.train(writer, blind, Phase(0, STUDENT, "+"))
    lab.train(writer, blind, Phase(0, STUDENT, "-"))
    teachers = {name: lab.reward(name) for name in names}
    naive = lab.reward(STUDENT)

    ceiling = lab.of_student(data.ceiling)
    few = lab.of_student(data.labelled[: round(FEW * len(data.labelled))])
    everything = (*data.labelled, *data.ceiling)
    ceilings = {name: lab.of_teacher(name, everything) for name in names}
    weak, written = names[0], writer.write(0, agents.teachers[0], agents.teachers[0].positive)
    curve, gap = _curve(lab, written, naive), pgr(naive, teachers[weak], ceiling)
    told = _told(lab, writer)
    return {
        "labels": len(data.labelled),
        "prompts": len(data.unlabelled),
        "teachers": teachers,
        "teachers_with_all_labels": ceilings,
        "naive": naive,
        "few": few,
        "ceiling": ceiling,
        "curve": curve,
        **told,
        "few_minus_teacher": few - max(teachers.values()),
        "few_of_ceiling": few / ceiling if ceiling else math.nan,
        "teacher_ceiling": max(ceilings.values()),
        "curve_rises": curve["weak"][-1] - curve["weak"][0],
        "curve_minus_flips": min(a - b for a, b in zip(curve["weak"], curve["flipped"], strict=True)),
        "naive_pgr": math.nan if gap is None else gap,
    }


def _updates(recipe: MacpoRecipe, labels: int, prompts: int) -> int:
    """How many updates all trainings of one seed are."""
    curve, teachers = [round(share * prompts) for share in CURVE], len(recipe.agents.teachers)
    rows = [labels, labels + prompts] * teachers + [prompts, prompts, round(FEW * labels), *curve, *curve[:-1]]
    tuning = recipe.tuning
    starts = tuning.epochs * sum(math.ceil(n / tuning.batch) for n in rows)
    return starts + tuning.negative_epochs * sum(math.ceil(n / tuning.batch) for n in (labels, prompts))


def _curve(lab: OneSeed, written: Sequence[Turn], with_all: float) -> dict[str, list[float]]:
    """The student's reward by the number of weak labels, and with as many labels of which as many are wrong by chance.

    written: the weak labels. with_all: the reward with all of them, which was measured before.
    """
    rows, rng = lab.data.ceiling, np.random.default_rng([lab.recipe.seed, 0])
    weak = [replace(row, chosen=turn.text) for row, turn in zip(rows, written, strict=True)]
    wrong = [not lab.right(row.prompt, row.chosen) for row in weak]
    sizes = [round(share * len(rows)) for share in CURVE]
    return {
        "labels": [float(size) for size in sizes],
        "wrong": [fmean(wrong[:size]) for size in sizes],
        "weak": [*(lab.of_student(weak[:size]) for size in sizes[:-1]), with_all],
        "flipped": [lab.of_student(flipped(rows[:size], sum(wrong[:size]), rng)) for size in sizes],
    }


def flipped(rows: Sequence[LabelledPrompt], wrong: int, rng: np.random.Generator) -> list[LabelledPrompt]:
    """`rows`, of which so many, drawn by chance, have the rejected answer for the chosen one."""
    flips = rng.permutation(len(rows)) < wrong
    return [replace(row, chosen=row.rejected) if flip else row for row, flip in zip(rows, flips, strict=True)]


def _told(lab: OneSeed, writer: AnswerWriter) -> dict[str, Any]:
    """What the student tells of its teachers' answers to the unlabelled prompts, and the pairs of a first round."""
    agents, prompts = lab.agents, writer.prompts
    good, scores, of_readings, from_features = [], [], {}, {}
    contexts = [agents.student.context(prompt) for prompt in prompts]
    states = states_at_answer(lab.recipe.agents.student, contexts, agents.student.chat.pad_id)
    for teacher in agents.teachers:
        turns = writer.write(1, teacher, teacher.positive)
        texts = [turn.text for turn in turns]
        right = np.array([lab.right(*pair) for pair in zip(prompts, texts, strict=True)])
        whole, reading = _perplexities(agents.student, prompts, agents.student.adopt(turns, teacher), texts)
        read = np.array([_read(lab.known[p.id], text) for p, text in zip(prompts, texts, strict=True)])
        named = np.array([p.kind != "general" for p in prompts])  # a general question has but one reading
        of_readings[teacher.name] = auc(-reading[named & read], -reading[named & ~read])
        from_features[teacher.name] = _auc_from(states, ~right)
        good.append(right)
        scores.append(whole)
    rights, picked = np.stack(good), np.argmin(np.stack(scores), 0)
    chosen, _ = from_teachers(writer, 1)
    rejected = negatives(writer, 1, agents.student)
    chat = agents.student.chat
    pairs = [
        lab.grade(prompt, chat.decode(ids)) > lab.grade(prompt, chat.decode(bad))
        for prompt, kept, bad in zip(prompts, chosen, rejected, strict=True)
        for ids in kept
        if bad is not None
    ]
    return {
        "teachers_right": [float(right.mean()) for right in rights],
        "filter_right": float(rights[picked, np.arange(len(prompts))].mean()),
        "majority_right": float((rights.sum(0) * 2 > len(rights)).mean()),
        "any_right": float(rights.any(0).mean()),
        "taken_from": [float((picked == k).mean()) for k in range(len(rights))],
        "readings_from_perplexity": of_readings,
        "errors_from_features_of": from_features,
        "errors_from_features": float(np.max(list(from_features.values()))),
        "errors_correlate": highest_correlation(~rights),
        "pairs_in_order": fmean(pairs),
    }


def highest_correlation(wrong: NDArray[np.bool_]) -> float:
    """The highest correlation of two rows of bool [teachers, prompts]: 0 for one teacher alone, and NaN where a teacher
    is always wrong, or never."""
    if len(wrong) < 2:
        return 0.0
    with np.errstate(invalid="ignore"):
        matrix = np.atleast_2d(np.corrcoef(wrong))
    return float(matrix[np.triu_indices(len(wrong), 1)].max())


def _read(prompt: Prompt, answer: str) -> bool:
    return answer.partition("\n")[0] == habits.spelled_out(prompt)


def _perplexities(
    student: MacpoAgent, prompts: Sequence[Prompt], ids: Sequence[Ids], texts: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of every whole answer, and of its first line alone, under the student."""
    pairs = [(student.context(prompt), own) for prompt, own in zip(prompts, ids, strict=True)]
    scores = student.engine.score(student.positive, pairs)
    lines = [len(student.chat.encode(text.partition("\n")[0])) for text in texts]
    first = [perplexity(own[:n]) for own, n in zip(scores, lines, strict=True)]
    return np.array([perplexity(own) for own in scores]), np.array(first)


@torch.inference_mode()
def states_at_answer(base: str, contexts: Sequence[Ids], pad_id: int) -> NDArray[np.float32]:
    """float32 [contexts, layers + 1, width]: the hidden states of a base from which the first token is drawn. Layer 0
    is the embedding."""
    model, states = AutoModelForCausalLM.from_pretrained(base_folder(base)).eval(), []
    for begin in range(0, len(contexts), AT_ONCE):
        rows = contexts[begin : begin + AT_ONCE]
        ids = torch.full((len(rows), max(map(len, rows))), pad_id)
        for row, context in zip(ids, rows, strict=True):
            row[: len(context)] = torch.tensor(context)
        found = model(ids, output_hidden_states=True).hidden_states
        places = torch.arange(len(rows)), torch.tensor([len(context) - 1 for context in rows])
        states.append(torch.stack([layer[places] for layer in found], 1))
    return torch.cat(states).numpy()


def _auc_from(states: NDArray[np.float32], wrong: Flags) -> float:
    """AUC, by cross-validation, of the best layer's linear probe for the prompts that a teacher gets wrong; NaN where
    these, or the others, are too few."""
    probe = _probe()
    if min(wrong.sum(), (~wrong).sum()) < FOLDS:
        return math.nan
    return max(probe(states[:, layer], wrong) for layer in range(states.shape[1]))


def _probe() -> Callable[[NDArray[np.float32], Flags], float]:
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import roc_auc_score
        from sklearn.model_selection import cross_val_predict
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        raise BadInput("world w2s: needs scikit-learn; pip install 'choreo-rl[swarm]'") from None

    def told(states: NDArray[np.float32], wrong: Flags) -> float:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=500))
        scores = cross_val_predict(model, states, wrong, cv=FOLDS, method="decision_function")
        return float(roc_auc_score(wrong, scores))

    return told


def auc(above: NDArray[np.float64], below: NDArray[np.float64]) -> float | None:
    """The chance that one of `above` is higher than one of `below`; ties are half (Mann–Whitney). None without one of
    each."""
    if not len(above) or not len(below):
        return None
    pairs = above[:, None] - below[None, :]
    return float((pairs > 0).mean() + (pairs == 0).mean() / 2)
