"""Recipes: one typed tree per experiment, read from TOML, overridden by `--set a.b=c`.

Imports no torch: a recipe is checked, and a mistake reported, before anything heavy is loaded.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class World(Section):
    """The microworld's data: which reserve pairs and wrapper families are held out, and how many prompts."""

    split_seed: Annotated[int, Field(ge=0)] = Field(0, description="divides the reserve into training and held-out")
    languages: tuple[Literal["en", "es", "de"], ...] = ("en", "es", "de")
    train_prompts: Positive = Field(6000, description="prompts drawn from the training part")
    heldout_prompts: Positive = Field(300, description="prompts per held-out suite")


class Model(Section):
    base: str = Field("micro-llama", description="a shipped base, or a folder in Hugging Face format")
    train: Literal["lora", "full"] = Field("lora", description="adapters on one shared base, or full weights per agent")
    rank: Positive = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0


class Protocol(Section):
    """WaltzRL section 3."""

    rounds: Annotated[int, Field(ge=0, le=8)] = Field(1, description="T_max: feedback rounds at most; 0 plays without feedback")
    answer_tokens: Positive = Field(40, description="at most this many new tokens per answer")
    feedback_tokens: Positive = Field(96, description="at most this many new tokens per feedback")


class Rewards(Section):
    """WaltzRL equations for R_f = α·R_DIR·R_label + λ·R_label + γ·R_format."""

    dir: Literal["published", "signed", "none"] = Field(
        "signed",
        description="published: DIR masked by correct labels; signed: a harmful revision is punished whatever the labels; none: no DIR",
    )
    alpha: Annotated[float, Field(ge=0)] = 0.65
    label: Annotated[float, Field(ge=0)] = Field(0.5, description="λ in stage 1")
    label_stage2: Annotated[float, Field(ge=0)] = Field(0.5, description="λ in stage 2 (published: 0)")
    gamma: Annotated[float, Field(ge=0)] = 0.1
    mask_by_label: bool = Field(True, description="multiply DIR by R_label; false is the paper's 'no label anywhere' ablation")
    label_noise: Fraction = Field(0.0, description="share of training verdicts whose labels are flipped before R_label is paid")


class Stages(Section):
    """Stage 1 trains the feedback agent alone; stage 2 trains both."""

    train: Literal["both", "conversation", "feedback"] = Field(
        "both", description="conversation: single-agent RL (no feedback agent); feedback: conversation agent frozen throughout"
    )
    stage1_max_steps: Annotated[int, Field(ge=0)] = Field(30, description="stage 2 starts at the latest here")
    switch_label_accuracy: Fraction = Field(0.9, description="stage 2 starts once label accuracy and format rate reach these")
    switch_format_rate: Fraction = 0.95


class Learning(Section):
    steps: Positive = 100
    prompts: Positive = Field(32, description="prompts per step, balanced over kinds")
    samples: Positive = Field(2, description="episodes per prompt")
    estimator: Literal["reinforce++", "reinforce++baseline", "grpo", "rloo", "dr-grpo"] = "reinforce++"
    baseline: Literal["none", "separate", "shared"] = Field("none", description="value baseline: none, one per agent, or one shared by both")
    lr: Annotated[float, Field(gt=0)] = 1e-3
    beta: Annotated[float, Field(ge=0)] = Field(0.01, description="KL coefficient")
    kl: Literal["k1-reward", "k2-loss"] = "k1-reward"
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    epochs: Positive = Field(1, description="passes over each batch")
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    micro_tokens: Positive = Field(8192, description="padded tokens per micro-batch; changes speed and memory, never the gradient")
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    mix: dict[Literal["harmful", "benign", "general"], Annotated[float, Field(ge=0)]] = Field(
        default_factory=lambda: {"harmful": 0.4, "benign": 0.4, "general": 0.2}, description="share of each kind in every batch"
    )

    @model_validator(mode="after")
    def _exact_sampling(self) -> Learning:
        if self.temperature != 1.0 or self.top_p != 1.0:
            raise ValueError("temperature and top_p must be 1 in training: truncated sampling biases the importance ratio")
        if sum(self.mix.values()) <= 0:
            raise ValueError("mix must give at least one kind a positive share")
        return self


class Evaluation(Section):
    temperature: Annotated[float, Field(ge=0)] = Field(1.0, description="0 is greedy")
    suites: Literal["heldout", "train"] = "heldout"


class Recipe(Section):
    """One experiment. `choreo train RECIPE` runs it; every field has a default and a meaning."""

    method: Literal["waltz"] = "waltz"
    name: str = "waltz"
    seed: Annotated[int, Field(ge=0)] = 0
    world: World = World()
    model: Model = Model()
    protocol: Protocol = Protocol()
    rewards: Rewards = Rewards()
    stages: Stages = Stages()
    learning: Learning = Learning()
    evaluation: Evaluation = Evaluation()
    checkpoint_every: Positive = Field(10, description="steps between checkpoints")
