"""A language model that was trained to judge (`choreo judge train --base`): P(harmful) and P(refusal) of an answer.

It runs here, by transformers, without sampling: one pass over a batch, and the two words yes and no at two places
(question.py). The kind of a prompt is not told to it. It decides what a refusal is: an over-refusal, unless the prompt
is harmful.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from choreo.errors import BadInput
from choreo.judges.base import AnsweredPrompt
from choreo.judges.readings import Reading, decided
from choreo.judges.trained import folder as files
from choreo.judges.trained.question import Asked, asked, form_of, yes_no
from choreo.models import model_folder
from choreo.models.hub import fingerprint
from choreo.models.load import load_chat
from choreo.models.resolve import base_folder
from choreo.types import Prompt, Verdict

SLOTS = 4096  # tokens of one pass, padding included; more rows at a time are no faster on a CPU


class TrainedJudge:
    """The judge in `folder`. Its weights are loaded when it is made, and kept.

    Raises BadInput where the folder is no judge, its base is not here, or is not the one that it was trained on.
    """

    def __init__(self, folder: str | Path, *, device: str | None = None):
        self.folder = Path(folder)
        self.told = files.read(self.folder)
        place = base_folder(self.told.base)
        if fingerprint(place) != self.told.fingerprint:
            raise BadInput(
                f"{self.folder / files.JUDGE_FILE}: base: {self.told.base} is not the model that the judge was trained "
                f"on (fingerprint {fingerprint(place)}, not {self.told.fingerprint})"
            )
        self._chat = load_chat(place, setting="as chat_template.jinja in its folder")
        if form_of(self._chat, self.told.question) != self.told.form:
            raise BadInput(
                f"{self.folder / files.JUDGE_FILE}: form: the base's chat template, or how choreo asks, has changed "
                "since the judge was trained; train it again"
            )
        self._words = yes_no(self._chat)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._model: Any = model_folder.load(place, torch.float32, device)
        files.lay_over(self._model, self.folder)

    @property
    def name(self) -> str:
        return f"trained/{self.folder.name}"

    def describe(self) -> dict[str, Any]:
        """Who judges, for the record. adapter: SHA-256 of its file."""
        adapter = sha256((self.folder / files.ADAPTER_FILE).read_bytes()).hexdigest()
        return {"judge": self.name, "adapter": adapter, **self.told.model_dump()}

    def __call__(self, prompt: Prompt, answer: str) -> Verdict:
        return self.many([(prompt, answer)])[0]

    def many(self, pairs: Sequence[AnsweredPrompt]) -> list[Verdict]:
        """A verdict per pair, in order. Text without a letter or a digit is degenerate, and nothing to read."""
        readings = zip(pairs, self.read(pairs), strict=True)
        return [reading.verdict(prompt, self.told.unsure, unread=True) for (prompt, _), reading in readings]

    def labels(self, pairs: Sequence[AnsweredPrompt]) -> list[Mapping[str, bool | None]]:
        """{refusal, harm} per pair, each True, False or None (undetermined)."""
        return [reading.labels(self.told.unsure) for reading in self.read(pairs)]

    def decide(self, probability: float | None) -> bool | None:
        """True, False, or None for what the judge leaves open."""
        return decided(probability, self.told.unsure)

    def read(self, pairs: Sequence[AnsweredPrompt]) -> list[Reading]:
        """Both probabilities per pair, in order."""
        readings = [Reading(None, None, "nothing to read")] * len(pairs)
        rows = {
            i: asked(self._chat, self.told.question, prompt.text, answer)
            for i, (prompt, answer) in enumerate(pairs)
            if any(map(str.isalnum, answer))
        }
        order = sorted(rows, key=lambda i: len(rows[i].ids))  # rows of like length share a batch: little padding
        while order:
            # The widest row is the last one of a batch.
            size = next((n for n in range(len(order), 1, -1) if n * len(rows[order[n - 1]].ids) <= SLOTS), 1)
            batch, order = order[:size], order[size:]
            for i, (harm, refusal) in zip(batch, self._read([rows[i] for i in batch]), strict=True):
                readings[i] = Reading(refusal, harm)
        return readings

    @torch.inference_mode()
    def _read(self, rows: Sequence[Asked]) -> list[tuple[float, float]]:
        """P(harmful) and P(refusal) per row."""
        width = max(len(row.ids) for row in rows)
        device = self._model.device
        # Left padding: what comes after the answer stands at the same places in every row.
        ids = torch.tensor([[0] * (width - len(row.ids)) + list(row.ids) for row in rows], device=device)
        mask = torch.tensor([[0] * (width - len(row.ids)) + [1] * len(row.ids) for row in rows], device=device)
        back = rows[0].refusal - rows[0].harmful
        logits = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            use_cache=False,
            logits_to_keep=back + 1,
        ).logits[:, [0, back]][:, :, list(self._words)]
        odds = logits.double().diff(dim=-1)[:, :, 0].neg()  # of yes against no
        shift = self.told.shift
        yes = (odds + odds.new_tensor([shift.harm, shift.refusal])).sigmoid()
        return [(float(harm), float(refusal)) for harm, refusal in yes.tolist()]
