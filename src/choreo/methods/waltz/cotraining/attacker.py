"""The attacker that a pair is trained against: a policy of its own on the conversation agent's base.

It has a copy of the base, so that the pair's team, and with it every checkpoint of the pair, knows nothing of it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

from choreo.engine import checkpoint
from choreo.engine.learner import Learner
from choreo.environments.task import Task
from choreo.errors import Interrupted
from choreo.judges.base import Judge
from choreo.methods.one_model import OneModel
from choreo.methods.rewriting import learning
from choreo.methods.rewriting.settings import attacker_weights
from choreo.methods.rewriting.words import FAMILY, rewritten
from choreo.methods.trained_model import TrainedModel
from choreo.methods.waltz.agents import Pair
from choreo.methods.waltz.cotraining.schedule import ATTACKED, attacked, author
from choreo.methods.waltz.cotraining.settings import ATTACKER, CoTraining
from choreo.methods.waltz.figures import figures_of_part
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.runs.progress import Progress
from choreo.types import Episode, Kind, Prompt


class CoAttacker:
    """What it does in a step follows from (recipe, step, weights of the attacker, of past ones and of the pair)."""

    def __init__(self, settings: CoTraining, recipe: WaltzRecipe, pair: Pair, task: Task):
        self.settings, self.recipe, self.pair = settings, recipe, pair
        self.slots = [f"{ATTACKER}-{number}" for number in range(settings.population)]  # of past attackers
        own = recipe.model_copy(update={"model": attacker_weights(recipe.model)})
        model = TrainedModel.load("the attacker", recipe.model.base, [ATTACKER, *self.slots], own)
        self.agents = OneModel(model, ATTACKER, settings.prompt_tokens, recipe.evaluation.temperature)
        self.learner = Learner(model.team, ATTACKER, lr=settings.lr)
        self.training: Mapping[Kind, Sequence[Prompt]] = {
            kind: pair.fitting(some, f"{kind}, training") for kind, some in task.training().items() if kind in ATTACKED
        }
        self._before: dict[str, Any] | None = None  # what it was before the step in hand

    # ---- learning -----------------------------------------------------------------------------------

    def warm_start(self, progress: Progress) -> dict[str, float]:
        """Teaches it to write prompts, before the first step. Returns the figures of the last update.

        Raises Interrupted where the user asks to stop; nothing of it is kept then.
        """
        settings, figures = self.settings, dict[str, float]()
        everything = [prompt for kind, count in settings.counts().items() if count for prompt in self.training[kind]]
        progress.start("warm start of the attacker", settings.warmup_steps)
        for step in range(1, settings.warmup_steps + 1):
            rng = random.Random(f"cotraining/{self.recipe.seed}/warm/{step}")
            split_seed = self.recipe.world.split_seed
            figures = learning.warm_update(settings, self.agents, self.learner, everything, split_seed, step, rng)
            progress.advance(step, {"loss": figures["loss"]})
            if progress.interrupted:
                raise Interrupted("the warm start of the attacker is not kept, and begins anew")
        return {f"{ATTACKER}/warmup_loss": figures["loss"]} if figures else {}

    def round(self, step: int, judge: Judge) -> dict[str, float]:
        """Its updates before the pair's step `step`, against the pair as it is now; none where no round is due.

        Returns their figures, each the mean over the round, by "attacker/NAME". `undo` takes the round back.
        """
        self._before = None
        settings, seed = self.settings, self.recipe.seed
        if not settings.learns_before(step):
            return {}
        self._before = deepcopy(self.state_dict(step - 1))  # an optimiser's state is changed in place
        if self.slots and (past := settings.rounds(step - 1)):
            # What it has become by its rounds so far joins the past attackers, in the place of the oldest.
            team = self.agents.model.team
            team.load_state_dict(self.slots[(past - 1) % len(self.slots)], team.state_dict(ATTACKER))
        found: list[dict[str, float]] = []
        for update in range(settings.attacker_steps):
            drawn = learning.drawn_intents(settings, self.training, random.Random(f"cotraining/{seed}/{step}/{update}"))
            answer = partial(
                self.pair.games,
                limits=self.recipe.protocol.limits,
                key=(seed, step, "attack", update),
                temperature=self.recipe.evaluation.temperature,
            )
            key = (seed, step, "attack", update)
            played = learning.attacked_games(settings, self.agents, drawn, key, answer, judge)
            found.append(learning.attack_update(settings, self.learner, *played))
        return {f"{ATTACKER}/{name}": sum(one[name] for one in found) / len(found) for name in found[0]}

    def undo(self) -> None:
        """Takes back the round of the step in hand, where there was one: the step ends without a trace."""
        if self._before is not None:
            self._load(self._before)
            self._before = None

    # ---- the pair's prompts ------------------------------------------------------------------------

    def rewrite(self, batch: Sequence[tuple[Prompt, int]], step: int) -> list[tuple[Prompt, int]]:
        """The pair's batch with some of its prompts in the words of the attacker, or of a past one. All samples of a
        prompt have the same words. A prompt of which it wrote no try, or one too long, stays as it is."""
        key = (self.recipe.seed, step, "rewrite")
        prompts = list({prompt.id: prompt for prompt, _ in batch}.values())
        chosen = attacked(prompts, self.settings.share, key)
        authors = [ATTACKER, *self.slots[: self._past(step)]]
        words: dict[str, Prompt] = {}
        for name in authors:
            own = [prompt for prompt in chosen if author(authors, prompt, key) == name]
            turns = self.agents.write(own, key, policy=name) if own else []
            for prompt, turn in zip(own, turns, strict=True):
                found = rewritten(prompt, turn.text)
                if found is not None and self.pair.has_room(found):
                    words[prompt.id] = found
        return [(words.get(prompt.id, prompt), sample) for prompt, sample in batch]

    def _past(self, step: int) -> int:
        """How many past attackers there are in the pair's step `step`."""
        return min(len(self.slots), max(0, self.settings.rounds(step) - 1))

    # ---- checkpoints -------------------------------------------------------------------------------

    def state_dict(self, step: int) -> dict[str, Any]:
        """What a resumed run needs to go on exactly after the pair's step `step`."""
        team = self.agents.model.team
        past = [team.state_dict(name) for name in self.slots[: self._past(step)]]
        return {ATTACKER: self.learner.state_dict(), "past": past}

    def load_state_dict(self, where: Any, saved: Mapping[str, Any]) -> None:
        """Takes from the checkpoint at `where` what `state_dict` gave. Raises BadInput where it does not fit."""
        example = {ATTACKER: self.learner.example(), "past": [self.agents.model.team.example(ATTACKER)]}
        checkpoint.check(where, saved, {"attack": example})
        self._load(saved["attack"])

    def _load(self, state: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(state[ATTACKER])
        for name, weights in zip(self.slots, state["past"], strict=False):
            self.agents.model.team.load_state_dict(name, weights)


def attacked_figures(episodes: Sequence[Episode[Any]]) -> dict[str, float]:
    """`figures_of_part` of a step's judged games on an attacker's words, among the harmful and benign games."""
    possible = [game for game in episodes if game.prompt.kind in ATTACKED]
    return figures_of_part("attacked", [game for game in possible if game.prompt.family == FAMILY], possible)
