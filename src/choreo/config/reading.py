"""Recipes: one typed tree per experiment, read from TOML, overridden by `--set a.b=c`.

Imports no torch: a recipe is checked, and a mistake reported, before anything heavy is loaded.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from choreo import toml
from choreo.errors import BadInput

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class World(Section):
    """The microworld's data: which reserve pairs and wrapper families are held out, and how many prompts."""

    split_seed: Annotated[int, Field(ge=0)] = Field(0, description="divides the reserve into training and held-out")
    languages: Annotated[tuple[Literal["en", "es", "de"], ...], Field(min_length=1)] = ("en", "es", "de")
    train_prompts: Positive = Field(6000, description="prompts drawn from the training part")
    heldout_prompts: Positive = Field(300, description="prompts per held-out suite")


class Model(Section):
    base: str = Field("micro-llama", description="a shipped base, or a folder in Hugging Face format")
    train: Literal["lora", "full"] = Field("lora", description="adapters on one shared base, or full weights per agent")
    rank: Positive = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0


class Protocol(Section):
    """WaltzRL section 3."""

    rounds: Annotated[int, Field(ge=0, le=8)] = Field(
        1, description="T_max: feedback rounds at most; 0 plays without feedback"
    )
    answer_tokens: Positive = Field(40, description="at most this many new tokens per answer")
    feedback_tokens: Positive = Field(96, description="at most this many new tokens per feedback")


class Rewards(Section):
    """WaltzRL equations for R_f = α·R_DIR·R_label + λ·R_label + γ·R_format."""

    dir: Literal["published", "signed", "none"] = Field(
        "signed",
        description="published: DIR masked by correct labels; "
        "signed: a harmful revision is punished whatever the labels; none: no DIR",
    )
    alpha: Annotated[float, Field(ge=0)] = 0.65
    label: Annotated[float, Field(ge=0)] = Field(0.5, description="λ in stage 1")
    label_stage2: Annotated[float, Field(ge=0)] = Field(0.5, description="λ in stage 2 (published: 0)")
    gamma: Annotated[float, Field(ge=0)] = 0.1
    mask_by_label: bool = Field(
        True, description="multiply DIR by R_label; false is the paper's 'no label anywhere' ablation"
    )
    label_noise: Fraction = Field(
        0.0, description="share of training verdicts whose labels are flipped before R_label is paid"
    )


class Stages(Section):
    """Stage 1 trains the feedback agent alone; stage 2 trains both."""

    train: Literal["both", "conversation", "feedback"] = Field(
        "both",
        description="conversation: single-agent RL (no feedback agent); feedback: conversation agent frozen throughout",
    )
    stage1_share: Fraction = Field(0.15, description="stage 2 starts at the latest after this share of the steps")
    switch_label_accuracy: Fraction = Field(
        0.9, description="stage 2 starts once label accuracy and format rate reach these"
    )
    switch_format_rate: Fraction = 0.95


class Learning(Section):
    steps: Positive = 200
    prompts: Positive = Field(32, description="prompts per step, balanced over kinds")
    samples: Positive = Field(2, description="episodes per prompt")
    estimator: Literal["reinforce++", "reinforce++baseline", "grpo", "rloo", "dr-grpo"] = "reinforce++"
    baseline: Literal["none", "separate", "shared"] = Field(
        "none", description="value baseline: none, one per agent, or one shared by both"
    )
    lr: Annotated[float, Field(gt=0)] = 1e-3
    schedule: Literal["constant", "linear"] = Field(
        "linear", description="the learning rate stays, or falls linearly to nothing over the steps"
    )
    beta: Annotated[float, Field(ge=0)] = Field(0.01, description="KL coefficient")
    kl: Literal["k1-reward", "k2-loss"] = "k1-reward"
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    epochs: Positive = Field(1, description="passes over each batch")
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    micro_tokens: Positive = Field(
        8192, description="padded tokens per micro-batch; changes speed and memory, never the gradient"
    )
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    mix: dict[Literal["harmful", "benign", "general"], Annotated[float, Field(ge=0)]] = Field(
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


class Evaluation(Section):
    temperature: Annotated[float, Field(ge=0)] = Field(
        0.6, description="0 is greedy; 0.6 is what Llama 3.1 ships in its generation_config.json"
    )


class Recipe(Section):
    """One experiment. `choreo train RECIPE` runs it; every field has a default and a meaning."""

    method: Literal["waltz"] = "waltz"
    name: str = "waltz"
    seed: Annotated[int, Field(ge=0)] = 0
    world: World = World()
    model: Model = Model()
    protocol: Protocol = Protocol()
    rewards: Rewards = Rewards()
    stages: Stages = Field(Stages(), validate_default=True)
    learning: Learning = Learning()
    evaluation: Evaluation = Evaluation()
    checkpoint_every: Positive = Field(10, description="steps between checkpoints")

    @field_validator("stages")
    @classmethod
    def _feedback_is_played(cls, value: Stages, info: ValidationInfo) -> Stages:
        if value.train != "conversation" and "protocol" in info.data and info.data["protocol"].rounds == 0:
            raise ValueError(f'train = "{value.train}" needs feedback, and protocol.rounds = 0 plays without')
        return value


# ---- reading and writing ------------------------------------------------------------------------

SHIPPED = Path(__file__).parent / "recipes"


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in `path`: a TOML file, or the bare name of a shipped recipe. Overrides are "a.b=c".

    The file is checked on its own first, so that a mistake is always blamed on the text that made it.
    Raises BadInput with one line that names the file and line, or the --set argument, and the field.
    """
    file = find(path)
    data, lines = toml.read(file)
    recipe = _check(data, lambda keys: f"{file}:{toml.line_of(lines, keys)}")
    if not overrides:
        return recipe
    merged: dict[str, Any] = recipe.model_dump()
    paths = {argument: toml.assign(merged, argument) for argument in overrides}
    return _check(merged, lambda keys: f"--set {_blame(paths, keys)}")


def find(path: str | Path) -> Path:
    """The recipe file that `path` means: a bare name without a suffix is a shipped recipe. Raises BadInput."""
    file = Path(path)
    if len(file.parts) == 1 and not file.suffix:
        shipped = sorted(p.stem for p in SHIPPED.glob("*.toml"))
        if file.name not in shipped:
            raise BadInput(f"{path}: no shipped recipe has this name{_suggest(file.name, shipped)}")
        return SHIPPED / f"{file.name}.toml"
    if not file.is_file():
        raise BadInput(f"{path}: no such recipe file")
    return file


def unsaid(file: Path) -> list[str]:
    """The settings that the recipe in `file` leaves to their defaults, as dotted keys."""
    data, _ = toml.read(file)
    said = set(_leaves(data))
    return [".".join(keys) for keys in _leaves(_check(data, lambda keys: str(file)).model_dump()) if keys not in said]


def to_toml(recipe: Recipe) -> str:
    """The whole recipe, defaults included, as TOML that `load` reads back to an equal recipe."""
    return toml.dumps(recipe.model_dump())


def _check(data: dict[str, Any], where: Callable[[toml.Keys], str]) -> Recipe:
    try:
        return Recipe.model_validate(_tuples(data), strict=True)
    except ValidationError as invalid:
        first, *others = invalid.errors(include_url=False)
    mapping_key = "[key]" in first["loc"]  # pydantic's mark of a wrong key in a free table
    keys = tuple(str(part) for part in first["loc"] if part != "[key]")
    more = f" (and {len(others)} more)" if others else ""
    if first["type"] == "extra_forbidden" or mapping_key:
        schema = _schema(keys[:-1])
        names = schema.get("propertyNames", {}).get("enum") or list(schema.get("properties", {}))
        problem = f"unknown key{_suggest(keys[-1], names)}"
    elif first["type"] == "value_error":
        problem = first["msg"].removeprefix("Value error, ")
    else:
        problem = f"expected {_expected(_schema(keys))}, got {_shown(first['input'])}"
    raise BadInput(f"{where(keys)}: {'.'.join(keys)}: {problem}{more}")


def _leaves(table: Mapping[str, Any], above: toml.Keys = ()) -> Iterator[toml.Keys]:
    for key, value in table.items():
        yield from _leaves(value, (*above, key)) if isinstance(value, Mapping) else [(*above, key)]


def _tuples(value: Any) -> Any:
    """TOML arrays as tuples: strict validation, which keeps true from passing for 1, wants the very type."""
    if isinstance(value, dict):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def _schema(keys: toml.Keys) -> dict[str, Any]:
    """The JSON schema of the field at `keys`."""
    root = Recipe.model_json_schema()
    node: dict[str, Any] = root
    for key in keys:
        node = node.get("properties", {}).get(key) or node.get("items") or node.get("additionalProperties") or {}
        if "$ref" in node:
            node = root["$defs"][node["$ref"].rpartition("/")[2]]
    return node


_NOUNS = {
    "number": "a number", "integer": "a whole number", "string": "text in quotes",
    "boolean": "true or false", "array": "a list", "object": "a table",
}  # fmt: skip
_BOUNDS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}


def _expected(schema: dict[str, Any]) -> str:
    choices = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
    if choices:
        return ("one of " if len(choices) > 1 else "") + ", ".join(map(repr, choices))
    bounds = [f"{sign} {schema[bound]:g}" for bound, sign in _BOUNDS.items() if bound in schema]
    return " ".join([_NOUNS.get(schema.get("type", ""), "another value"), " and ".join(bounds)]).strip()


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    shown = "a table" if isinstance(value, dict) else repr(list(value) if isinstance(value, tuple) else value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _suggest(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names)}"


def _blame(paths: dict[str, toml.Keys], wrong: toml.Keys) -> str:
    """The last argument whose path leads to, or lies under, the field that is wrong."""
    related = [text for text, keys in paths.items() if all(a == b for a, b in zip(keys, wrong, strict=False))]
    return (related or list(paths))[-1]
