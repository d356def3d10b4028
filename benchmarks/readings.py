"""Whether a student can tell its teachers' misreadings: what MACPO's perplexity filter needs, before any MACPO.

    choreo world pretrain --size author-llama --out bases/student     # and weak-llama, weak-qwen, weak-neox beside it
    OMP_NUM_THREADS=1 python benchmarks/readings.py bases/student bases/weak-llama bases/weak-qwen bases/weak-neox

Every agent writes what it was asked, and then its answer (`world.reading`). Each teacher learns from all labels; the
student learns from what the first teacher writes to the unlabelled prompts, and from no label. Then all teachers write
to these, and the student's perplexity of each answer is taken. Printed are, in one JSON object: rewards on held-out;
for each teacher the share of right answers and readings, and the AUC of perplexity against them; how often the answer
of lowest perplexity is right, and whose it is; and how the teachers' errors go together.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from choreo.engine.requests import Ids
from choreo.environments.base import environment_of
from choreo.environments.microworld import habits
from choreo.methods.judge_watch import JudgeWatch
from choreo.methods.macpo.agents import MacpoAgent, MacpoAgents
from choreo.methods.macpo.answers import AnswerWriter
from choreo.methods.macpo.recipe import MacpoRecipe
from choreo.methods.macpo.schedule import STUDENT, Phase
from choreo.methods.macpo.select import perplexity
from choreo.methods.macpo.split import split_prompts, without_overflow
from choreo.methods.macpo.trainer import train_phase
from choreo.runs.bar import ProgressBar
from choreo.runs.folder import Run
from choreo.runs.progress import Progress
from choreo.types import Prompt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student")
    parser.add_argument("teachers", nargs="+")
    parser.add_argument("--labels", type=int, default=1500)
    parser.add_argument("--prompts", type=int, default=3000, help="without labels")
    parser.add_argument("--epochs", type=int, default=2, help="of every start")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=20)
    given = parser.parse_args()
    recipe = MacpoRecipe.model_validate(
        {
            "seed": given.seed,
            "agents": {"student": given.student, "teachers": given.teachers},
            "world": {"reading": True, "train_prompts": 2 * (given.labels + given.prompts)},
            "writing": {"system": habits.READ_FIRST, "answer_tokens": 56},
            "data": {"labels": given.labels, "prompts": given.prompts},
            "tuning": {"epochs": given.epochs, "lr": given.lr},
            "rounds": {"count": 1, "negatives": "none"},
        }
    )
    with tempfile.TemporaryDirectory() as folder, Progress([ProgressBar()]) as progress:
        print(json.dumps(measured(recipe, Path(folder), progress), indent=2))


def measured(recipe: MacpoRecipe, folder: Path, progress: Progress) -> dict[str, Any]:
    """Trains the starts of all agents, and reads what the teachers write."""
    agents = MacpoAgents.load(recipe)
    data = without_overflow(recipe, split_prompts(recipe), agents)
    writer = AnswerWriter(recipe, agents, data.unlabelled)
    run, step, rewards = Run.create(folder / "run", recipe), 0, {}
    environment = environment_of(recipe)
    heldout = environment.suites("heldout")
    for name in (*(teacher.name for teacher in agents.teachers), STUDENT):
        step = train_phase(writer, data, Phase(0, name, "+"), run, progress, JudgeWatch(None, run), step)
        games = agents.answers_of(agents[name], agents[name].positive, heldout, recipe.seed)
        rewards[name] = share([right(environment.judge, game.prompt, game.answers[-1].text) for game in games])
    # The writer's prompts have no meaning, so that nothing can judge them; here they are judged.
    known = {prompt.id: prompt for prompts in environment.training().values() for prompt in prompts}
    prompts = [known[prompt.id] for prompt in writer.prompts]
    answers, whole, readings, found = [], [], [], {}
    for teacher in agents.teachers:
        turns = writer.write(0, teacher, teacher.positive)
        texts = [turn.text for turn in turns]
        good = np.array([right(environment.judge, *pair) for pair in zip(prompts, texts, strict=True)])
        read = np.array(
            [text.partition("\n")[0] == habits.spelled_out(p) for p, text in zip(prompts, texts, strict=True)]
        )
        of_answer, of_reading = perplexities(
            agents.student, writer.prompts, agents.student.adopt(turns, teacher), texts
        )
        names = np.array([prompt.kind != "general" for prompt in prompts])  # a general question has but one reading
        found[teacher.name] = {
            "answers_right": share(good),
            "readings_right": share(read[names]),
            "auc_of_readings": auc(-of_reading[names & read], -of_reading[names & ~read]),
            "auc_of_answers": auc(-of_answer[good], -of_answer[~good]),
        }
        answers.append(good)
        whole.append(of_answer)
        readings.append(of_reading)
    right_ones, picked = np.stack(answers), np.argmin(np.stack(whole), 0)
    return {
        "prompts": len(prompts),
        "heldout_reward": rewards,
        "teachers": found,
        "filter_right": share(right_ones[picked, np.arange(len(prompts))]),
        "best_teacher_right": max(share(own) for own in right_ones),
        "majority_right": share(right_ones.sum(0) * 2 > len(right_ones)),
        "any_right": share(right_ones.any(0)),
        "taken_from": [share(picked == k) for k in range(len(right_ones))],
        "correlation_of_errors": np.corrcoef(~right_ones).round(3).tolist(),
    }


def right(judge: Any, prompt: Prompt, answer: str) -> bool:
    return bool(judge(prompt, answer).satisfactory)


def perplexities(
    student: MacpoAgent, prompts: tuple[Prompt, ...], ids: list[Ids], texts: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Of every whole answer, and of its first line alone, under the student."""
    pairs = [(student.context(prompt), own) for prompt, own in zip(prompts, ids, strict=True)]
    scores = student.engine.score(student.positive, pairs)
    lines = [len(student.chat.encode(text.partition("\n")[0])) for text in texts]
    first = [perplexity(own[:n]) for own, n in zip(scores, lines, strict=True)]
    return np.array([perplexity(own) for own in scores]), np.array(first)


def share(found: Any) -> float:
    return float(np.mean(found))


def auc(above: np.ndarray, below: np.ndarray) -> float:
    """The chance that one of `above` is higher than one of `below`; ties are half (Mann–Whitney)."""
    pairs = above[:, None] - below[None, :]
    return float((pairs > 0).mean() + (pairs == 0).mean() / 2)


if __name__ == "__main__":
    main()
