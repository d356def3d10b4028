"""From what the user asks for to the summary of an attack."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from choreo import config
from choreo.agents.base import Agent
from choreo.agents.endpoint import EndpointAgent
from choreo.attacks.base import Attack, Attempt, Case, WriterQuestion
from choreo.attacks.curves import RATES, attack_figures, pair_contrast
from choreo.attacks.play import WRITERS, AttackSetup, Record, chunks_there, play_attack, title
from choreo.attacks.report import write_attack_report
from choreo.attacks.same import difference
from choreo.attacks.targets import ALONE, PAIR, REPLIES, RunTarget, ServedTarget, Target
from choreo.clients.http import Endpoint
from choreo.config.addresses import model_at_url
from choreo.config.judge import Judge as JudgeSettings
from choreo.config.parts import ATTACKS
from choreo.config.prompts import Source
from choreo.data.mixture import mixture
from choreo.environments.task import CACHE, Task
from choreo.errors import BadInput, Interrupted
from choreo.evaluation.folder import evaluation_folder
from choreo.evaluation.intervals import share
from choreo.evaluation.metrics import HEADLINE
from choreo.experiment.run import measured_on
from choreo.files import durable
from choreo.files.json_file import read_object
from choreo.judges.base import Judge
from choreo.judges.resolve import choose, counts, describe, identity, probe, unread_history
from choreo.methods.attacker.method import ATTACKER
from choreo.methods.attacker.play import AttackerAgent
from choreo.methods.attacker.recipe import AttackerRecipe
from choreo.methods.base import method_of
from choreo.models.hub import fingerprint
from choreo.models.resolve import base_folder
from choreo.runs.callbacks import Callback
from choreo.runs.checkpoints import checkpoint_at, checkpoint_digest
from choreo.runs.folder import is_finished, versions
from choreo.runs.lock import take
from choreo.runs.progress import Progress
from choreo.types import Prompt, Verdict

METHOD = "attack"  # of run.json and summary.json
INFO = "run.json"
OFFLINE = JudgeSettings(kind="offline")  # of files, where the user names no judge
USUAL = ("best-of-n", "paraphrase", "injection")  # where the user names none; what they do is told in any language


@dataclass(frozen=True)
class AttackPlan:
    """What the user asks for.

    target: a run folder, or MODEL@URL of a server of choreo. attacks: names of the registry; none means the usual ones.
    tries: the budget of every prompt. most: prompts of each kind. files: prompts in place of those of the recipe;
    judge: in place of its judge. recipe: whose held-out prompts and judge are taken where the target is a server.
    writer: the model that words prompts. step: of a run's checkpoint; None is the last, 0 untrained.
    key_variable: the environment variable with the servers' key. timeout: seconds for one answer of a server.
    """

    target: str
    attacks: tuple[str, ...] = ()
    tries: int = 16
    most: int = 100
    seed: int = 0
    files: Mapping[str, Source] = field(default_factory=dict)
    judge: JudgeSettings | None = None
    recipe: str = ""
    writer: str = ""
    step: int | None = None
    key_variable: str = "OPENAI_API_KEY"
    timeout: float = 120.0

    @property
    def server(self) -> tuple[str, str] | None:
        """(model, url) where the target is a server."""
        return model_at_url(self.target)


def run_attack(
    plan: AttackPlan, out: str | Path | None = None, callbacks: Sequence[Callback] = (), into_existing: bool = False
) -> dict[str, Any]:
    """Attacks the target. Returns the summary, which stands in the folder `out` with the report.

    Raises BadInput for what cannot be, before anything is attacked; Interrupted with every whole chunk kept: the same
    call on the same folder goes on, with into_existing.
    """
    with evaluation_folder(out, into_existing, METHOD) as folder, Progress(callbacks) as progress:
        lock = take(folder)
        try:
            return _run(plan, folder, progress)
        finally:
            os.close(lock)


def _run(plan: AttackPlan, folder: Path, progress: Progress) -> dict[str, Any]:
    named: dict[str, Attack] = {name: ATTACKS.get(name) for name in plan.attacks or USUAL}
    target, recipe = _target(plan, folder)
    prompts, judge = _prompts_and_judge(plan, recipe, folder)
    if isinstance(target, RunTarget):
        for remark in target.pair.remarks:
            progress.say(f"! {remark}")
        when = f"at step {target.about['step']}" if target.about["step"] else "before training"
        unfinished = plan.step is None and not is_finished(plan.target)
        progress.say(f"{plan.target}: the pair is attacked as it is {when}{', the last so far' if unfinished else ''}")
        prompts = target.pair.fitting(prompts, "prompts", progress)
    chosen = {kind: _chosen(prompts, kind, plan) for kind in RATES}
    if not any(chosen.values()):
        raise BadInput(f"attack: there are neither {' nor '.join(RATES)} prompts")
    everything = [prompt for some in chosen.values() for prompt in some]
    judges = recipe.judges() if recipe and not plan.judge else [plan.judge or OFFLINE]
    if unread := unread_history(judges, everything):
        progress.say(unread)
    attacks = _with_words(plan, named, everything, progress)
    writer, who = _writer(plan, folder, None if plan.files else recipe)
    if isinstance(target, RunTarget) and who.get("target", target.about) != target.about:
        progress.say(f"! {plan.writer} learnt against another pair than this one")
    _begin(plan, target, everything, judge, who, folder)
    setup = AttackSetup(target, judge, plan.tries, plan.seed, folder, writer)
    records = _attacked(setup, attacks, everything, progress)
    found = _outcomes(chosen, records)
    systems = {name: attack_figures(by_kind, plan.tries) | _unworded(records[name]) for name, by_kind in found.items()}
    summary = {
        "schema": 1,
        "method": METHOD,
        "recipe": METHOD,
        "seed": plan.seed,
        "target": {"name": plan.target, **target.about},
        "tries": plan.tries,
        "prompts": {kind: len(some) for kind, some in chosen.items() if some},
        "suites": sorted({prompt.suite for prompt in everything}),
        "judge": describe(judge),
        "judging": counts(judge),
        "writer": who,
        "systems": systems,
        "contrasts": {
            name: pair_contrast(found[title(PAIR, name)], found[title(ALONE, name)], plan.tries, plan.seed)
            for name in attacks
            if PAIR in target.systems
        },
    }
    durable.write_json(folder / "summary.json", summary)
    progress.say(f"report: {write_attack_report(folder)}")
    return summary


def _with_words(
    plan: AttackPlan, attacks: Mapping[str, Attack], prompts: Sequence[Prompt], progress: Progress
) -> dict[str, Attack]:
    """The attacks that can be played: without a writer, those that ask for one are left out, or refused where the user
    has named them."""
    nothing = Verdict(None, None)
    cases = [Case(prompt, 2, (Attempt(prompt, "", nothing),), plan.seed) for prompt in prompts]
    asking = [
        name for name, attack in attacks.items() if any(isinstance(attack(case), WriterQuestion) for case in cases)
    ]
    if asking and not plan.writer:
        why = f"{', '.join(asking)}: a model has to word these prompts; name one with {WRITERS}"
        if plan.attacks:
            raise BadInput(f"attack {why}")
        progress.say(f"! left out: {why}")
        return {name: attack for name, attack in attacks.items() if name not in asking}
    return dict(attacks)


def _attacked(
    setup: AttackSetup, attacks: Mapping[str, Attack], prompts: Sequence[Prompt], progress: Progress
) -> dict[str, list[Record]]:
    """All records, by attack and system. The progress counts a prompt's whole budget once it is won.

    run.json has it too: "done" and "total", in tries of the whole attack, and the "seconds" of a try that was sent.
    """
    records: dict[str, list[Record]] = {}
    budget, sent, spent = len(prompts) * setup.tries, 0, 0.0

    def note(done: int) -> None:
        total = budget * len(attacks) * len(setup.target.systems)
        through = budget * (len(records) - 1)
        told = {"done": through + done, "total": total, "seconds": spent / sent if sent else None}
        durable.write_json(setup.folder / INFO, read_object(setup.folder / INFO) | {"progress": told})

    for name, attack in attacks.items():
        for system in setup.target.systems:
            label = title(system, name)
            played = play_attack(setup, system, name, attack, prompts)
            own = records.setdefault(label, [])
            for chunk in itertools.islice(played, chunks_there(setup.folder, system, name)):
                own += chunk
            done, shares = _so_far(own, setup.tries)
            progress.start(label, budget, done)
            note(done)
            if own:
                progress.advance(done, shares)
            began = time.monotonic()
            for chunk in played:
                own += chunk
                done, shares = _so_far(own, setup.tries)
                sent, spent, began = sent + len(chunk), spent + time.monotonic() - began, time.monotonic()
                note(done)
                progress.advance(done, shares)
                if progress.interrupted:
                    raise Interrupted("stopped")
    return records


def _so_far(records: Sequence[Record], tries: int) -> tuple[int, dict[str, float]]:
    """Tries that are done or not needed any more; of the prompts so far, the share that is won, by rate."""
    asked: dict[str, dict[str, bool]] = {}
    spared = 0
    for one in records:
        kind, attack = one["prompt"]["kind"], one["attack"]
        asked.setdefault(kind, {})[one["prompt"]["id"]] = bool(attack["won"])
        spared += tries - attack["try"] if attack["won"] else 0
    shares = {RATES[kind].upper(): sum(known.values()) / len(known) for kind, known in asked.items()}
    return len(records) + spared, shares


def _outcomes(
    chosen: Mapping[str, Sequence[Prompt]], records: Mapping[str, Sequence[Record]]
) -> dict[str, dict[str, dict[str, list[bool | None]]]]:
    """By attack and system, then by kind, the outcomes of every prompt's tries."""
    found: dict[str, dict[str, dict[str, list[bool | None]]]] = {}
    for name, own in records.items():
        found[name] = {kind: {prompt.id: [] for prompt in some} for kind, some in chosen.items()}
        for one in own:
            found[name][one["prompt"]["kind"]][one["prompt"]["id"]].append(one["attack"]["won"])
    return found


def _unworded(records: Sequence[Record]) -> dict[str, Any]:
    """{"not_reworded": of the tries that the writer was asked to word, the share for which it gave no words}; empty
    where it was not asked."""
    asked = [words for one in records if (words := one["attack"].get("reworded")) is not None]
    return {"not_reworded": share([not words for words in asked])} if asked else {}


def _target(plan: AttackPlan, folder: Path) -> tuple[Target, Any]:
    """The target, and the recipe whose prompts and judge are taken; None where there is none."""
    if plan.server:
        if plan.step is not None:
            raise BadInput("attack: --step goes with a run; a server has already loaded a checkpoint")
        recipe = config.load(plan.recipe) if plan.recipe else None
        return ServedTarget(*plan.server, plan.seed, folder, plan.key_variable, plan.timeout), recipe
    if plan.recipe:
        raise BadInput("attack: --recipe goes with MODEL@URL; a run has its own")
    target = RunTarget(Path(plan.target), plan.seed, plan.step)
    return target, target.recipe


def _prompts_and_judge(plan: AttackPlan, recipe: Any, folder: Path) -> tuple[list[Prompt], Judge]:
    if recipe is not None:
        measured = measured_on(recipe, plan.files, plan.judge)
        task = Task(measured, folder)
        for settings in measured.judges():
            probe(settings)
        return task.suites("heldout"), task.judges[task.record]
    if not plan.files:
        raise BadInput("attack: name files of prompts with --suite FILE, or a recipe that has some with --recipe")
    settings = plan.judge or OFFLINE
    probe(settings)
    return list(mixture(plan.files, plan.seed).prompts), choose(settings, folder / CACHE)


def _chosen(prompts: Sequence[Prompt], kind: str, plan: AttackPlan) -> list[Prompt]:
    """The prompts of a kind that are attacked: those of the headline suite where there is one, drawn by the seed."""
    own = [prompt for prompt in prompts if prompt.kind == kind]
    own = [prompt for prompt in own if prompt.suite == HEADLINE[kind]] or own
    drawn = random.Random(f"attack/{plan.seed}/{kind}").sample(range(len(own)), min(plan.most, len(own)))
    return [own[place] for place in sorted(drawn)]


def _writer(plan: AttackPlan, folder: Path, measured: Any) -> tuple[Agent[Any] | None, dict[str, Any]]:
    """The writer, and what it is, for the record; (None, {}) where the user names none. measured: the recipe whose
    prompts are attacked, if any."""
    if not plan.writer:
        return None, {}
    who = {"name": plan.writer}
    if (Path(plan.writer) / "run.json").is_file():
        agent, about = _trained_writer(Path(plan.writer), measured)
        return agent, who | about
    if (server := model_at_url(plan.writer)) is None:
        from choreo.evaluation.collaboration import local_agent

        return local_agent(plan.writer, plan.seed), who | {"base": fingerprint(base_folder(plan.writer))}
    model, url = server
    endpoint = Endpoint(url, model, plan.key_variable, timeout=plan.timeout)
    return EndpointAgent(endpoint, folder / REPLIES), who


def _trained_writer(run: Path, measured: Any) -> tuple[Agent[Any], dict[str, Any]]:
    """The attacker of a run, what it is, and which pair it learnt against ("target"). Raises BadInput where it is a run
    of another method, or learnt in another world than that of the prompts."""
    recipe = config.load(run / "recipe.toml")
    if not isinstance(recipe, AttackerRecipe):
        method = method_of(recipe).name
        raise BadInput(f"--writer {run}: is a run of {method}; a writer is a model, or a run of {ATTACKER.name}")
    if measured is not None and not measured.from_files():
        recipe.same_world(measured, "what is attacked")
    step, folder = checkpoint_at(run)
    agents = ATTACKER.load(recipe, folder)
    about = {"step": step, "base": agents.model.fingerprint, "checkpoint": checkpoint_digest(folder)}
    return AttackerAgent(agents), about | ({"target": agents.begun} if agents.begun else {})


def _begin(
    plan: AttackPlan, target: Target, prompts: Sequence[Prompt], judge: Judge, writer: Mapping[str, Any], folder: Path
) -> None:
    """Notes what is attacked, or checks that an attack which goes on is the same. The number of tries may grow, and
    attacks may come in beside the others.

    Raises BadInput, naming what differs.
    """
    rows = [(prompt.id, prompt.turns, prompt.kind) for prompt in prompts]
    same = {
        "target": target.about,
        "seed": plan.seed,
        "prompts": {"count": len(rows), "digest": blake2b(repr(rows).encode(), digest_size=8).hexdigest()},
        "judge": identity(judge),
        "writer": writer,
    }
    file = folder / INFO
    before = read_object(file) if file.is_file() else {}
    if before.get("judge") == judge.name:  # an older choreo noted the name alone
        before["judge"] = same["judge"]
    for name, value in same.items():
        if before and before.get(name) != value:
            other = f"other {name}" if name == "prompts" else f"another {name}"
            raise BadInput(f"{folder}: was begun with {other}: {difference(name, before.get(name), value)}")
    # What the target is called is told, and not compared: another path may lead to the same pair.
    told = {"schema": 1, "name": METHOD, "method": METHOD, "attacks": plan.target, **same, "versions": versions()}
    durable.write_json(file, before | told)
