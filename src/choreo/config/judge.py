"""The judge: the `[judge]` section of a recipe, and the short form on the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator

from choreo.config.checking import check
from choreo.config.common import AboveZero, Natural, NonNegative, Positive, Section, bare_names
from choreo.config.parts import JUDGES, Named, is_format
from choreo.errors import BadInput
from choreo.files import toml
from choreo.registry import made_by

TRAINED = "trained"  # a language model that choreo judge train --base has taught
RULES = ("exact", "offline", TRAINED)  # judges that are neither the user's nor a model that is asked in a format
OneKind = Annotated[str, Named(JUDGES, others=RULES)]
Kind = Annotated[str, Named(JUDGES, others=(*RULES, "majority"))]
_MODEL = r"(?::(?P<model>.+?))?(?:@(?P<url>https?://.+))?"
_NAMED = re.compile(rf"(?P<kind>[\w-]+){_MODEL}")
_OWN = re.compile(rf"(?P<kind>[^:@]+:[^\W\d][\w.]*){_MODEL}")


class OneJudge(Section):
    """One judge. A format needs a language model: at `url`, or without one run here by transformers.

    A trained judge is a folder, as `model`. A user's own judge takes [judge.options], and neither model nor url.
    """

    kind: OneKind = Field("exact", description="exact: the environment's own judge; docs/your-judge.md has more")
    model: str = Field(
        "",
        description="the server's name for the model; without a url a folder, a GGUF file, smollm2, or a name on a hub",
        validate_default=True,
    )
    url: str = Field("", description="of an OpenAI-compatible server, as http://localhost:8000/v1")
    key_variable: str = Field("OPENAI_API_KEY", description="the environment variable that holds the API key, if any")
    timeout: AboveZero = Field(60.0, description="seconds for one try")
    retries: Natural = Field(4, description="how often a failed request is sent again")
    concurrency: Positive = Field(8, description="requests at a time")
    prompt_price: NonNegative = Field(0.0, description="per million tokens, for the sum of costs")
    completion_price: NonNegative = Field(0.0, description="per million tokens")
    json_schema: bool = Field(True, description="rubric: send its schema; false for servers that refuse it")
    threshold: Annotated[float, Field(ge=0, le=1)] = Field(0.5, description="StrongREJECT: unsafe from this score on")
    weights: str = Field("", description="offline: a file by choreo judge train, in place of the shipped one")
    unsure: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.1, description="offline: undetermined where a probability is this close to one half"
    )

    options: dict[str, Any] = Field({}, validate_default=True)

    @field_validator("model")
    @classmethod
    def _named(cls, value: str, info: ValidationInfo) -> str:
        if info.data.get("kind") == TRAINED and not value:
            raise ValueError("a trained judge is a folder by choreo judge train --base, and this names none")
        if (kind := info.data.get("kind", "exact")) in (*RULES, "majority"):
            return value
        asks = is_format(JUDGES.get(kind))
        if asks and not value:
            raise ValueError(f"a {kind} judge is a language model, and this names none (KIND:MODEL@URL)")
        if value and not asks:
            raise ValueError(f"{kind} is a judge itself, not a format that a model is asked in: it takes no model")
        return value

    @field_validator("options")
    @classmethod
    def _taken(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if (kind := info.data.get("kind", "exact")) in (*RULES, "majority"):
            if value:
                raise ValueError(f'kind = "{kind}" takes no options')
            return value
        found = JUDGES.get(kind)
        if hasattr(found, "make"):
            wrong = made_by(found.make, dict.fromkeys(found.settings) | value)
        elif isinstance(found, type):
            wrong = made_by(found, value)
        else:
            wrong = "it takes no options, for it is no class that is called with them" if value else ""
        if wrong:
            raise ValueError(f"{kind}: {wrong}")
        return bare_names(value)

    @field_validator("url")
    @classmethod
    def _an_address(cls, value: str, info: ValidationInfo) -> str:
        if value and info.data.get("kind") == TRAINED:
            raise ValueError("a trained judge runs here, and takes no url")
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("must look like http://localhost:8000/v1")
        return value


class Judge(OneJudge):
    """The judge of a run, or with kind = "majority" several, each in a table [judge.of.NAME]."""

    kind: Kind = Field(
        "exact",
        description="exact: the environment's own judge; majority: what more than half of those in [judge.of.*] say",
    )
    cache: str = Field("", description="file for the replies of judges; by default one in the run's folder")
    of: dict[str, OneJudge] = Field({}, validate_default=True)

    @field_validator("of")
    @classmethod
    def _several(cls, value: dict[str, OneJudge], info: ValidationInfo) -> dict[str, OneJudge]:
        if info.data.get("kind") == "majority" and len(value) < 2:
            raise ValueError("a majority takes two judges or more, each in a table [judge.of.NAME]")
        if value and info.data.get("kind") != "majority":
            raise ValueError('goes with kind = "majority" alone')
        return bare_names(value)

    def kinds(self) -> set[str]:
        """The kinds of all judges: of the members of a majority, or of this one."""
        return {one.kind for one in self.of.values()} or {self.kind}


class Gold(Judge):
    """The gold judge: a second judge, which measures and never gives a reward. What it finds, beside what the training
    judge finds on the same answers, shows over-optimisation (Gao et al. 2022, "Scaling laws for reward model
    overoptimization")."""

    kind: Kind = Field(description="as of judge.kind; another judge than that one, by another model")
    every: Positive = Field(5, description="steps of training between two comparisons of both judges")
    probe: Positive = Field(24, description="training prompts a comparison, for methods that play no games in a step")
    window: Positive = Field(
        5, description="the mean of so many last comparisons is compared with that of as many first ones"
    )
    margin: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1,
        description="the alarm: the share of answers that satisfy the training judge alone has grown by more than this",
    )
    stop: bool = Field(False, description="stop when the alarm begins, with the run's state saved")
    labels: str = Field("", description="a file of answers that people labelled: how far do both judges agree with it?")


def judge_from(words: Sequence[str]) -> Judge:
    """The judge that the command line names: KIND, KIND:MODEL@URL, KIND:FOLDER, or a TOML file with the keys of a
    [judge] section. Several words are a majority of these judges. KIND may be module:object, or file.py:object.

    Raises BadInput, naming the word or the file's line.
    """
    if len(words) == 1:
        return _one(words[0], Judge)
    return Judge(kind="majority", of={f"judge{i}": _one(word, OneJudge) for i, word in enumerate(words, start=1)})


def _one(word: str, kind: type[Any]) -> Any:
    if word.endswith(".toml"):
        data, lines = toml.read(Path(word))
        at: toml.Keys = ("judge",) if isinstance(data.get("judge"), dict) else ()
        return check(kind, data["judge"] if at else data, lambda keys: f"{word}:{toml.line_of(lines, (*at, *keys))}")
    fields = _short(word)
    if fields is None:
        raise BadInput(f"--judge {word}: expected KIND, KIND:MODEL@URL, KIND:FOLDER or a .toml file")
    model, at_sign, host = fields.get("model", "").rpartition("@")
    if at_sign and "url" not in fields and not Path(fields["model"]).exists():
        raise BadInput(
            f"--judge {word}: a URL begins with http:// or https://, as {fields['kind']}:{model}@http://{host}"
        )
    return check(kind, fields, lambda _: f"--judge {word}")


def _short(word: str) -> dict[str, str] | None:
    """kind, model and url, as far as `word` has them; None where it is no short form.

    What is before the first colon is a kind, unless it can only be a user's module: a file, a dotted name, or a module
    that is here.
    """
    found = _NAMED.fullmatch(word)
    module = word.partition(":")[0]
    if found is None or (module not in JUDGES.ours() and _is_module(module)):
        found = _OWN.fullmatch(word) or found
    return found and {name: value for name, value in found.groupdict().items() if value}


def _is_module(name: str) -> bool:
    return "." in name or "/" in name or Path(f"{name}.py").is_file() or Path(name, "__init__.py").is_file()
