"""From a recipe's `[judge]` section to the judge itself. The exact judge is the environment's, and not known here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import product
from pathlib import Path
from typing import Any

from choreo import parallel
from choreo.config.judge import RULES, TRAINED, OneJudge
from choreo.config.judge import Judge as Settings
from choreo.config.parts import JUDGES, is_format
from choreo.errors import BadInput
from choreo.files import shipped
from choreo.files.durable import finite
from choreo.judges.base import Format, FormatEntry, Judge, judge_all
from choreo.judges.majority import Majority
from choreo.judges.offline.model import WEIGHTS, OfflineJudge
from choreo.judges.own import OwnJudge
from choreo.models.hub import is_name
from choreo.models.resolve import is_here, is_ours
from choreo.types import Prompt

LAST_ALONE = frozenset({"offline", TRAINED})  # of the judges that are no formats: they read the last message alone


def choose(settings: Settings, cache: Path | None = None) -> Judge:
    """The judge that `settings` name.

    cache: where endpoints' replies are kept, unless `settings` name a file; None keeps them in memory.
    Raises BadInput for what cannot be: no such weights, no such model, no such address.
    """
    cache = Path(settings.cache) if settings.cache else cache
    if settings.kind == "majority":
        return Majority([_one(one, cache) for one in settings.of.values()])
    return _one(settings, cache)


def _one(one: OneJudge, cache: Path | None) -> Judge:
    if one.kind == "exact":
        raise BadInput('judge: kind = "exact" knows the microworld alone')
    if one.kind == "offline":
        judge = OfflineJudge(shipped.place(Path(one.weights)) if one.weights else WEIGHTS, one.unsure)
        _ = judge.weights  # a file that is none is said now, not after hours of answering
        return judge
    if one.kind == TRAINED:
        from choreo.judges.trained.model import TrainedJudge

        return TrainedJudge(shipped.place(Path(one.model)))
    found = JUDGES.get(one.kind)
    if not is_format(found):
        return OwnJudge(one.kind, found, one.options)
    if one.url:
        from choreo.clients.http import Endpoint
        from choreo.judges.endpoint import EndpointJudge

        endpoint = Endpoint(
            one.url,
            one.model,
            one.key_variable,
            timeout=one.timeout,
            retries=one.retries,
            concurrency=one.concurrency,
            prompt_price=one.prompt_price,
            completion_price=one.completion_price,
        )
        return EndpointJudge(format_of(one), endpoint, cache)
    local = Path(one.model).is_dir() or is_here(one.model) or is_ours(one.model)
    if not local and not (getattr(found, "on_hub", True) and is_name(one.model)):
        raise BadInput(
            f"judge.model {one.model!r}: not a folder here, and no url of a server that has it: "
            f"{one.kind}:MODEL@URL, as {one.kind}:{one.model}@http://localhost:8000/v1 (in TOML model and url)"
        )
    from choreo.judges.local import LocalJudge

    try:
        return LocalJudge(format_of(one), one.model)
    except BadInput as error:
        raise BadInput(f"judge.model {one.model!r}: {error}") from None


def unread_history(settings: Sequence[Settings], prompts: Sequence[Prompt]) -> str:
    """A line where one of the judges reads the last message alone and some of `prompts` have others before it; else
    ""."""
    blind = sorted(kind for kind in {kind for one in settings for kind in one.kinds()} if _reads(kind) == "last")
    count = sum(bool(prompt.earlier) for prompt in prompts)
    if not blind or not count:
        return ""
    return (
        f"! {count} of {len(prompts)} prompts have other messages before them, and the judge ({', '.join(blind)}) "
        "reads the last message alone; rubric reads them all, and llama-guard all but system messages"
    )


def without_system_messages(settings: Settings) -> list[str]:
    """The kinds of the judges in `settings` that do not read system messages."""
    return sorted(kind for kind in settings.kinds() if _reads(kind) != "all")


def _reads(kind: str) -> str:
    """What a kind of judge reads of a conversation, as `FormatEntry.reads`. Of a user's own it is not known: "all"."""
    return "last" if kind in LAST_ALONE else getattr(JUDGES.ours().get(kind), "reads", "all")


def format_of(one: OneJudge) -> Format:
    """How this judge is asked, and read: a format of choreo's, or of the user's own."""
    found = JUDGES.get(one.kind)
    if isinstance(found, FormatEntry):
        return found.make(**{name: getattr(one, name) for name in found.settings}, **one.options)
    made: Format = found(**one.options) if isinstance(found, type) else found
    return made


def parts(judge: Judge) -> list[Judge]:
    """The judges that have a say in `judge`: itself, or those of a majority."""
    return [inner for one in judge.judges for inner in parts(one)] if isinstance(judge, Majority) else [judge]


def describe(judge: Judge) -> dict[str, Any]:
    """Who judges, for the record: its name, and what else its verdicts depend on (each judge's own `describe`)."""
    own_method = getattr(judge, "describe", None)
    return (
        {"judge": judge.name, "parts": [describe(one) for one in parts(judge)]}
        if isinstance(judge, Majority)
        else (own_method() if own_method else {"judge": judge.name})
    )


def identity(judge: Judge) -> dict[str, Any]:
    """What the verdicts of a judge depend on: its record (`describe`) without the address of a server and how patiently
    it is asked; as a file of JSON gives it back."""

    def kept(one: Judge) -> dict[str, Any]:
        if isinstance(one, Majority):
            return {"judge": one.name, "parts": [kept(inner) for inner in parts(one)]}
        found = describe(one)
        if isinstance(endpoint := found.get("endpoint"), Mapping):
            found |= {"endpoint": {name: endpoint[name] for name in ("model", "extra") if name in endpoint}}
        return found

    read_back: dict[str, Any] = json.loads(json.dumps(finite(kept(judge)), default=str))
    return read_back


# What a judge's record may hold that another one had better not hold too, and what that is.
SHARED = {
    "weights": "weights",
    "adapter": "an adapter",
    "model": "a model",
    "fingerprint": "a base model",
    "object": "code",
}


def in_common(one: Judge, other: Judge) -> list[str]:
    """What two judges, or members of them, share by their records: "weights", "a model", and so on. Empty where no
    record tells: two files of weights may have learnt from the same rows all the same."""
    found = []
    for mine, theirs in product(parts(one), parts(other)):
        a, b = describe(mine), describe(theirs)
        for record in (a, b):  # a model behind a server is known by its name alone
            record |= {"model": record["endpoint"]["model"]} if "endpoint" in record else {}
        found += [words for key, words in SHARED.items() if a.get(key) and a.get(key) == b.get(key)]
        found += ["all that is known of it"] if not found and a == b else []
    return list(dict.fromkeys(found))


def names(records: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The names of the judges that `describe` has described, by the same keys. Judges of one name are told apart by
    what else their records hold of them, cut to eight letters."""
    called = {key: str(record.get("judge")) for key, record in records.items()}
    if len(set(called.values())) == len(called):
        return called
    marks = {key: [str(r[name])[:8] for name in SHARED if r.get(name)][:1] for key, r in records.items()}
    return {key: f"{name} ({marks[key][0]}…)" if marks[key] else name for key, name in called.items()}


def counts(judge: Judge) -> dict[str, Any]:
    """By name, what judges over an endpoint did since they were made: rows, calls, tokens, cost, failures. Of several
    ranks, which each ask about a share, it is the sum."""
    found = {one.name: own_method() for one in parts(judge) if (own_method := getattr(one, "counts", None))}
    own = {name: numbers for name, numbers in found.items() if numbers}  # an own judge need not count
    return reduce(_added, parallel.gather([own]))


def _added(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Two nested dicts, their numbers added."""

    def of(name: str) -> Any:
        one, other = a.get(name), b.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            return _added(one, other)
        if isinstance(one, int | float) and isinstance(other, int | float):
            return one + other
        return other if one is None else one

    return {name: of(name) for name in [*a, *(name for name in b if name not in a)]}


def strict(judge: Judge) -> Judge:
    """The judge for training: it stops the work at one row without a reply, so that no step learns from its absence."""
    for_training = getattr(judge, "strict", None)
    made: Judge = for_training() if for_training else judge
    return made


def local(settings: Settings) -> list[OneJudge]:
    """The judges that are language models in this process."""
    everyone = settings.of.values() or [settings]
    return [one for one in everyone if one.kind == TRAINED or (one.kind not in RULES and one.model and not one.url)]


def probe(settings: Settings) -> None:
    """Asks each judge over an endpoint one question. Raises BadInput where one is not there, or refuses the key."""
    for one in settings.of.values() or [settings]:
        if one.url:
            judge_all(_one(one, None), [(Prompt("probe", "Hello", "benign", ""), "Hello! How can I help?")])
