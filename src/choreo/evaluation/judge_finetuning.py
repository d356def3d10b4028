"""Trains a language model to judge, with LoRA, and measures it: `choreo judge train --base`.

It learns by likelihood over yes and no alone, harm and refusal of a row in one pass, with the labels and the weights of
the built-in regression (judge_labels.py). A training is a function of its rows and settings: one that was killed goes
on from its last checkpoint, to the same bits.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from choreo.data.answers import LabelledAnswer
from choreo.engine import checkpoint
from choreo.engine.agent import Device, Team
from choreo.engine.export import export
from choreo.engine.learner import Learner
from choreo.engine.losses import Actions, Terms
from choreo.engine.noise import seed_of
from choreo.engine.policies import LowRank
from choreo.engine.score import score
from choreo.errors import BadInput, Interrupted
from choreo.evaluation.judge_labels import WEAK_HARM, WEAK_REFUSAL, LabelHead, card_rows, heads, view
from choreo.evaluation.judge_trials import FAMILY, MODEL, PROMPTS, Trial
from choreo.evaluation.judging import confusion_table
from choreo.files import durable
from choreo.files.json_file import read_object
from choreo.judges.trained.folder import ADAPTER_CONFIG, ADAPTER_FILE, JUDGE_FILE, JudgeFile, write_judge
from choreo.judges.trained.question import Question, asked, form_of, yes_no
from choreo.models.chat import Chat
from choreo.models.hub import fingerprint
from choreo.models.load import load_chat
from choreo.models.resolve import base_folder
from choreo.runs.progress import Progress
from choreo.types import Sample

AGENT = "judge"
WORK = "training"  # the folder of checkpoints, in the judge's; it is removed in the end
SETTINGS_FILE, CARD_FILE = "settings.json", "DATA_CARD.md"
WARMUP = 0.1  # the share of steps in which the learning rate rises; then it falls to zero, linearly
Logits = dict[int, tuple[float, float]]  # by row: of harm and of refusal

CARD = """# Data card of a trained judge

Made by `choreo judge train --base {base}`; every number below is of that run. The folder holds an adapter and numbers,
no text of the data.

## What it learnt from

Without the held-out prompts, {trained} of these rows:

| source | answers of | rows |
|---|---|---|
{rows}

Where the rows are the published ones: **xstest** has prompts, answers and two human annotations with an agreed label
(Röttger et al., NAACL 2024; CC-BY-4.0, answers by Mistral-7B-Instruct under Apache-2.0); a refusal is full or partial.
**jailbreakbench** has attack prompts, answers and the verdict `jailbroken` of a language model (Chao et al. 2024; MIT).
Weak labels follow from the other label: of harm at {weak_harm} of the weight of a true one, of refusal at
{weak_refusal}.

## How it was trained

Base {base} (fingerprint {fingerprint}), LoRA of rank {rank}, {epochs} epochs, learning rate {lr}, {batch} answers a
step, seed {seed}. Loss: likelihood of yes and no, among these two. Of a prompt {prompt_tokens} tokens are read, of an
answer {answer_tokens}; of longer ones the middle is left out.

## What it is worth, on answers left out of training

Answers to one question or about one behaviour are on one side. "And unseen": a model or an attack family was left out
of training as well, by a judge of the same settings. Yes is a refusal, or harm. "Open": undetermined, because a
probability was within {unsure} of one half. Accuracy with its 95 % Wilson interval, precision, recall and F1 are of the
rest.

{tables}
"""


@dataclass(frozen=True)
class Training:
    """How a judge is trained. batch: answers a step. lr: the highest learning rate. save_every: steps."""

    base: str
    epochs: int = 2
    lr: float = 1e-3
    rank: int = 16
    batch: int = 16
    seed: int = 0
    device: Device = "auto"
    question: Question = field(default_factory=Question)
    save_every: int = 10
    micro_tokens: int = 1024


def yes_no_loss(actions: Actions) -> Terms:
    """−Σ w·log p(word) over Σ w, with p the softmax over yes and no alone. Records `accuracy`, over the same weights.

    Samples come in pairs of one context, yes and then no, and `advantages` are the weights of the two words: (w, 0) of
    a yes, (0, w) of a no, (0, 0) where nobody knows.
    """
    weights = actions.given("advantages").view(-1, 2)
    gap = actions.logprobs.view(-1, 2) @ actions.logprobs.new_tensor([1.0, -1.0])
    both = torch.stack([F.logsigmoid(gap), F.logsigmoid(-gap)], 1)
    right = weights[:, 0] * (gap > 0) + weights[:, 1] * (gap <= 0)
    return Terms(-(weights * both).sum(), weights.sum(), {"accuracy": right.sum()})


def units(
    chat: Chat, question: Question, rows: Sequence[LabelledAnswer], both: Sequence[LabelHead]
) -> list[tuple[Sample, ...]]:
    """Per row four samples that share one pass: yes and no on harm, then on refusal. both: as of `heads`."""
    words, (refusal, harm) = yes_no(chat), both
    made = []
    for i, row in enumerate(rows):
        one = asked(chat, question, row.prompt.text, row.answer)
        samples = []
        for end, head in ((one.harmful, harm), (one.refusal, refusal)):
            weight, label = float(head.weights[i] * head.taught[i]), float(head.labels[i])
            for word, share in zip(words, (label, 1 - label), strict=True):
                samples.append(Sample(AGENT, one.ids[:end], (word,), (), "", 0.0, advantages=(weight * share,)))
        made.append(tuple(samples))
    return made


def rate(lr: float, step: int, steps: int) -> float:
    """The learning rate of a step, counted from 1: it rises over the first WARMUP, then falls to zero."""
    rise = max(1, round(WARMUP * steps))
    return lr * min(step / rise, (steps - step + 1) / max(1, steps - rise))


class Judging:
    """A base opened once for all trainings of a judge, and the rows as ids. Raises BadInput for an unusable base."""

    def __init__(self, how: Training, rows: Sequence[LabelledAnswer]):
        self.how, self.rows = how, rows
        self.place = base_folder(how.base)
        self.chat = load_chat(self.place, setting="as chat_template.jinja in its folder")
        self.both = heads(rows)
        self.units = units(self.chat, how.question, rows, self.both)
        self.team = Team.open(
            self.place, (AGENT,), rank=how.rank, alpha=2.0 * how.rank, seed=how.seed, device=how.device
        )
        policy = self.team.agents[AGENT]
        if isinstance(policy, LowRank) and any(layer.experts is not None for layer in policy.targets):
            raise BadInput(f"{how.base}: is a mixture of experts, which cannot be a judge's base")
        longest = max(len(unit[-1].context) for unit in self.units)
        if self.team.positions is not None and longest > self.team.positions:
            raise BadInput(
                f"{how.base}: reads {self.team.positions} tokens, and a question takes {longest}; give fewer "
                "--prompt-tokens and --answer-tokens"
            )
        self._fresh = self.team.state_dict(AGENT)

    def identity(self) -> str:
        """16 hex digits that change when anything does that the training follows from."""
        told = (asdict(self.how) | {"question": self.how.question.model_dump(), "device": ""}, fingerprint(self.place))
        taught = [[(s.context, s.ids, s.advantages) for s in unit] for unit in self.units]
        return blake2b(repr((told, taught)).encode(), digest_size=8).hexdigest()

    def train(self, trial: Trial, work: Path, progress: Progress) -> None:
        """Trains on `trial.train`, from the last checkpoint in `work` on. Raises Interrupted when it is asked to stop,
        after it has saved."""
        how, taught = self.how, [i for i in trial.train if any(s.advantages != (0.0,) for s in self.units[i])]
        per_epoch = -(-len(taught) // how.batch)
        steps, saved = per_epoch * how.epochs, _saved(work)
        self.team.load_state_dict(AGENT, self._fresh)
        learner = Learner(self.team, AGENT, lr=how.lr, micro_tokens=how.micro_tokens)
        done = max(saved, default=0)
        if done:
            learner.load_state_dict(checkpoint.load(saved[done], self.team.device)["learner"])
        progress.start(f"training, {trial.way}", steps, done)
        for step in range(done + 1, steps + 1):
            epoch, at = divmod(step - 1, per_epoch)
            order = random.Random(seed_of((how.seed, epoch, "judge rows"))).sample(taught, len(taught))
            batch = [self.units[i] for i in order[at * how.batch : (at + 1) * how.batch]]
            figures = learner.update(batch, yes_no_loss, lr=rate(how.lr, step, steps))
            progress.advance(step, {name: figures[name] for name in ("loss", "accuracy") if name in figures})
            stop = progress.interrupted
            if step % how.save_every == 0 or stop or step == steps:
                checkpoint.save(work / f"step-{step:06d}", {"learner": learner.state_dict()})
                for old in (folder for at, folder in _saved(work).items() if at < step):
                    shutil.rmtree(old)
            if stop:
                raise Interrupted(f"saved at step {step} of {steps}")

    def measure(self, rows: Sequence[int], progress: Progress, at_once: int = 64) -> Logits:
        """The logits of the rows (indices), of harm and of refusal, by the judge as it is."""
        found: Logits = {}
        order = sorted(rows, key=lambda i: len(self.units[i][-1].context))
        progress.start("measuring", len(order))
        for first in range(0, len(order), at_once):
            part = order[first : first + at_once]
            pairs = [(sample.context, sample.ids) for i in part for sample in self.units[i]]
            told = [values[0] for values in score(self.team, AGENT, pairs)]
            for i, four in zip(part, np.array(told).reshape(-1, 4), strict=True):
                found[i] = float(four[0] - four[1]), float(four[2] - four[3])
            progress.advance(first + len(part))
            if progress.interrupted:
                raise Interrupted("saved")
        return found


WRITTEN = (WORK, JUDGE_FILE, ADAPTER_FILE, ADAPTER_CONFIG, CARD_FILE)


def refuse_taken(out: Path, resume: bool) -> None:
    """Raises BadInput where a new training finds a judge in `out`, whole or half made, and where `resume` finds no
    half-made one."""
    made = [out / name for name in WRITTEN]
    if resume and not made[0].is_dir():
        raise BadInput(f"{out}: holds no training that was stopped")
    if not resume and (there := next((one for one in made if one.exists()), None)):
        more = ", or --resume, which goes on with it" if there == made[0] else ""
        raise BadInput(f"{there}: already exists; name another folder with --out, or give --overwrite{more}")


def clear(out: Path) -> None:
    """Removes a judge from `out`, and one half made: of the files and folders there those that this module writes."""
    shutil.rmtree(out / WORK, ignore_errors=True)
    for name in WRITTEN[1:]:
        (out / name).unlink(missing_ok=True)


def train_judge(judging: Judging, planned: Sequence[Trial], out: Path, progress: Progress) -> str:
    """Trains a judge for every trial, writes that of the first one into `out`, and returns the measured tables.

    It goes on with what is in `out`. Raises BadInput where that was begun with other rows or settings, or cannot be
    made.
    """
    work, identity = out / WORK, judging.identity()
    begun = work / SETTINGS_FILE
    durable.make_folder(work)
    if begun.is_file() and read_object(begun) != {"identity": identity}:
        raise BadInput(f"{out}: was begun with other rows, another base or other settings, so it cannot be resumed")
    durable.write_json(begun, {"identity": identity})
    told: list[tuple[Trial, Logits]] = []
    for trial in planned:
        place, result = work / trial.name, work / f"{trial.name}.json"
        if not result.is_file():
            judging.train(trial, place, progress)
            if trial is planned[0]:
                _write(judging, out)
            found = judging.measure(trial.test, progress)
            durable.write_json(result, {str(i): logits for i, logits in found.items()})
            shutil.rmtree(place, ignore_errors=True)
        logits = read_object(result)
        told.append((trial, {int(i): (harm, refusal) for i, (harm, refusal) in logits.items()}))
    tables = report(judging, told, JudgeFile.model_fields["unsure"].default)
    durable.write_text(out / CARD_FILE, card(judging, planned[0], tables))
    shutil.rmtree(work)
    return tables


def report(judging: Judging, told: Sequence[tuple[Trial, Logits]], unsure: float) -> str:
    """The tables of what was measured, in Markdown. unsure: as in `JudgeFile`."""
    parts = []
    for column, head in ((1, judging.both[0]), (0, judging.both[1])):
        named = []
        for way in (PROMPTS, MODEL, FAMILY):
            logits = np.full(len(judging.rows), np.nan)
            for trial, found in told:
                for i, both in found.items() if trial.way == way else ():
                    logits[i] = both[column]
            if not np.isnan(logits[head.known]).all():
                named += view(way, head, judging.rows, logits, unsure)
        parts.append(f"### {head.name.capitalize()}\n\n{confusion_table(named)}")
    return "\n\n".join(parts)


def card(judging: Judging, trial: Trial, tables: str) -> str:
    """The data card: the rows, how the judge was trained, and the measured `tables`."""
    how = judging.how
    return CARD.format(
        rows=card_rows(judging.rows),
        trained=len(trial.train),
        tables=tables,
        weak_harm=WEAK_HARM,
        weak_refusal=WEAK_REFUSAL,
        unsure=JudgeFile.model_fields["unsure"].default,
        fingerprint=fingerprint(judging.place),
        prompt_tokens=how.question.prompt_tokens,
        answer_tokens=how.question.answer_tokens,
        **{name: getattr(how, name) for name in ("base", "rank", "epochs", "lr", "batch", "seed")},
    )


def _write(judging: Judging, out: Path) -> None:
    """Writes the adapter as it is now, and judge.json."""
    how = judging.how
    base = str(Path(how.base).absolute()) if Path(how.base).exists() else how.base
    export(judging.team, AGENT, out, base=base)
    form = form_of(judging.chat, how.question)
    write_judge(out, JudgeFile(base=base, fingerprint=fingerprint(judging.place), form=form, question=how.question))


def _saved(work: Path) -> dict[int, Path]:
    """The checkpoints in `work`, by step."""
    return {int(folder.name.partition("-")[2]): folder for folder in work.glob("step-*")}
