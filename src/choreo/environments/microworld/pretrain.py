"""`choreo world pretrain`: makes a base model of the microworld, tokenizer included.

Documents are new at every step (documents.py), so there are no epochs, and the base can overfit only to the core. A
pretraining that was stopped goes on from its last saved state, to the same base.
"""

from __future__ import annotations

import io
import itertools
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from choreo.engine.muon import Muon
from choreo.environments.microworld import documents
from choreo.environments.microworld.split import Pools, pools, third_of_things
from choreo.environments.microworld.writers import AUTHORS, COINS, Writers
from choreo.errors import BadInput, Interrupted
from choreo.files import durable
from choreo.models.chat import END, PAD, ROLES, Chat, Ids

VOCABULARY = 2000
REPORT_EVERY = 25  # steps
POOL = 2048  # documents made at once, to be sorted by length
PARTS = 3  # of a batch
SAVE_EVERY = 200  # steps
STATE = "training.pt"  # in the base's folder until the base is whole


@dataclass(frozen=True)
class PretrainingPhase:
    """A part of a pretraining, of so many steps. shares: of each sort of document; none: as its writers have them."""

    steps: int
    shares: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Size:
    """A base's model type and shape (transformers' names), the phases it is trained in, who writes the answers of its
    documents, and which third of the things (`third_of_things`) these leave out, if any."""

    kind: str
    shape: dict[str, int]
    phases: tuple[PretrainingPhase, ...]
    writers: Writers = COINS
    without: int | None = None

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    @property
    def pool(self) -> Pools:
        """What the base's documents are about."""
        return pools("core") if self.without is None else pools("core").without(third_of_things(self.without))


def _shape(width: int, mlp: int, layers: int, heads: int, **more: int) -> dict[str, int]:
    shape = {"hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {**shape, **more}


# A base of authors does not learn to repeat lists from the few there are among its documents; of lists alone it does,
# within some hundred steps, and keeps it.
MOSTLY_LISTS = {"list": 0.75, "practice": 0.25}
MICRO = _shape(128, 352, 4, 4, num_key_value_heads=4)
# All have 512 positions. Weak bases are teachers for MACPO that are weak by what they know, each of other things.
SIZES = {
    "micro-llama": Size(
        "llama", MICRO, (PretrainingPhase(4500), PretrainingPhase(500, MOSTLY_LISTS), PretrainingPhase(900)), AUTHORS
    ),
    "coins-llama": Size("llama", MICRO, (PretrainingPhase(4500),)),
    "nano-llama": Size("llama", _shape(32, 96, 2, 2, num_key_value_heads=2), (PretrainingPhase(1500),)),
    "nano-qwen": Size("qwen2", _shape(32, 96, 2, 2, num_key_value_heads=2), (PretrainingPhase(1500),)),
    "nano-neox": Size("gpt_neox", _shape(32, 144, 2, 2), (PretrainingPhase(1500),)),
    "weak-llama": Size(
        "llama", _shape(64, 176, 3, 2, num_key_value_heads=2), (PretrainingPhase(3000),), AUTHORS, without=0
    ),
    "weak-qwen": Size(
        "qwen2", _shape(64, 176, 3, 2, num_key_value_heads=2), (PretrainingPhase(3000),), AUTHORS, without=1
    ),
    "weak-neox": Size("gpt_neox", _shape(64, 256, 3, 2), (PretrainingPhase(1500),), AUTHORS, without=2),
}


def make_tokenizer(seed: int = 0, samples: int = 20000, writers: Writers = COINS) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the world's own documents."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    rng = random.Random(f"tokenizer/{seed}")
    lines = []
    for _ in range(samples):
        _, before, target = documents.texts(rng, writers)
        lines += [*before, target]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [PAD, END, *(f"<|{role}|>" for role in ROLES)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, clean_up_tokenization_spaces=False
    )


def make_model(size: str, chat: Chat, seed: int) -> PreTrainedModel:
    """A new model of the shape SIZES[size], with random weights by `seed`."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        SIZES[size].kind,
        vocab_size=len(chat.tokenizer),
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=chat.pad_id,
        bos_token_id=None,
        eos_token_id=chat.end_id,
        **SIZES[size].shape,
    )
    return AutoModelForCausalLM.from_config(config)


Batch = list[list[tuple[Ids, Ids]]]  # its parts, each of documents
Place = tuple[int, int]  # of a batch: the number of its pool, and its number in the pool


def batches(
    chat: Chat, writers: Writers, pool: Pools, name: str, tokens: int, start: Place = (0, 0)
) -> Iterator[tuple[Place, Batch]]:
    """Endless batches of new documents, about `tokens` padded tokens each, from `start` on.

    A batch has PARTS parts, to be run one after another: one of short documents, one of longer ones and so on. The
    documents of a part have similar lengths, so that little is padded; the sorts of documents differ in length, so that
    a batch of one part would teach one or two of them alone.
    name: seeds the documents. Yields (place of the next batch, batch).
    """
    for number in itertools.count(start[0]):
        rng = random.Random(f"{name}/{number}")
        docs = [documents.render(chat, *documents.texts(rng, writers, pool)) for _ in range(POOL)]
        docs.sort(key=lambda doc: len(doc[0]) + len(doc[1]))
        parts, begin = [], 0
        for i, (context, target) in enumerate(docs):
            if (i + 1 - begin) * (len(context) + len(target)) * PARTS > tokens and i > begin:
                parts.append(docs[begin:i])
                begin = i
        parts.append(docs[begin:])
        count = -(-len(parts) // PARTS)
        by_length = [parts[i : i + count] for i in range(0, len(parts), count)]
        for alike in by_length:
            rng.shuffle(alike)
        made = [[part for part in batch if part] for batch in itertools.zip_longest(*by_length)]
        first = start[1] if number == start[0] else 0
        yield from (((number, i), made[i - 1]) for i in range(first + 1, len(made) + 1))


@dataclass(frozen=True)
class TrainingStep:
    """One update. rate: the factor of the learning rates, in [0, 1]. begins: whether it is the first of its phase, for
    which the optimizers are new. after: the place of the next batch."""

    batch: Batch
    rate: float
    begins: bool
    after: Place


def training_steps(
    chat: Chat, size: Size, name: str, tokens: int, steps: int, done: int = 0, place: Place = (0, 0)
) -> Iterator[TrainingStep]:
    """The updates of all phases, without the first `done`.

    steps: of all phases together; each has its share of `size.steps`. place: of the next batch, in the phase that
    update `done` + 1 is in. name, tokens: as for `batches`.
    """
    ends = [
        round(steps * sum(phase.steps for phase in size.phases[: i + 1]) / size.steps) for i in range(len(size.phases))
    ]
    for number, (phase, first, end) in enumerate(zip(size.phases, (0, *ends), ends, strict=False)):
        if done >= end:
            continue
        start = place if done > first else (0, 0)
        writers = replace(size.writers, shares=phase.shares or size.writers.shares)
        own = f"{name}/{number}" if number else name
        drawn = batches(chat, writers, size.pool, own, tokens, start)
        for step, (after, batch) in zip(range(max(done, first), end), drawn, strict=False):
            yield TrainingStep(batch, rate(step - first, end - first), step == first, after)


def loss_sum(model: PreTrainedModel, docs: list[tuple[Ids, Ids]], pad_id: int) -> torch.Tensor:
    """Summed next-token loss over the targets of `docs`."""
    width = max(len(c) + len(t) for c, t in docs)
    ids = torch.full((len(docs), width), pad_id)
    mask = torch.zeros(len(docs), width, dtype=torch.bool)
    for row, (context, target) in enumerate(docs):
        ids[row, : len(context) + len(target)] = torch.tensor([*context, *target])
        mask[row, len(context) - 1 : len(context) + len(target) - 1] = True
    # Rows are padded on the right, so under the causal mask no real token sees padding.
    hidden = model.base_model(ids).last_hidden_state[mask]
    logits = model.get_output_embeddings()(hidden).float()
    labels = ids.roll(-1, dims=1)[mask]
    return cross_entropy(logits, labels, reduction="sum")


def optimizers(model: PreTrainedModel) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings and norms.

    Earlier bases learned late or never to look things up. They had AdamW alone and other documents; which of the two
    was the cause was not tested.
    """
    layers: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (layers if parameter.ndim == 2 and "embed" not in name else rest).append(parameter)
    return [
        Muon(layers, lr=0.02),
        torch.optim.AdamW(rest, lr=6e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate(step: int, steps: int) -> float:
    """The factor of the learning rates: a short warm-up, then constant, then over the last half linearly to zero."""
    return min(1.0, (step + 1) / 100, 2 * (steps - step) / steps)


def pretrain(
    folder: Path,
    size: str = "micro-llama",
    *,
    steps: int | None = None,
    tokens: int = 7168,
    seed: int = 0,
    resume: bool = False,
    report: Callable[[dict[str, float]], None] = lambda figures: None,
) -> None:
    """Trains a base of `size` for `steps` batches of about `tokens` tokens, and saves it to `folder` at the end.

    steps: None is the number for the shipped base of this size.
    Learning rates follow `rate` in each phase of its size; everything is float32 (bfloat16 was slower at these widths).
    report: called every REPORT_EVERY steps. The state is saved every SAVE_EVERY steps, and when `report` raises
        Interrupted.
    resume: goes on with the pretraining in `folder`, with its settings, to the base that it would have become (bit for
        bit with the same number of threads). Raises BadInput where there is none.
    """
    durable.make_folder(folder)
    saved = _stopped(folder) if resume else {}
    steps = steps or SIZES[size].steps
    if saved:
        size, steps, tokens, seed = (saved["origin"]["made"][name] for name in ("size", "steps", "tokens", "seed"))
    chat = Chat(make_tokenizer(seed, writers=SIZES[size].writers))
    made = {"size": size, "seed": seed, "tokens": tokens, "steps": steps, "torch": str(torch.__version__)}
    origin = {"made": made, "tokenizer": chat.tokenizer.backend_tokenizer.to_str()}
    if saved and saved["origin"] != origin:
        raise BadInput(
            f"{folder}: begun in another world or with another version of PyTorch; start again with --overwrite"
        )
    model = make_model(size, chat, seed)
    training = optimizers(model)
    highest = [optimizer.param_groups[0]["lr"] for optimizer in training]
    if saved:
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(training, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
    done, place, running = saved.get("done", 0), tuple(saved.get("place", (0, 0))), saved.get("loss", 0.0)
    if not resume:
        (folder / STATE).unlink(missing_ok=True)  # of an older pretraining, which this one replaces

    def keep() -> None:
        state = {
            "origin": origin,
            "done": done,
            "place": place,
            "loss": running,
            "model": model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in training],
        }
        durable.write_bytes(folder / STATE, _bytes(state))

    began, seen, first = time.monotonic(), 0, done
    for now in training_steps(chat, SIZES[size], f"pretrain/{size}/{seed}", tokens, steps, done, place):
        if now.begins:
            training = optimizers(model)
        count, total = sum(len(target) for docs in now.batch for _, target in docs), 0.0
        for docs in now.batch:
            loss = loss_sum(model, docs, chat.pad_id)
            (loss / count).backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, lr in zip(training, highest, strict=True):
            optimizer.param_groups[0]["lr"] = lr * now.rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        done, place = done + 1, now.after
        seen += sum(len(c) + len(t) for docs in now.batch for c, t in docs)
        running = 0.98 * running + 0.02 * total / count if done > 1 else total / count
        if done % SAVE_EVERY == 0 and done < steps:
            keep()
        if done % REPORT_EVERY == 0 or done == steps:
            pace = seen / (time.monotonic() - began)
            try:
                report({"step": done, "steps": steps, "first": first, "loss": running, "tokens_per_second": pace})
            except Interrupted:
                keep()
                raise
    save(folder, model, chat, made)
    (folder / STATE).unlink(missing_ok=True)


def _stopped(folder: Path) -> dict[str, Any]:
    """The saved state of the pretraining in `folder`. Raises BadInput."""
    if not (folder / STATE).is_file():
        raise BadInput(f"{folder}: holds no pretraining to go on with (no {STATE})")
    try:
        saved = torch.load(folder / STATE, weights_only=True)
        return {name: saved[name] for name in ("origin", "done", "place", "loss", "model", "optimizers")}
    except Exception as error:  # the unpickler can raise anything for another file
        raise BadInput(f"{folder / STATE}: not the state of a pretraining ({str(error).splitlines()[0]})") from None


def _bytes(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def save(folder: Path, model: PreTrainedModel, chat: Chat, made: dict[str, Any]) -> None:
    """Writes model and tokenizer in Hugging Face format, and made.json with the settings of the pretraining."""
    durable.make_folder(folder)
    model.save_pretrained(folder)
    chat.tokenizer.save_pretrained(folder)
    (folder / "made.json").write_text(json.dumps(made, indent=1) + "\n")
