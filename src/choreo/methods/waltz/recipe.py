"""The recipe of WaltzRL (arXiv 2510.08240)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from choreo.config.common import AboveZero, Fraction, Natural, NonNegative, Positive, Section, Weights
from choreo.config.parts import EstimatorName, RewardName
from choreo.config.prompts import Prompts, SystemMessages
from choreo.config.recipe import Recipe
from choreo.config.wording import Wording
from choreo.methods.waltz.cotraining.settings import CoTraining
from choreo.methods.waltz.elsewhere import complaint
from choreo.methods.waltz.warmup.settings import Warmup
from choreo.types import AGENTS, CONVERSATION, FEEDBACK, Limits

PLAYS_ALONE = 'engine.staleness = 1: in several processes it takes servers that sample (rollouts = "vllm")'


class Model(Weights):
    base: str = Field(
        "micro-llama",
        description="a shipped base, smollm2, a folder in Hugging Face format, a GGUF file, or a name on the hub "
        "(owner/name)",
    )
    feedback_base: str = Field("", description="the feedback agent's base, if it is another one; none: both share one")
    feedback_template: str = Field("", description="a file with a chat template for feedback_base")
    one_policy: bool = Field(
        False, description="both agents are one policy: a single model reviews its own answers, and learns both roles"
    )

    def of(self, agent: str) -> tuple[str, str]:
        """The base of `agent`, and the file with its chat template ("" for its own)."""
        if agent == FEEDBACK and self.feedback_base:
            return self.feedback_base, self.feedback_template
        return self.base, self.template

    def shared(self) -> dict[tuple[str, str], list[str]]:
        """What is loaded, as `of` has it, each with the agents on it."""
        agents: dict[tuple[str, str], list[str]] = {}
        for agent in AGENTS:
            agents.setdefault(self.of(agent), []).append(agent)
        return agents

    @field_validator("feedback_template")
    @classmethod
    def _of_a_base(cls, value: str, info: ValidationInfo) -> str:
        if value and not info.data.get("feedback_base"):
            raise ValueError("goes with feedback_base alone; where both agents are on one base, template is for both")
        return value

    @field_validator("one_policy")
    @classmethod
    def _of_one_base(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("feedback_base"):
            raise ValueError("one policy has one base, and feedback_base names a second one")
        return value

    def policies(self, agents: Sequence[str], warm: bool) -> int:
        """How many policies the agents on one base have. warm: whether the start of the feedback agent is kept, too."""
        return 1 if self.one_policy else len(agents) + (warm and FEEDBACK in agents)


class Protocol(Section):
    """WaltzRL section 3."""

    rounds: Annotated[int, Field(ge=0, le=8)] = Field(
        1, description="T_max: feedback rounds at most; 0 plays without feedback"
    )
    answer_tokens: Positive = Field(40, description="at most this many new tokens per answer")
    feedback_tokens: Positive = Field(96, description="at most this many new tokens per feedback")
    constrained: bool = Field(
        False,
        description="hold reviews to the grammar of their JSON, so that each parses; what is forced is not learnt",
    )
    reasoning_tokens: Natural = Field(
        1024, description="of a constrained review at most this many tokens for its reasoning; 0 leaves it empty"
    )
    wording: Wording = Wording()

    @property
    def limits(self) -> Limits:
        return Limits(self.rounds, self.answer_tokens, self.feedback_tokens)

    def game_tokens(self, rounds: int) -> int:
        """The most new tokens in a game of `rounds` feedback rounds."""
        return self.answer_tokens + rounds * (self.answer_tokens + self.feedback_tokens)


class Rewards(Section):
    """WaltzRL equations for R_f = α·R_DIR·R_label + λ·R_label + γ·R_format (`choreo.methods.waltz.rewards`)."""

    dir: Literal["published", "signed", "none"] = Field(
        "published",
        description="published: DIR masked by correct labels; "
        "signed: a harmful revision is punished whatever the labels; none: no DIR",
    )
    alpha: NonNegative = 0.65
    label: NonNegative = Field(0.5, description="λ in stage 1")
    label_stage2: NonNegative = Field(0.5, description="λ in stage 2 (published: 0)")
    gamma: NonNegative = 0.1
    mask_by_label: bool = Field(
        True, description="multiply DIR by R_label; false is the paper's 'no label anywhere' ablation"
    )
    label_noise: Fraction = Field(
        0.0, description="share of training verdicts of which one label is flipped before R_label is paid"
    )
    undetermined: Literal["", "zero", "drop"] = Field(
        "",
        description="an answer that says something, but the judge could not decide on it. zero: it earns 0; drop: "
        "nothing is learnt from it; none: zero where the judge is exact, drop where it can fail",
    )
    conversation: RewardName = Field("", description="a function in place of R_c, as mine.py:reward; none: R_c")
    feedback: RewardName = Field("", description="a function in place of R_f; none: R_f")


class Stages(Section):
    """Stage 1 trains the feedback agent alone; stage 2 trains both."""

    train: Literal["both", "conversation", "feedback"] = Field(
        "both",
        description="conversation: single-agent RL (no feedback agent); feedback: conversation agent frozen throughout",
    )
    stage1_share: Fraction = Field(0.2, description="stage 2 starts at the latest after this share of the steps")
    switch_label_accuracy: Fraction = Field(
        0.9, description="stage 2 starts once label accuracy and format rate reach these"
    )
    switch_format_rate: Fraction = 0.95


def learners(stages: Stages, stage: int) -> tuple[str, ...]:
    """The agents that learn: in stage 1 the feedback agent, in stage 2 both, unless the recipe trains only one."""
    if stages.train != "both":
        return (stages.train,)
    return (FEEDBACK,) if stage == 1 else (CONVERSATION, FEEDBACK)


class Learning(Section):
    steps: Positive = 400
    prompts: Positive = Field(32, description="prompts per step, balanced over kinds")
    samples: Positive = Field(2, description="episodes per prompt")
    estimator: EstimatorName = Field("reinforce++", description="how advantages are estimated")
    baseline: Literal["none", "separate", "shared"] = Field(
        "none", description="value baseline: none, one per agent, or one shared by both"
    )
    lr: AboveZero = 1e-3
    feedback_lr: NonNegative = Field(
        0.0, description="of the feedback agent, where it is another one: smaller after a warm start; 0 is lr"
    )
    schedule: Literal["constant", "linear"] = Field(
        "linear", description="the learning rate stays, or falls linearly to nothing over the steps"
    )
    beta: NonNegative = Field(0.01, description="KL coefficient; at 0 the reference is not scored, and no KL is shown")
    kl: Literal["k1-reward", "k2-loss"] = "k1-reward"
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    epochs: Positive = Field(1, description="passes over each batch")
    max_grad_norm: AboveZero = 1.0
    micro_tokens: Positive = Field(
        8192, description="padded tokens per micro-batch; changes speed and memory, never the gradient"
    )
    temperature: AboveZero = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    mix: dict[Literal["harmful", "benign", "general"], NonNegative] = Field(
        {"harmful": 0.4, "benign": 0.4, "general": 0.2},
        description="share of each kind in every batch",
    )

    @field_validator("temperature", "top_p")
    @classmethod
    def _exact_sampling(cls, value: float) -> float:
        if value != 1.0:
            raise ValueError("must be 1 in training: truncated or tempered sampling biases the importance ratio")
        return value

    @field_validator("mix")
    @classmethod
    def _some_kind(cls, value: dict[str, float]) -> dict[str, float]:
        if sum(value.values()) <= 0:
            raise ValueError("must give at least one kind a positive share")
        return value


class WaltzRecipe(Recipe):
    """A conversation and a feedback agent, trained by reinforcement learning."""

    samples_remotely: ClassVar[bool] = True
    learns_remotely: ClassVar[bool] = True

    method: Literal["waltz"] = "waltz"
    name: str = "waltz"
    prompts: Prompts = Prompts()
    system_messages: SystemMessages = SystemMessages()
    model: Model = Model()
    protocol: Protocol = Protocol()
    rewards: Rewards = Field(Rewards(), validate_default=True)
    stages: Stages = Field(Stages(), validate_default=True)
    warmup: Warmup = Warmup()
    learning: Learning = Field(Learning(), validate_default=True)
    attack: CoTraining | None = Field(None, description="an attacker that learns beside the pair; microworld alone")
    checkpoint_every: Positive = Field(10, description="steps between checkpoints")

    def bases(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(base for base, _ in self.model.shared()))

    def weights(self) -> Weights:
        return self.model

    @field_validator("model", "protocol", "warmup", "learning", "attack")
    @classmethod
    def _there_where_the_weights_are(cls, value: Any, info: ValidationInfo) -> Any:
        if "engine" in info.data and info.data["engine"].remote and (wrong := complaint(str(info.field_name), value)):
            raise ValueError(wrong)
        return value

    @field_validator("model")
    @classmethod
    def _servable(cls, value: Model, info: ValidationInfo) -> Model:
        if "engine" not in info.data or info.data["engine"].local:
            return value
        if value.train == "full":
            raise ValueError('train = "full": a vLLM server takes adapters, not whole models (engine.rollouts)')
        if len(value.shared()) > 1:
            raise ValueError("feedback_base: a vLLM server has one base, and the agents are on two (engine.rollouts)")
        return value

    @field_validator("protocol")
    @classmethod
    def _free(cls, value: Protocol, info: ValidationInfo) -> Protocol:
        if value.constrained and "engine" in info.data and not info.data["engine"].local:
            raise ValueError(
                "constrained: a vLLM server does not give the log-probabilities of choreo's grammar (engine.rollouts)"
            )
        return value

    @field_validator("rewards")
    @classmethod
    def _undetermined_by_judge(cls, value: Rewards, info: ValidationInfo) -> Rewards:
        if value.undetermined or "judge" not in info.data:
            return value
        exact = info.data["judge"].kinds() == {"exact"}
        return value.model_copy(update={"undetermined": "zero" if exact else "drop"})

    @field_validator("learning")
    @classmethod
    def _states_are_comparable(cls, value: Learning, info: ValidationInfo) -> Learning:
        if value.baseline == "shared" and "model" in info.data and len(info.data["model"].shared()) > 1:
            raise ValueError(
                'baseline = "shared" reads the states of both agents as one base has them, and there are '
                'two; "separate" does not'
            )
        return value

    @field_validator("attack")
    @classmethod
    def _has_room(cls, value: CoTraining | None, info: ValidationInfo) -> CoTraining | None:
        """A prompt that has room for a game (`Pair.fitting`) has room for its rewriting, if that is no longer."""
        if value and "engine" in info.data and info.data["engine"].staleness:
            raise ValueError("plays against the pair as it is, and engine.staleness = 1 against the one before")
        if value and (protocol := info.data.get("protocol")):
            most = protocol.game_tokens(max(1, protocol.rounds))
            if value.prompt_tokens > most:
                raise ValueError(f"prompt_tokens = {value.prompt_tokens}: there is room for {most}, those of a game")
        return value

    @field_validator("warmup")
    @classmethod
    def _of_an_agent_that_learns(cls, value: Warmup, info: ValidationInfo) -> Warmup:
        if value.on and "stages" in info.data and info.data["stages"].train == "conversation":
            raise ValueError('stages.train = "conversation" plays without a feedback agent; rows = 0 leaves it out')
        if value.on and "model" in info.data and info.data["model"].one_policy:
            raise ValueError("trains the feedback agent alone, which model.one_policy cannot; rows = 0 leaves it out")
        return value

    @field_validator("stages")
    @classmethod
    def _feedback_is_played(cls, value: Stages, info: ValidationInfo) -> Stages:
        if value.train != "conversation" and "protocol" in info.data and info.data["protocol"].rounds == 0:
            raise ValueError(f'train = "{value.train}" needs feedback, and protocol.rounds = 0 plays without')
        if value.train != "both" and "model" in info.data and info.data["model"].one_policy:
            raise ValueError(f'train = "{value.train}" trains one agent alone, which model.one_policy cannot')
        return value


def stage1_steps(recipe: WaltzRecipe) -> int:
    """How many steps stage 1 takes at most."""
    return round(recipe.stages.stage1_share * recipe.learning.steps)
