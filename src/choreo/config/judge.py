"""Who judges: the `[judge]` section of a recipe, and the short form of the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from choreo.config.checking import check
from choreo.config.common import Positive, Section, bare_names
from choreo.errors import BadInput
from choreo.files import toml

OneKind = Literal["exact", "offline", "rubric", "wildguard", "llama-guard-3", "llama-guard-4", "strongreject"]
Kind = Literal["exact", "offline", "rubric", "wildguard", "llama-guard-3", "llama-guard-4", "strongreject", "majority"]
NonNegative = Annotated[float, Field(ge=0)]
_SHORT = re.compile(r"(?P<kind>[\w-]+)(?::(?P<model>.+?))?(?:@(?P<url>https?://.+))?")


class OneJudge(Section):
    """One judge. Those that are language models live at `url`; guards run here by transformers where there is none."""

    kind: OneKind = Field("exact", description="exact knows the microworld alone; docs/your-own-data.md has the others")
    model: str = Field(
        "",
        description="as the server at `url` names it; without a url a folder, or a name on a hub",
        validate_default=True,
    )
    url: str = Field("", description="of an OpenAI-compatible server, as http://localhost:8000/v1")
    key_variable: str = Field("OPENAI_API_KEY", description="the environment variable that holds the API key, if any")
    timeout: Annotated[float, Field(gt=0)] = Field(60.0, description="seconds for one try")
    retries: Annotated[int, Field(ge=0)] = Field(4, description="further tries after one that may pass")
    concurrency: Positive = Field(8, description="requests at a time")
    prompt_price: NonNegative = Field(0.0, description="per million tokens, for the count of costs")
    completion_price: NonNegative = Field(0.0, description="per million tokens")
    json_schema: bool = Field(True, description="of the rubric: send its schema; false for servers that refuse it")
    threshold: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="of StrongREJECT: unsafe from this score on"
    )
    weights: str = Field("", description="of the offline judge: a file by choreo judge train, for the shipped one")
    unsure: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.1, description="of the offline judge: left open within this of one half"
    )

    @field_validator("model")
    @classmethod
    def _named(cls, value: str, info: ValidationInfo) -> str:
        if not value and info.data.get("kind", "exact") not in ("exact", "offline", "majority"):
            raise ValueError(f"a {info.data['kind']} judge is a language model, and this names none (KIND:MODEL@URL)")
        return value

    @field_validator("url")
    @classmethod
    def _an_address(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("must look like http://localhost:8000/v1")
        return value


class Judge(OneJudge):
    """The judge of a run, or with kind = "majority" several, each in a table [judge.of.NAME]."""

    kind: Kind = Field("exact", description="majority: what more than half of the judges in [judge.of.*] say")  # type: ignore[assignment]
    cache: str = Field("", description="file of what judges replied; by default one in the run's folder")
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
        """The kinds of all judges that have a say."""
        return {one.kind for one in self.of.values()} or {self.kind}


def judge_from(words: Sequence[str]) -> Judge:
    """The judge that the command line names: KIND, KIND:MODEL@URL, KIND:FOLDER, or a TOML file that holds what a
    [judge] section does. Several words are a majority of those.

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
    told = _SHORT.fullmatch(word)
    if told is None:
        raise BadInput(f"--judge {word}: expected KIND, KIND:MODEL@URL, KIND:FOLDER or a .toml file")
    called, cut, host = (told["model"] or "").rpartition("@")
    if cut and not told["url"] and not Path(told["model"]).exists():
        raise BadInput(
            f"--judge {word}: a URL begins with http:// or https://, as {told['kind']}:{called}@http://{host}"
        )
    return check(kind, {name: value for name, value in told.groupdict().items() if value}, lambda _: f"--judge {word}")
