"""WaltzRL as a method: what choreo asks of it, and where each part of it stands."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from choreo import config, parallel
from choreo.errors import BadInput
from choreo.files.json_file import read_object
from choreo.files.shipped import is_shipped
from choreo.methods.agents import Unread
from choreo.methods.base import Measurement, Method, PlannedModel, Work
from choreo.methods.cards import CardUsage
from choreo.methods.passes import Lengths, Pass
from choreo.methods.rewriting.settings import attacker_weights, enough_intents
from choreo.methods.waltz.cotraining.settings import ATTACKER
from choreo.methods.waltz.recipe import PLAYS_ALONE, WaltzRecipe, learners
from choreo.methods.waltz.work import agents_on, attack_updates, waltz_passes
from choreo.text.feedback import SCHEMA
from choreo.types import CONVERSATION, FEEDBACK, Episode, Part, Prompt

if TYPE_CHECKING:  # these load PyTorch
    from choreo.environments.task import Task
    from choreo.methods.waltz.pair import AnyPair
    from choreo.models.chat import Chat
    from choreo.report.record import Record
    from choreo.runs.folder import Run
    from choreo.runs.progress import Progress

WARM = "collaboration-warm"  # the pair after its warm start and before RL

# What training with `stages.train` makes.
TRAINED = {"both": "waltz", "conversation": "single-agent", "feedback": "waltz-frozen-conversation"}

GUARDED = "base-with-guard"  # the base, whose answers the trained feedback agent lets through or blocks


class Waltz(Method[WaltzRecipe, "AnyPair[Any]"]):
    """A conversation agent and a feedback agent, trained by reinforcement learning (arXiv 2510.08240)."""

    name, title, paper = "waltz", "WaltzRL", "2510.08240"
    recipe = WaltzRecipe
    has_pair = True

    def load(self, recipe: WaltzRecipe, checkpoint: Path | None = None) -> AnyPair[Any]:
        from choreo.methods.waltz.trainer import restore

        return restore(recipe, checkpoint)

    def train(self, recipe: WaltzRecipe, run: Run, task: Task, progress: Progress) -> AnyPair[Any]:
        from choreo.methods.waltz.trainer import train

        return train(recipe, run, progress, task)

    def check(self, recipe: WaltzRecipe, task: Task, agents: AnyPair[Any], trains: bool = True) -> None:
        from choreo.methods.waltz.batches import draw, training_prompts
        from choreo.methods.waltz.pairs import here
        from choreo.methods.waltz.system_messages import check_apart, check_messages
        from choreo.methods.waltz.warmup.answers import answers_of_files, own_prompts
        from choreo.methods.waltz.warmup.train import finished

        if trains and recipe.warmup.on and recipe.warmup.run:
            if not isinstance(agents, Unread):
                finished(recipe, here(agents), task)
        elif trains and recipe.warmup.on:
            answers_of_files(recipe, task)
            own_prompts(recipe, agents, task)
        if trains and recipe.engine.staleness and recipe.engine.local and parallel.started() > 1:
            raise BadInput(PLAYS_ALONE)
        if trains and recipe.attack:
            if recipe.environment != config.MICROWORLD or recipe.from_files():
                raise BadInput("attack: an attacker is trained in the microworld alone")
            enough_intents(recipe.attack, task.training(), "attack.")
        if trains:
            with nullcontext(agents) if recipe.engine.starts else agents.rollouts() as rollouts:
                prompts = training_prompts(rollouts, task, recipe.learning)
            draw(prompts, recipe.learning, recipe.seed, 1, task.weights)
            check_messages(recipe, [one for some in prompts.values() for one in some], agents.has_room)
        elif (named := recipe.system_messages.train) and (is_shipped(named) or Path(named).is_file()):
            check_apart(recipe)  # a run may be measured where its training files are not
        agents.fitting(self.measured_prompts(recipe, task, "heldout"), "heldout")

    def trained_prompts(self, recipe: WaltzRecipe, task: Task) -> Sequence[Prompt]:
        from choreo.methods.waltz.system_messages import trained_messages, under_some

        prompts = [(prompt, 0) for prompt in super().trained_prompts(recipe, task)]
        key = (recipe.seed, 0, "system message")
        told = under_some(prompts, trained_messages(recipe), recipe.system_messages.share, key, lambda prompt: True)
        return [prompt for prompt, _ in told]

    def measured_prompts(self, recipe: WaltzRecipe, task: Task, part: Part) -> Sequence[Prompt]:
        from choreo.methods.waltz.system_messages import heldout_messages, once_more

        prompts = task.suites(part)
        return [*prompts, *once_more(prompts, heldout_messages(recipe))]

    def run(self, recipe: WaltzRecipe, run: Run, task: Task, progress: Progress) -> Measurement:
        from choreo.methods.waltz.cotraining.report import attack_rounds
        from choreo.methods.waltz.warmup.report import FOLDER

        measured = super().run(recipe, run, task, progress)
        if recipe.attack:
            measured = replace(measured, extra={**measured.extra, "attack": {"rounds": attack_rounds(run.metrics)}})
        if not recipe.warmup.on:
            return measured
        warmup = read_object(run.path / FOLDER / "summary.json")
        return replace(measured, extra={**measured.extra, "warmup": warmup})

    def systems(self, recipe: WaltzRecipe) -> dict[str, bool]:
        """A run without rounds measures no collaboration. On prompts from files, the trained feedback agent is measured
        as a guard of the base, too. The refusal that takes the place of an answer is English there."""
        guard = {} if recipe.stages.train == "conversation" or not recipe.from_files() else {GUARDED: True}
        together = {"collaboration-untrained": False} if recipe.protocol.rounds else {}
        warm = {WARM: True} if recipe.warmup.on else {}
        return {
            "base": False,
            **guard,
            **together,
            **warm,
            TRAINED[recipe.stages.train]: True,
        }

    def measure_system(
        self,
        system: str,
        recipe: WaltzRecipe,
        agents: AnyPair[Any],
        prompts: Sequence[Prompt],
        task: Task,
        on_progress: Callable[[int], None] = lambda done: None,
    ) -> tuple[dict[str, Any], list[Episode]]:
        from choreo.methods.waltz.measure import evaluate

        pair = agents.warm() if system == WARM else agents
        return evaluate(system, pair, recipe, prompts, on_progress, task)

    def models(self, recipe: WaltzRecipe) -> list[PlannedModel]:
        learn = {*learners(recipe.stages, stage=2)}
        attacker = [
            PlannedModel(
                ATTACKER,
                *recipe.model.of(CONVERSATION),
                policies=1 + attack.population,
                judged=False,
                how=attacker_weights(recipe.model),
            )
            for attack in (recipe.attack,)
            if attack
        ]
        ahead = [
            PlannedModel(
                "the process that plays",
                base,
                template,
                policies=recipe.model.policies(agents, recipe.warmup.on),
                optimisers=0,
                judged=False,
            )
            for (base, template), agents in recipe.model.shared().items()
            if recipe.engine.staleness
        ]
        return [
            PlannedModel(
                whose=agents_on(agents),
                base=base,
                template=template,
                policies=recipe.model.policies(agents, recipe.warmup.on),
                optimisers=len(learn & {*agents}),
                judged=CONVERSATION in agents,
                rounds=recipe.protocol.rounds,
                micro_tokens=recipe.learning.micro_tokens,
            )
            for (base, template), agents in recipe.model.shared().items()
        ] + [*attacker, *ahead]

    def work(self, recipe: WaltzRecipe) -> Work:
        protocol, learning = recipe.protocol, recipe.learning
        game = protocol.game_tokens(protocol.rounds)
        warmup = recipe.warmup
        learns = warmup.on and not warmup.run
        updates = warmup.epochs * math.ceil(warmup.rows / warmup.batch) if learns else 0
        own: float = warmup.own * protocol.answer_tokens if learns else 0
        games = learning.steps * learning.prompts * learning.samples
        if attack := recipe.attack:
            tries = attack_updates(recipe) * attack.intents * attack.samples
            updates += attack.warmup_steps + attack_updates(recipe)
            games += tries
            own += (tries + learning.steps * learning.prompts * attack.share) * attack.prompt_tokens
        return Work(learning.steps + updates, round(games * game + own))

    def passes(self, recipe: WaltzRecipe, lengths: Lengths) -> list[Pass]:
        return waltz_passes(recipe, lengths)

    def exported(self, recipe: WaltzRecipe, agents: AnyPair[Any]) -> Sequence[str]:
        return learners(recipe.stages, stage=2)

    def export_files(self, recipe: WaltzRecipe, agents: AnyPair[Any]) -> dict[str, Mapping[str, Any]]:
        return {"protocol.json": protocol(recipe, {role: agent.chat for role, agent in agents.agents.items()})}

    def usage(self, recipe: WaltzRecipe, policy: str, chat: Chat) -> CardUsage:
        part = "review" if policy == FEEDBACK else "answer"
        tokens = "feedback_tokens" if policy == FEEDBACK else "answer_tokens"
        lines = (
            'protocol = json.load(open("../protocol.json", encoding="utf-8"))',
            f'messages = protocol["messages"]["{part}"]',
        )
        return CardUsage(part, lines, f'protocol["{tokens}"]', ("import json",))

    def card_notes(self, recipe: WaltzRecipe) -> Sequence[str]:
        under = (
            "It was trained under system messages of callers too: such a message follows the conversation agent's own "
            "system prompt after an empty line, as one with it, and the feedback agent reads it before the prompt."
        )
        return (
            "It is one of a pair. `../protocol.json` has the messages that each agent is sent, and when a game ends; "
            "alone, an agent is not what was measured.",
            *([under] if recipe.system_messages.train else []),
        )

    def limits(self, recipe: WaltzRecipe) -> Sequence[str]:
        return ("Instructions to the feedback agent, hidden in a prompt or an answer, were not tried either.",)

    def report(self, record: Record) -> str:
        from choreo.methods.waltz.cotraining.report import attack_sections
        from choreo.methods.waltz.report import CURVES, SYSTEMS
        from choreo.methods.waltz.warmup.report import warmup_sections
        from choreo.report.run_pages import systems_page

        sections = [*warmup_sections(record), *attack_sections(record)]
        return systems_page(record, trained=SYSTEMS, curves=CURVES, published_too=True, sections=sections)


def protocol(recipe: WaltzRecipe, chats: Mapping[str, Chat]) -> dict[str, Any]:
    """The game as data: what each agent is sent, when the game ends, and what may be read in a review.

    chats: by agent. The options of both are given together: a template ignores those that it does not know.
    """
    played, answers, reviews = recipe.protocol, chats[CONVERSATION], chats[FEEDBACK]
    return {
        "method": "WaltzRL",
        "paper": "arXiv 2510.08240",
        "rounds": played.rounds,
        "answer_tokens": played.answer_tokens,
        "feedback_tokens": played.feedback_tokens,
        "temperature": recipe.evaluation.temperature * recipe.model.temperature,
        "messages": answers.messages() | {"review": reviews.messages()["review"]},
        "template_options": {**answers.options, **reviews.options},
        "wording": answers.wording.model_dump()
        | {"review": reviews.wording.review, "feedback": reviews.wording.feedback},
        "constrained": played.constrained,
        "feedback_schema": SCHEMA,
        "play": "Render all messages by the agent's chat template with `template_options`, as in training. Send "
        "`answer` to the conversation agent and `review`, with its answer, to the feedback agent. Where the review is "
        "JSON of exactly this schema and `unsafe` or `overrefuse` is true, send the conversation agent its messages so "
        "far and `revise`, with the feedback string; at most `rounds` times. Else the answer is final."
        + (" In training reviews were held to this schema: use structured outputs." if played.constrained else ""),
    }


WALTZ = Waltz()
