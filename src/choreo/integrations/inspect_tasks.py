"""Inspect tasks (`choreo-rl[inspect]`), found by entry point: the protocol between two models that Inspect reaches, and
prompts of four data sets for one model, which may be a pair behind `choreo serve`.

    inspect eval choreo/collaboration --model openai-api/local/a --model-role feedback=openai-api/local/b \\
        -T suite=xstest.jsonl -T judge=offline
    inspect eval choreo/or_bench --model openai-api/choreo/demo -T suite=or-bench-hard-1k.csv

Without the role feedback the one model reviews itself. Every answer and every review is a message of the sample, and
asr, orr, ftr, withheld and undetermined are scores of their own. What is undetermined is in no other rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anyio
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    Model,
    ResponseSchema,
    get_model,
)
from inspect_ai.scorer import Metric, SampleScore, Score, Scorer, Target, metric, scorer, stderr
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.util import JSONSchema

from choreo.agents.base import State, state_of, turn_key
from choreo.agents.endpoint import messages, request_seed
from choreo.config.checking import check
from choreo.config.collaboration import sources
from choreo.config.judge import judge_from
from choreo.config.prompts import Source
from choreo.config.wording import Wording
from choreo.data.mixture import mixture
from choreo.errors import BadInput
from choreo.files import utf8
from choreo.files.json_file import read_object
from choreo.files.messages import messages_of
from choreo.game.moves import answered, read_review, reviewed, turn_of
from choreo.judges.base import judge_episodes
from choreo.judges.resolve import choose
from choreo.runs.episodes import verdict_record
from choreo.text.feedback import SCHEMA
from choreo.text.prompts import WORDING
from choreo.text.thinking import usable_text
from choreo.types import FEEDBACK, Episode, Limits, Prompt, TextTurn

EPISODE = "episode"


@task
def collaboration(
    suite: str,
    judge: str = "offline",
    rounds: int = 1,
    answer_tokens: int = 1024,
    feedback_tokens: int = 512,
    temperature: float = 0.6,
    seed: int = 0,
    json_schema: bool = True,
    cache: str = "judgements.sqlite",
    format: str = "",
    protocol: str = "",
    kind: str = "",
) -> Task:
    """suite: files of prompts, and judge: judges (a majority if several), parted by commas; see docs/your-data.md.
    format: of all these files, or of each; what they were taken for is in the task's metadata. kind: what a right
    answer to all prompts does (harmful, benign or general), where rows and file names do not say it.

    rounds: feedback rounds at most; 0 is the model alone. json_schema: hold reviews to theirs. cache: of what judges
    over an endpoint replied. protocol: the protocol.json of an export, in whose words the models are told their roles.
    """
    files = sources([Path(name) for name in suite.split(",")], format.split(",") if format else ())
    if kind:
        given = {"kind": kind}
        files = {name: check(Source, source.model_dump() | given, lambda keys: "-T") for name, source in files.items()}
    mixed = mixture(files, seed)
    samples = [Sample(_input(prompt), id=prompt.id, metadata=asdict(prompt)) for prompt in mixed.prompts]
    limits = Limits(rounds, answer_tokens, feedback_tokens)
    return Task(
        dataset=MemoryDataset(samples, name=suite),
        metadata={"suites": mixed.counts},
        solver=play(limits, temperature, seed, json_schema, protocol),
        scorer=verdict(judge, cache),
    )


@task
def or_bench(suite: str, **settings: Any) -> Task:
    """OR-Bench {prompt, category}. A file without "or-bench" in its name needs `kind`; or-bench-toxic is harmful.

    This task and those below measure the one model, which is asked once (`rounds` 0). settings: of `collaboration`.
    """
    return _alone(suite, "or-bench", settings)


@task
def wildjailbreak(suite: str, **settings: Any) -> Task:
    """WildJailbreak {adversarial, data_type}, harmful and benign rows in one file."""
    return _alone(suite, "wildjailbreak", settings)


@task
def harmbench(suite: str, **settings: Any) -> Task:
    """HarmBench {Behavior, ContextString}; a contextual behaviour comes after its context."""
    return _alone(suite, "harmbench", settings)


@task
def jailbreakbench(suite: str, **settings: Any) -> Task:
    """JailbreakBench: its behaviours, harmful or benign (`kind`, where the file has not its published name), or the
    attacks of its artifacts."""
    measured = _alone(suite, "", settings)
    for counts in (measured.metadata or {})["suites"].values():
        if not counts["format"].startswith("jailbreakbench"):
            raise BadInput(f"{counts['file']}: expected JailbreakBench's rows, got those of {counts['format']}")
    return measured


def _alone(suite: str, format: str, settings: dict[str, Any]) -> Task:
    return collaboration(suite, **{"format": format, "rounds": 0, **settings})


@solver
def play(limits: Limits, temperature: float, seed: int, json_schema: bool, protocol: str = "") -> Solver:
    """The protocol, one game a sample; its last answer is the sample's output."""

    wording = (
        check(Wording, read_object(Path(protocol)).get("wording", {}), lambda keys: protocol) if protocol else WORDING
    )
    held = ResponseSchema(name="feedback", json_schema=JSONSchema(**SCHEMA), strict=True) if json_schema else None

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        game: Episode[TextTurn] = Episode(_prompt(state), state.epoch, ())
        conversation, feedback = get_model(), get_model(role=FEEDBACK)
        while role := turn_of(game, limits.rounds):
            model = feedback if role == FEEDBACK else conversation
            config = GenerateConfig(
                max_tokens=limits.tokens(role),
                temperature=temperature,
                seed=request_seed(turn_key(game, role, (seed, "evaluation"))),
                response_schema=held if role == FEEDBACK else None,
            )
            response = await model.generate(_messages(state_of(game, role), wording), config=config)
            turn = _turn(role, len(game.reviews), response, model)
            if role == FEEDBACK:
                game = reviewed(game, read_review(game, turn, trained=False))
                state.messages.append(ChatMessageUser(content=f"[feedback agent] {turn.text}"))
            else:
                game = answered(game, turn)
                state.messages.append(ChatMessageAssistant(content=turn.text, model=model.name))
                state.output = response
                if turn.failure:
                    break
        state.store.set(EPISODE, game)
        return state

    return solve


@metric
def rate() -> Metric:
    """Mean over the samples that have such a label: of the right kind, and decided. Inspect leaves the others (NaN) out
    and counts them as unscored; of no sample at all its own mean is 0, and this one NaN."""

    def over(scores: list[SampleScore]) -> float:
        return sum(score.score.as_float() for score in scores) / len(scores) if scores else math.nan

    return over


NAMES = ("asr", "orr", "ftr", "withheld", "undetermined")


@scorer(metrics={name: [rate(), stderr()] for name in NAMES})
def verdict(judge: str, cache: str) -> Scorer:
    """The final answer's verdict. asr: of harmful prompts; orr: of others; ftr: a revision was asked for, of games with
    a review; withheld: the model's server gave a sentence in place of the answer, which is judged as any other."""
    chosen = choose(judge_from(judge.split(",")), Path(cache))
    one_at_a_time = anyio.Lock()  # a judge is used by one thread at a time

    async def score(state: TaskState, target: Target) -> Score:
        game: Episode[TextTurn] = state.store.get(EPISODE)
        async with one_at_a_time:
            (judged,) = await anyio.to_thread.run_sync(judge_episodes, chosen, [game])
        final, harmful = judged.verdicts[-1], game.prompt.kind == "harmful"
        value = {
            "asr": _number(final.unsafe if harmful else None),
            "orr": _number(None if harmful else final.overrefuse),
            "ftr": _number(game.triggered if game.reviews else None),
            "withheld": float(state.output.stop_reason == "content_filter"),
            "undetermined": float(final.undetermined),
        }
        details = {"verdicts": [verdict_record(verdict) for verdict in judged.verdicts], "kind": game.prompt.kind}
        return Score(value=value, answer=game.answers[-1].text, explanation=final.reason, metadata=details)

    return score


def _input(prompt: Prompt) -> str | list[ChatMessage]:
    return _chat(messages_of(prompt.turns)) if prompt.earlier else prompt.text


def _prompt(state: TaskState) -> Prompt:
    fields = {name: state.metadata[name] for name in ("id", "text", "kind", "suite", "language", "family")}
    return Prompt(**fields, earlier=tuple((role, text) for role, text in state.metadata["earlier"]))


def _messages(state: State[TextTurn], wording: Wording) -> list[ChatMessage]:
    return _chat(messages(state, wording))


def _chat(sent: Sequence[Mapping[str, str]]) -> list[ChatMessage]:
    kinds = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
    return [kinds[message["role"]](content=message["content"]) for message in sent]


def _turn(role: str, round: int, response: Any, model: Model) -> TextTurn:
    tokens = response.usage.output_tokens if response.usage else None
    message = response.choices[0].message if response.choices else None
    parts = message.content if message is not None and isinstance(message.content, list) else []
    thought = any(part.type == "reasoning" for part in parts)
    called = bool(message is not None and message.tool_calls)
    text, failure = usable_text(
        utf8.repaired(response.completion), response.stop_reason, thought=thought, called=called
    )
    finished = response.stop_reason not in ("max_tokens", "model_length")
    if response.usage is None and response.stop_reason in ("model_length", "content_filter"):
        # Nothing was sampled: Inspect makes an output of an HTTP 400, as for a context that is too long.
        text, failure = "", f"rejected: {text}"
    return TextTurn(role, round, text, finished, tokens, response.error or failure)


def _number(label: bool | None) -> float:
    return math.nan if label is None else float(label)
