"""`choreo plan` of a recipe on a number of machines: what it takes and, where it is known what a device does, how long.

Every rank is a device with the whole model, or with a share of every agent (`model.shard`); the servers that a recipe
names, of samplers and judges, are devices beside them, one for each address.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

from choreo.config import Recipe
from choreo.engine.local import SLOTS
from choreo.errors import BadInput
from choreo.experiment import sizing
from choreo.experiment.costs import Machine, cost, exchanged_bytes, gradient_bytes, operations, totals
from choreo.experiment.run import check_unloaded
from choreo.methods.agents import Unread
from choreo.methods.base import method_of
from choreo.methods.passes import Lengths
from choreo.text.prompts import WORDING
from choreo.types import Prompt

READ = 256  # prompts whose tokens are counted
LETTERS = 4  # in a token, where the tokenizer is not here to count
BESIDE = "judging, measuring and checkpoints are not in it"


@dataclass(frozen=True)
class Site:
    """Where a recipe is to run.

    memory: of a device, in bytes; None looks at the one here. gpus: devices that train, of each machine; nodes:
    machines. machine: what a device does; None is not known. price: of a device and hour, in any currency.
    written: how much of the most tokens its turns have.
    """

    memory: float | None = None
    gpus: int = 1
    nodes: int = 1
    machine: Machine | None = None
    price: float | None = None
    written: float = 1.0

    @property
    def ranks(self) -> int:
        return self.gpus * self.nodes


def plan(recipe: Recipe, site: Site) -> dict[str, Any]:
    """`sizing.plan`, and what the recipe costs at `site`. Raises BadInput for what training refuses, as far as it can
    be told without weights and servers (`run.check_unloaded`)."""
    if site.price is not None and site.machine is None:
        raise BadInput("plan: --price needs a time: give --machine FILE, or --peak, --utilisation and --bandwidth")
    if recipe.engine.remote:
        raise BadInput(
            f'plan: with backend = "{recipe.engine.backend}" the service has the model; what it takes there, and '
            "what it costs, is not known here"
        )
    found = sizing.plan(recipe, site.memory, site.ranks)
    task, agents = check_unloaded(recipe)
    if isinstance(agents, Unread):
        found["remarks"].append(
            "no tokenizer of every base is here: whether prompts fit into its positions is not checked"
        )
    method = method_of(recipe)
    told = costs(recipe, site, lengths(method.trained_prompts(recipe, task), agents, site.written))
    return found | {"cost": told if found["fits"] is not False else told | {"seconds": None, "money": None}}


def costs(recipe: Recipe, site: Site, lengths: Lengths) -> dict[str, Any]:
    """What training takes at `site`.

    devices: that train, sample and judge. operations: FLOP, of all together. seconds: of a rank, by what they are
    spent on; None where the method does not say what it computes, or nobody what the device does. traffic: bytes
    in a run, "gradients": what each rank sends to learn, "weights": of sharded agents to sample, "adapters": what goes
    to samplers, at most once a step.
    money: for all devices.
    """
    how, method = recipe.weights(), method_of(recipe)
    shapes = {
        use.whose: replace(
            sizing.shape(sizing.Model.read(use.base, use.how or how), use.how or how),
            sharded=sizing.shares(how, site.ranks) > 1,
            micro_tokens=use.micro_tokens,
        )
        for use in method.models(recipe)
    }
    work = method.passes(recipe, lengths)
    samplers = len(recipe.engine.url) or int(recipe.engine.starts)
    judges = {one.url for settings in recipe.judges() for one in settings.of.values() or [settings] if one.url}
    devices = {"train": site.ranks, "sample": samplers, "judge": len(judges)}
    learning = [one for one in work if one.kind == "learn"]
    steps = max((one.times for one in work if one.kind == "sample"), default=0.0)
    traffic = {
        "gradients": sum(one.times * exchanged_bytes(one, shapes[one.whose], site.ranks) for one in learning),
        "weights": sum(
            one.times * exchanged_bytes(one, shapes[one.whose], site.ranks) for one in work if one.kind == "sample"
        ),
        "adapters": sum(
            samplers * min(one.times, steps) * gradient_bytes(shapes[one.whose].learnt) for one in learning
        ),
    }
    told: dict[str, Any] = {
        "devices": devices,
        "machines": site.nodes,
        "lengths": {"prompt": lengths.prompt, "written": lengths.written},
        "operations": sum(operations(one, shapes[one.whose]) for one in work) or None,
        "traffic": traffic if work else None,
        "seconds": None,
        "money": None,
    }
    if not work or site.machine is None:
        return told

    def of(kind: str) -> tuple[int, float]:
        return (samplers, float("inf")) if kind == "sample" and samplers else (site.ranks, float(SLOTS))

    spent = totals([cost(one, shapes[one.whose], site.machine, *of(one.kind)) for one in work])
    hours = sum(spent.values()) / 3600
    return told | {
        "seconds": spent,
        "device": {"about": site.machine.about, "measured": site.machine.measured},
        "link_known": site.machine.link is not None or site.ranks == 1,
        "money": None if site.price is None else site.price * hours * sum(devices.values()),
    }


def lengths(prompts: Sequence[Prompt], agents: Any, written: float = 1.0) -> Lengths:
    """Of the contexts of `prompts`, by the tokenizer of the first agent; without one, by four letters a token."""
    some = prompts[:: max(1, len(prompts) // READ)]
    if isinstance(agents, Unread):
        review = len(f"{WORDING.feedback}{WORDING.review}") / LETTERS
        prompt = mean(len(one.words) for one in some) / LETTERS
        return Lengths(prompt, 0.0, review, len(WORDING.revise) / LETTERS, written)
    chat = next(iter(agents.policies().values())).chat
    answer = len(chat.answer_context(()))
    again = len(chat.answer_context((), [((), ())])) - answer
    prompt = mean(len(chat.encode(one.words)) for one in some)
    return Lengths(prompt, answer, len(chat.review_context((), ())), again, written)


def tell(found: dict[str, Any]) -> str:
    """The plan in words."""
    return "\n".join([sizing.tell(found), *_cost_lines(found["cost"], found["fits"], found["shares"] > 1)])


def _cost_lines(told: dict[str, Any], fits: bool | None, sharded: bool) -> list[str]:
    devices, machines = told["devices"], told["machines"]
    parts = [f"{devices[name]} that {name}{'s' if devices[name] == 1 else ''}" for name in devices if devices[name]]
    on = f"{machines} machines" if machines > 1 else "one machine"
    has = "the whole base and a share of every agent" if sharded else "the whole model"
    lines = [f"  devices: {', '.join(parts)}; those that train are on {on}, each with {has}"]
    if told["operations"] is None:
        return [*lines, "  time: not known; the method does not say what it computes (Method.passes)"]
    prompt, written = told["lengths"]["prompt"], told["lengths"]["written"]
    lines.append(
        f"  computing: {told['operations']:.3g} FLOP, by prompts of {prompt:.0f} tokens and turns of {written:.0%} of "
        "their most tokens"
    )
    sent = [f"{name} {sizing.size(value)}" for name, value in told["traffic"].items() if value]
    lines.append(f"  traffic: {', '.join(sent)}, in the whole run" if sent else "  traffic: none")
    if fits is False:
        return [*lines, "  time: none is said of what does not fit"]
    if told["seconds"] is None:
        return [*lines, "  time: not known; give --machine FILE, or --peak, --utilisation and --bandwidth"]
    spent = {name: value for name, value in told["seconds"].items() if value}
    each = ", ".join(f"{name} {duration(value)}" for name, value in spent.items())
    by = f"{'measured' if told['device']['measured'] else 'not measured'}: {told['device']['about']}"
    lines.append(f"  time: about {duration(sum(spent.values()))} ({each}; {by}); {BESIDE}")
    if not told["link_known"]:
        lines.append("  ! what ranks exchange takes time too: give --link")
    if told["money"] is not None:
        lines.append(f"  money: about {told['money']:,.2f}, for all devices")
    return lines


def duration(seconds: float) -> str:
    """A time in words, as 3.2 h."""
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds:.2g} s"
