"""The game as an environment of verifiers, API version 1 (`choreo-rl[verifiers]`).

    vf-eval choreo-game --model MODEL --client.base-url http://localhost:8000/v1 --env.policy feedback \\
        --env.partner micro-llama --env.taskset.recipe waltz

One task is one prompt, and one episode is one game (WaltzRL, section 3). The environment has two seats, `conversation`
and `feedback`. `policy` says which of them learns. The other seat is a fixed partner: a model on a server
(`--env.feedback.model`, `--env.feedback.client.base-url`), or a model that choreo loads itself (`partner`).

A recipe gives everything else: prompts, limits of the game, judge and rewards. Rewards are those of
`methods.waltz.rewards`: R_c for the conversation agent, the parts of R_f for the feedback agent.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import cached_property
from typing import Any, Literal

import httpx
import verifiers.v1 as vf
from pydantic import Field
from verifiers.v1.dialects.chat import message_to_wire

from choreo import config as recipes
from choreo.agents.base import state_of
from choreo.agents.endpoint import messages, review_format
from choreo.environments.task import Task
from choreo.errors import BadInput
from choreo.files import utf8
from choreo.game.moves import answered, read_review, reviewed, turn_of
from choreo.integrations.loading import partners
from choreo.judges.base import judge_episodes
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.methods.waltz.rewards import Earned, conversation_reward
from choreo.methods.waltz.samples import answer_reward, review_reward
from choreo.text.feedback import labels_right
from choreo.text.thinking import usable_text
from choreo.types import CONVERSATION, FEEDBACK, AnyTurn, Episode, Prompt, TextTurn

Game = Episode[AnyTurn]
Answer = Callable[[Game], Awaitable[AnyTurn]]


class GameTaskData(vf.TaskData):
    """One prompt, and how a turn on it is asked for.

    kind, suite: as in `types.Prompt`. max_tokens: the most new tokens of a turn. response_format: holds a turn to a
    JSON schema, or None.
    """

    kind: str = ""
    suite: str = ""
    max_tokens: int | None = None
    response_format: dict[str, Any] | None = None


class GameState(vf.State):
    """game: the game that a trace belongs to, once it is over. round: of a review, the round it was written in."""

    game: Any = None
    round: int = 0


class GameTask(vf.Task[GameTaskData, GameState]):
    """Rewards need both agents' turns, so `GameEnv.finalize` pays them and not the task."""


class GameTasksetConfig(vf.TasksetConfig):
    recipe: str = "waltz"
    """A shipped recipe of WaltzRL, or a TOML file: prompts, limits, judge and rewards."""
    overrides: list[str] = Field(default_factory=list)
    """Settings in place of the recipe's, as "judge.kind=offline"."""
    part: Literal["train", "heldout"] = "heldout"
    """The prompts that the recipe trains on, or those it measures on."""


class GameTaskset(vf.Taskset[GameTask, GameTasksetConfig]):
    """The prompts of a recipe. Raises BadInput where it is no recipe of WaltzRL."""

    def __init__(self, config: GameTasksetConfig) -> None:
        super().__init__(config)
        recipe = recipes.load(config.recipe, config.overrides)
        if not isinstance(recipe, WaltzRecipe):
            raise BadInput(f"{config.recipe}: is a recipe of {recipe.method}; the game is played by recipes of waltz")
        self.recipe = recipe
        self.recipe_task = Task(recipe)

    @cached_property
    def prompts(self) -> dict[str, Prompt]:
        """By id."""
        if self.config.part == "heldout":
            found = self.recipe_task.suites("heldout")
        else:
            found = [prompt for kind in self.recipe_task.training().values() for prompt in kind]
        return {prompt.id: prompt for prompt in found}

    def load(self) -> Iterator[GameTask]:
        for prompt in self.prompts.values():
            opening = messages(state_of(Episode(prompt, 0, ()), CONVERSATION), self.recipe.protocol.wording)
            told = {"id": prompt.id, "name": prompt.suite, "kind": prompt.kind, "suite": prompt.suite}
            limit = self.recipe.protocol.answer_tokens
            yield GameTask(GameTaskData(prompt=opening, max_tokens=limit, **told), self.config.task)


class GameHarness(vf.Harness[vf.HarnessConfig]):
    """One chat completion for every turn, asked for in this process. It runs no code and offers no tools."""

    APPENDS_SYSTEM_PROMPT = True
    SUPPORTS_RESUME = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self,
        ctx: vf.ModelContext,
        trace: vf.Trace,
        runtime: vf.Runtime,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: GameTaskData,
    ) -> vf.ProgramResult:
        system, prompt = self.resolve_prompt(data)
        asked = [{"role": "system", "content": system}] if system else []
        asked += (
            [{"role": "user", "content": prompt}] if isinstance(prompt, str) else map(message_to_wire, prompt or [])
        )
        body: dict[str, Any] = {"model": ctx.model, "messages": asked}
        body |= {"max_tokens": data.max_tokens} if data.max_tokens else {}
        body |= {"response_format": data.response_format} if data.response_format else {}
        async with httpx.AsyncClient(timeout=None) as client:  # the agent's own timeouts bound a turn
            reply = await client.post(
                f"{endpoint}/chat/completions", json=body, headers={"Authorization": f"Bearer {secret}"}
            )
        return vf.ProgramResult(int(reply.status_code != 200), "", reply.text)


class GameEnvConfig(vf.EnvConfig):
    conversation: vf.AgentConfig = vf.AgentConfig(runtime=vf.SubprocessConfig())
    feedback: vf.AgentConfig = vf.AgentConfig(runtime=vf.SubprocessConfig())
    policy: Literal["conversation", "feedback", "both"] = "both"
    """Who learns. A trace of the other agent is marked as not trainable."""
    partner: str = ""
    """Plays the other agent in this process: a run folder, or a base as `model.base` has it."""
    stage: Literal[1, 2] = 2
    """Which weight R_label has: λ of stage 1 (`rewards.label`) or of stage 2 (`rewards.label_stage2`)."""
    json_schema: bool = False
    """Send the schema of a review with the request (`response_format`), for servers that hold a model to it."""


class GameEnv(vf.Env[GameEnvConfig]):
    """Plays one game for each episode, then judges it and pays both seats.

    The reviews of a policy that learns to review are read strictly, as in training: R_format is earned by exact JSON.
    Those of a fixed partner are read leniently, unless it is a run that choreo trained.
    """

    def __init__(self, config: GameEnvConfig) -> None:
        super().__init__(config)
        if not isinstance(self.taskset, GameTaskset):
            raise TypeError("the environment choreo-game plays its own taskset alone: --env.taskset.id choreo-game")
        if config.partner and config.policy == "both":
            raise ValueError("partner plays the agent that does not learn: set policy to conversation or to feedback")
        self.recipe: WaltzRecipe = self.taskset.recipe
        self.judge = self.taskset.recipe_task.judge
        self.limits = self.recipe.protocol.limits
        self.partners = partners(config.partner, self.recipe) if config.partner else {}
        self._one_at_a_time = asyncio.Lock()  # a judge, and a model in this process, are used by one thread at a time
        self._samples: Counter[str] = Counter()

    def learns(self, role: str) -> bool:
        return self.config.policy in (role, "both")

    async def setup(self, agents: vf.Agents) -> None:
        for role in (CONVERSATION, FEEDBACK):
            getattr(agents, role).trainable = self.learns(role)

    async def run(self, task: GameTask, agents: vf.Agents) -> None:
        prompt = self.taskset.prompts[task.data.id]
        game: Game = Episode(prompt, self._samples[prompt.id], ())
        self._samples[prompt.id] += 1
        traces: list[vf.Trace] = []
        async with self._answering(task, agents, traces) as answer:
            while role := turn_of(game, self.limits.rounds):
                if role == CONVERSATION:
                    game = answered(game, await answer(game))
                    if game.answers[-1].failure:
                        break
                else:
                    turn = await self._review(game, agents, traces)
                    game = reviewed(game, read_review(game, turn, trained=self._reads_strictly()))
        for trace in traces:
            trace.state.game = game

    @asynccontextmanager
    async def _answering(self, task: GameTask, agents: vf.Agents, traces: list[vf.Trace]) -> AsyncIterator[Answer]:
        """The conversation agent for one game: one trace holds all its answers."""
        if self.partners and not self.learns(CONVERSATION):
            yield lambda game: self._partner_turn(CONVERSATION, game)
            return
        async with agents.conversation.interaction(task) as exchange:
            traces.append(exchange.trace)

            async def answer(game: Game) -> AnyTurn:
                # The task's prompt opens the exchange; from then on the last message is what is new.
                words = self._messages(game, CONVERSATION)[-1]["content"] if game.answers else None
                segment = await exchange.turn(words)
                return last_turn(exchange.trace, CONVERSATION, len(game.reviews), ended=segment.terminated)

            yield answer

    async def _review(self, game: Game, agents: vf.Agents, traces: list[vf.Trace]) -> AnyTurn:
        """The feedback agent sees (p, c_t) and no earlier rounds, so each of its reviews is a trace of its own."""
        if self.partners and not self.learns(FEEDBACK):
            return await self._partner_turn(FEEDBACK, game)
        data = GameTaskData(
            prompt=self._messages(game, FEEDBACK),
            id=game.prompt.id,
            name=game.prompt.suite,
            kind=game.prompt.kind,
            suite=game.prompt.suite,
            max_tokens=self.limits.feedback_tokens,
            response_format=review_format() if self.config.json_schema else None,
        )
        trace = await agents.feedback.run(GameTask(data))
        trace.state.round = len(game.reviews)
        traces.append(trace)
        return last_turn(trace, FEEDBACK, len(game.reviews), ended=not trace.ok)

    def _messages(self, game: Game, role: str) -> list[dict[str, str]]:
        return messages(state_of(game, role), self.recipe.protocol.wording)

    async def _partner_turn(self, role: str, game: Game) -> AnyTurn:
        options: dict[str, Any] = {
            "key": (self.recipe.seed, "verifiers"),
            "temperature": self.recipe.evaluation.temperature,
        }
        async with self._one_at_a_time:
            (turn,) = await asyncio.to_thread(self.partners[role].turns, [game], role, self.limits, **options)
        return turn

    def _reads_strictly(self) -> bool:
        return self.learns(FEEDBACK) or bool(self.partners and self.partners[FEEDBACK].trained)

    async def finalize(self, task: GameTask, episode: vf.Episode) -> None:
        """Judges the game, and pays R_c to the conversation agent's trace and R_f to each review's."""
        game: Game = episode.traces[0].state.game
        async with self._one_at_a_time:
            (judged,) = await asyncio.to_thread(judge_episodes, self.judge, [game])
        rewards, stage = self.recipe.rewards, self.config.stage
        for trace in episode.traces:
            trace.record_metrics(game_rates(judged))
            if not trace.ok:
                continue
            if trace.agent.name == CONVERSATION:
                trace.record_metric("first_answer", conversation_reward(judged.verdicts[0]))
                pay(trace, answer_reward(judged, len(judged.answers) - 1, rewards, stage))
            else:
                t = trace.state.round
                key = (self.recipe.seed, "verifiers", judged.prompt.id, judged.sample, t)
                pay(trace, review_reward(judged, t, rewards, stage, key))
                right = labels_right(judged.feedback[t], judged.verdicts[t])
                trace.record_metrics({} if right is None else {"label_accuracy": float(right)})


def pay(trace: vf.Trace, earned: Earned | None) -> None:
    """Records the parts of a reward. Where there is none, as of a review of an answer that the judge could not decide
    on, the trace is no sample, as in training."""
    if earned is None:
        trace.agent.trainable = False
        return
    value, parts = earned
    for name, part in parts.items():
        trace.record_reward(name, part)
    if rest := value - sum(parts.values()):  # the parts of a reward of one's own need not be its sum
        trace.record_reward("rest", rest)


def last_turn(trace: vf.Trace, role: str, round: int, *, ended: bool) -> TextTurn:
    """The last turn of `trace`, or a failed one. ended: the model gave no turn."""
    if ended or not trace.assistant_messages:
        why = trace.errors[-1].message if trace.errors else trace.stop_condition or "no turn"
        return TextTurn(role, round, "", False, None, why)
    message, call = trace.assistant_messages[-1], trace.calls[-1]
    text, failure = usable_text(
        None if message.content is None else utf8.repaired(message.content),
        call.finish_reason or "",
        thought=bool(message.reasoning_content),
        called=bool(message.tool_calls),
    )
    tokens = call.usage.completion_tokens if call.usage else None
    return TextTurn(role, round, text, call.finish_reason != "length", tokens, failure)


def game_rates(game: Game) -> dict[str, float]:
    """The rates of one judged game, each 0 or 1, named as in reports. A rate that the game has no case of is left out.

    asr: a harmful prompt got an unsafe answer. orr: another prompt got an over-refusal. ftr: a revision was asked for.
    """
    final, harmful = game.verdicts[-1], game.prompt.kind == "harmful"
    found: dict[str, bool | None] = {"ftr": game.triggered, "undetermined": final.undetermined}
    found |= {"asr": final.unsafe} if harmful else {"orr": final.overrefuse}
    return {name: float(value) for name, value in found.items() if value is not None}
