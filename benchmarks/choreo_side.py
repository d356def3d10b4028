"""choreo's side: `python choreo_side.py WORK FOLDER` takes turns at one piece of work (see work.py)."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from turns import Turns
from work import BETA, CLIP, DPO_BETA, LEARNING_RATE, SEED, Sizes, overrides, reward

from choreo import config
from choreo.agents.local import LocalAgent
from choreo.algorithms.advantages import grpo
from choreo.engine.agent import Team
from choreo.engine.constraint import FORCED
from choreo.engine.learner import Learner, preference_pairs
from choreo.engine.local import LocalEngine
from choreo.engine.losses import DPOLoss, PolicyLoss
from choreo.engine.requests import Completion, Request
from choreo.game.play import play
from choreo.methods.waltz.trainer import train
from choreo.models.chat import Chat
from choreo.models.load import load_chat
from choreo.runs.callbacks import Callback
from choreo.runs.folder import Run
from choreo.runs.progress import Progress
from choreo.types import CONVERSATION, FEEDBACK, Episode, Limits, Preference, Prompt, Sample

JOINT_LOSS = PolicyLoss(CLIP, divide=1)  # Σ −A log π over the sequences, the gradient of MAGRPO's loss
NEVER = -1  # an end token that no model writes, so that every answer has its full length


def policy(work: Mapping[str, Any], folder: Path, turns: Turns) -> None:
    """GRPO: sample, reward, reference log-probabilities, group advantages, one update."""
    sizes, (chat, engine, (learner,)) = Sizes(**work["sizes"]), team(work, CONVERSATION, end_id=NEVER)
    engine.sample = turns.time("rollout_seconds", engine.sample)
    for start in range(0, len(work["policy"]), sizes.prompts):
        texts = work["policy"][start : start + sizes.prompts]
        games = [
            (Prompt(str(i), text, "general", "bench"), k) for i, text in enumerate(texts) for k in range(sizes.group)
        ]
        episodes = play(
            {CONVERSATION: LocalAgent(chat, engine)},
            games,
            Limits(rounds=0, answer_tokens=sizes.new_tokens, feedback_tokens=1),
            key=(SEED, start),
        )
        samples = []
        for episode in episodes:
            turn = episode.answers[0]
            paid = reward(list(turn.ids))
            samples.append(Sample(CONVERSATION, turn.context, turn.ids, turn.logprobs, episode.prompt.id, paid))
        scores = engine.score(None, [(s.context, s.ids) for s in samples])
        samples = [replace(s, reference=score) for s, score in zip(samples, scores, strict=True)]
        figures = learner.update(grpo(samples, beta=BETA), PolicyLoss(CLIP))
        sampled = sum(len(episode.answers[0].ids) for episode in episodes)
        turns.end(sampled=sampled, trained=figures["tokens"])


def dpo(work: Mapping[str, Any], folder: Path, turns: Turns) -> None:
    """DPO: reference log-probabilities and one update."""
    chat, engine, (learner,) = team(work, CONVERSATION)
    for preferences in batches_of_pairs(work, chat):
        figures = learner.update(preference_pairs(engine, CONVERSATION, preferences), DPOLoss(DPO_BETA))
        turns.end(trained=figures["tokens"])


def score(work: Mapping[str, Any], folder: Path, turns: Turns) -> None:
    """Reference log-probabilities of the pairs."""
    chat, engine, _ = team(work, CONVERSATION)
    for preferences in batches_of_pairs(work, chat):
        pairs = preference_pairs(engine, CONVERSATION, preferences)
        turns.end(scored=sum(len(sample.ids) for pair in pairs for sample in pair))


def batches_of_pairs(work: Mapping[str, Any], chat: Chat) -> Iterator[list[Preference]]:
    preferences = [
        Preference(
            Prompt(str(i), text, "general", "bench"),
            chat.answer_context(chat.encode(text)),
            (*chat.encode(chosen), chat.end_id),
            (*chat.encode(rejected), chat.end_id),
        )
        for i, (text, chosen, rejected) in enumerate(work["pairs"])
    ]
    size = work["sizes"]["pairs"]
    for start in range(0, len(preferences), size):
        yield preferences[start : start + size]


def joint(work: Mapping[str, Any], folder: Path, turns: Turns) -> None:
    """Two agents answer the same prompts, are paid together and learn: group advantages, no KL, one update of each."""
    sizes, agents = Sizes(**work["sizes"]), (CONVERSATION, FEEDBACK)
    chat, engine, learners = team(work, *agents, end_id=NEVER)
    sample = turns.time("rollout_seconds", engine.sample)
    for start in range(0, len(work["policy"]), sizes.prompts):
        contexts = [chat.answer_context(chat.encode(text)) for text in work["policy"][start : start + sizes.prompts]]
        places = [(i, k) for i in range(sizes.prompts) for k in range(sizes.group)]
        answers: list[list[Completion]] = []
        for agent in agents:
            requests = [Request(contexts[i], (SEED, start, agent, i, k)) for i, k in places]
            answers.append(sample(agent, requests, max_new_tokens=sizes.new_tokens))
        paid = [reward([i for one in both for i in one.ids]) for both in zip(*answers, strict=True)]
        trained = 0.0
        for agent, learner, own in zip(agents, learners, answers, strict=True):
            samples = [
                Sample(agent, contexts[i], one.ids, one.logprobs, str(i), value)
                for (i, _), one, value in zip(places, own, paid, strict=True)
            ]
            trained += learner.update(grpo(samples), JOINT_LOSS)["tokens"]
        turns.end(sampled=sum(len(one.ids) for own in answers for one in own), trained=trained)


def waltz(work: Mapping[str, Any], folder: Path, turns: Turns) -> None:
    """WaltzRL as `choreo train` runs it, its record on disk included."""
    with Run.create(folder / "run", config.load("waltz", overrides(work["model"], Sizes(**work["sizes"])))) as run:
        run.callbacks = (chosen := Chosen(),)
        train(run.recipe, run, WaltzTurns(run, turns, chosen))


class Chosen(Callback):
    """Counts the ids that the last step's turns chose: those that a review's grammar forced cost no pass."""

    def on_episodes(self, step: int, episodes: Sequence[Episode], rewards: Sequence[Mapping[str, float]]) -> None:
        written = [turn for episode in episodes for turn in (*episode.answers, *episode.reviews)]
        self.count = sum(sum(row != FORCED for row in turn.choices or turn.ids) for turn in written)


class WaltzTurns(Progress):
    def __init__(self, run: Run, turns: Turns, chosen: Chosen):
        super().__init__()
        self._run, self._turns, self._chosen = run, turns, chosen

    def advance(self, done: int, figures: Mapping[str, float] | None = None, alarms: Sequence[str] = ()) -> None:
        last = (self._run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
        step = json.loads(last)
        trained = sum(value for name, value in step.items() if name.startswith("tokens/"))
        self._turns.end(sampled=self._chosen.count, trained=trained, written=step["tokens"])


def team(work: Mapping[str, Any], *agents: str, end_id: int | None = None) -> tuple[Chat, LocalEngine, list[Learner]]:
    """The learners are in the order of `agents`."""
    chat = load_chat(work["model"])
    sizes = Sizes(**work["sizes"])
    own = Team.load(work["model"], agents, **sizes.weights())
    engine = LocalEngine(own, pad_id=chat.pad_id, end_id=chat.end_id if end_id is None else end_id)
    return chat, engine, [Learner(own, a, lr=LEARNING_RATE, micro_tokens=sizes.micro_tokens) for a in agents]


if __name__ == "__main__":
    name, folder = sys.argv[1], Path(sys.argv[2])
    turns = Turns()
    work = json.loads((folder / "work.json").read_text(encoding="utf-8"))
    {"policy": policy, "dpo": dpo, "score": score, "waltz": waltz, "joint": joint}[name](work, folder, turns)
