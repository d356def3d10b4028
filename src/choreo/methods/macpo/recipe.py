"""The recipe of MACPO (arXiv 2410.07672). Its baselines and ablations are other values of the same settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from choreo.config.common import (
    MICROWORLD,
    AboveZero,
    Fraction,
    Natural,
    NonNegative,
    Positive,
    Section,
    Weights,
    World,
)
from choreo.config.parts import FormatName
from choreo.config.recipe import Recipe
from choreo.environments.microworld.habits import READ_FIRST


class MacpoWorld(World):
    """The microworld as every recipe has it, but answers begin with a reading; and there are fewer held-out prompts,
    for every agent is measured after every round."""

    heldout_prompts: Positive = Field(150, description="prompts per held-out suite")
    reading: bool = Field(
        True,
        description="an answer is one line that says what the prompt asks for, and then the answer proper, which is "
        "judged; labels are of this form",
    )


class AgentSettings(Weights):
    """Every agent has a base of its own, with a positive and a negative policy on it."""

    teachers: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        ("weak-llama", "weak-qwen", "weak-neox"),
        description="bases of the weak teachers, one each: shipped ones, smollm2, folders, GGUF files, or names on the "
        "hub (owner/name)",
    )
    student: str = Field("micro-llama", description="the strong student's base")
    student_template: str = Field(
        "", description="a file with a chat template for the student alone; none: template, which is for all agents"
    )
    rank: Positive = Field(32, description="of LoRA; 8 is too few for bases as narrow as the shipped ones")
    alpha: AboveZero = 16.0

    def template_of(self, agent: str) -> str:
        """The chat template that `agent` is to use: a file, or the name of one that its tokenizer has; "" is its
        tokenizer's own."""
        return (agent == "student" and self.student_template) or self.template


class DataSettings(Section):
    """The training prompts: some with human labels, for the teachers, the others without, for the student."""

    labels: Positive = Field(1500, description="prompts with labels, for the teachers")
    prompts: Positive = Field(3000, description="prompts without labels, for the student and every round")
    noise: Fraction = Field(0.0, description="share of the labels whose two answers are exchanged")
    kinds: Annotated[tuple[Literal["harmful", "benign", "general"], ...], Field(min_length=1)] = Field(
        ("harmful", "benign", "general"), description="kinds of the microworld's prompts, as many of each"
    )
    file: str = Field(
        "", description="pairs of your own in a published format (choreo data check), in place of the microworld's"
    )
    format: FormatName = Field("", description="of that file; by default known by the fields of its rows")
    words: Natural = Field(
        0, description="pairs of that file with more words in the prompt, or in either answer, are left out; 0: none is"
    )

    @field_validator("format", "words")
    @classmethod
    def _of_a_file(cls, value: str | int, info: ValidationInfo) -> str | int:
        if value and not info.data.get("file"):
            raise ValueError("is about a file of pairs, and data.file names none")
        return value


class Tuning(Section):
    """The supervised start of every agent."""

    labels: Literal["weak", "consensus", "human"] = Field(
        "weak",
        description="what the student starts on. weak: the first teacher's answers; consensus: of all teachers' "
        "answers to a prompt the one that has the most words in common with the others; human: human labels (the "
        "strong ceiling)",
    )
    epochs: Positive = Field(1, description="of positive agents")
    student_epochs: Natural = Field(0, description="of the positive student; 0: as many as of other positive agents")
    negative_epochs: Positive = Field(3, description="of negative agents")
    confident: Fraction = Field(
        0.0, description="weight that the student's own confident answers reach in its loss (Burns et al. 2023: 0.5)"
    )
    lr: AboveZero = 1e-3
    batch: Positive = 16

    @field_validator("confident")
    @classmethod
    def _rises_by_epoch(cls, value: float, info: ValidationInfo) -> float:
        if value and (info.data.get("student_epochs") or info.data.get("epochs")) == 1:
            raise ValueError("its weight rises from epoch to epoch, so it takes tuning.student_epochs of 2 or more")
        return value

    def epochs_of(self, agent: str, side: Literal["+", "-"]) -> int:
        """Passes over its samples of the start of one policy."""
        if side == "-":
            return self.negative_epochs
        return (agent == "student" and self.student_epochs) or self.epochs


class Rounds(Section):
    count: Natural = Field(3, description="rounds; 0 ends with the supervised start")
    positives: Literal["mutual", "self", "weak", "judged"] = Field(
        "mutual",
        description="mutual: each other's answers; self: one's own; weak: the teacher's labels (SPIN); "
        "judged: the best of one's own by one's own review (self-rewarding)",
    )
    negatives: Literal["twin", "prompt", "decoding", "self", "judged", "none"] = Field(
        "twin",
        description="twin: the negative agent's; prompt: one's own answer after a feedback that asks for its opposite; "
        "decoding: of several drafts the one with the lowest log π − log π_base; self: one's own; "
        "judged: the worst of one's own by one's own review; none: positives alone",
    )
    renew: bool = Field(False, description="write the negatives anew in every round, not once before the first")
    candidates: Annotated[int, Field(ge=2)] = Field(4, description="drafts per prompt, where drafts are compared")
    keep: Positive = Field(1, description="how many of the teachers' answers to a prompt the student takes")
    refusals: Literal["any", "as-labelled"] = Field(
        "any",
        description="how many positives may refuse. any: as many as do (published); as-labelled: the share that does "
        "among the chosen labels, what is in excess left out, the most doubtful first",
    )
    rehearse: Natural = Field(
        0, description="how often a teacher's own labelled pairs stand among its pairs of a round (0: published)"
    )
    teachers_learn: bool = Field(True, description="false freezes the teachers after their start")
    adopt: Literal["after", "before"] = Field(
        "after", description="teachers take the student's answers from after, or before, its update in the round"
    )
    reference: Literal["base", "sft", "previous-round"] = Field("base", description="π_ref of DPO")
    beta: AboveZero = Field(0.1, description="of DPO. Its margins are sums over tokens")
    sft: NonNegative = Field(5.0, description="weight of the likelihood of the positive (0.2 in the paper)")
    sft_mean: Literal["tokens", "answers"] = Field(
        "tokens",
        description="what the likelihood is a mean over. tokens: all of them alike; answers: each answer's own mean "
        "(published), by which a token of a short refusal weighs more than one of a long answer",
    )
    epochs: Positive = 1
    lr: AboveZero = 1e-3
    batch: Positive = 16


class Writing(Section):
    answer_tokens: Positive = Field(56, description="at most this many new tokens per answer")
    temperature: NonNegative = Field(0.6, description="of the answers that agents learn from")
    negative_temperature: NonNegative = Field(
        1.0,
        description='of what negative agents write (rounds.negatives = "twin"). At 1 they are wrong as often as they '
        "have learnt to be; below, an answer that is wrong in one of many ways loses against the one that is right",
    )
    system: str = Field(
        "",
        description="the system prompt of every agent; none: the one under which the microworld's bases read first, "
        "where world.reading holds, else the default one",
    )


class Watch(Section):
    """When the collapse monitor warns (arXiv 2410.07672 reports no over-refusal at all)."""

    refusals: Fraction = Field(0.1, description="refusals of harmless prompts may rise this far above the start")
    length: Annotated[float, Field(gt=1)] = Field(2.0, description="mean length may change by this factor")
    stop: bool = Field(False, description="end the run at the first warning, after the round")


class MacpoRecipe(Recipe):
    """Weak teachers and a strong student that improve each other by contrastive preference optimisation."""

    method: Literal["macpo"] = "macpo"
    name: str = "macpo"
    world: MacpoWorld = MacpoWorld()
    agents: AgentSettings = AgentSettings()
    data: DataSettings = DataSettings()
    tuning: Tuning = Tuning()
    rounds: Rounds = Field(Rounds(), validate_default=True)
    writing: Writing = Writing()
    watch: Watch = Watch()
    ceiling: bool = Field(True, description="train the strong ceiling beside it, which PGR is measured against")
    micro_tokens: Positive = Field(8192, description="padded tokens per micro-batch; changes no gradient")

    def bases(self) -> tuple[str, ...]:
        return (self.agents.student, *self.agents.teachers)

    def weights(self) -> Weights:
        return self.agents

    @property
    def system(self) -> str:
        """The system prompt of every agent; "" is the default one."""
        reads = self.world.reading and self.environment == MICROWORLD and not self.data.file
        return self.writing.system or (READ_FIRST if reads else "")

    @field_validator("tuning")
    @classmethod
    def _votes(cls, value: Tuning, info: ValidationInfo) -> Tuning:
        if value.labels == "consensus" and "agents" in info.data and len(info.data["agents"].teachers) < 3:
            raise ValueError('labels = "consensus" takes three teachers or more')
        return value

    @field_validator("rounds")
    @classmethod
    def _a_ceiling_has_no_rounds(cls, value: Rounds, info: ValidationInfo) -> Rounds:
        if value.count and "tuning" in info.data and info.data["tuning"].labels == "human":
            raise ValueError('tuning.labels = "human" is the strong ceiling, which is done with rounds.count = 0')
        return value
