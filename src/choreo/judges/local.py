"""A guard model that runs here, by transformers: the same formats without a server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from choreo.errors import BadInput, opening
from choreo.judges.base import AnsweredPrompt, Format, undetermined
from choreo.models import model_folder
from choreo.models.fixed_date import DATE, with_fixed_date
from choreo.models.hub import fingerprint
from choreo.models.resolve import base_folder
from choreo.models.template import template_of
from choreo.text.replies import shortened
from choreo.text.thinking import usable_text
from choreo.types import Prompt, Verdict


class LocalJudge:
    """`format` asked of a model in `folder` (a path, or a name as a base has it), greedily, `batch` rows at a time.

    Raises BadInput where there is no such model, or not a whole one.
    """

    def __init__(self, format: Format, folder: str, *, batch: int = 8, device: str | None = None):
        self.format = format
        self.folder = folder
        self.batch = batch
        place = Path(folder) if Path(folder).is_dir() else base_folder(folder)
        self._tokenizer = model_folder.tokenizer(place)
        asks = "messages" in format.ask(Prompt("", "Hello", "general", ""), "Hello!")
        own = template_of(self._tokenizer, setting="as chat_template.jinja in its folder") if asks else None
        self._template = own and with_fixed_date(own)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._model: Any = model_folder.load(place, "auto", device, quantised=True)
        question = format.ask(Prompt("", "", "general", ""), "")
        with opening(place, "its chat template cannot be used"):
            asked = self._ids(question)
        model_folder.check_ids(place, self._tokenizer, asked, self._model.config)
        if self._ends() == {None}:
            raise BadInput(f"{place}: neither its tokenizer nor its generation_config.json names an EOS")

    @property
    def name(self) -> str:
        return f"{self.format.name}/{self.folder}"

    def describe(self) -> dict[str, Any]:
        """Who judges, for the record. model: the fingerprint of its weights; None where they are not in a folder."""
        folder = Path(self._model.name_or_path)
        weights = fingerprint(folder) if folder.is_dir() else None
        return {"judge": self.name, "format": self.format.name, "version": self.format.version, "model": weights}

    def __call__(self, prompt: Prompt, answer: str) -> Verdict:
        return self.many([(prompt, answer)])[0]

    def many(self, pairs: Sequence[AnsweredPrompt]) -> list[Verdict]:
        """A verdict per pair, in order."""
        asked = [self._ids(self.format.ask(*pair)) for pair in pairs]
        # Rows of like length share a batch, so that few slots are padding.
        order = sorted(range(len(asked)), key=lambda i: len(asked[i]))
        verdicts: dict[int, Verdict] = {}
        for at in range(0, len(order), self.batch):
            rows = order[at : at + self.batch]
            for row, (text, finished) in zip(rows, self._reply([asked[i] for i in rows]), strict=True):
                verdicts[row] = self._read(pairs[row][0], text, finished)
        return [verdicts[i] for i in range(len(pairs))]

    def _read(self, prompt: Prompt, reply: str, finished: bool) -> Verdict:
        if not finished:
            return undetermined(f"cut off: {shortened(reply)}")
        text, failure = usable_text(reply, "stop")
        return undetermined(failure) if failure else self.format.read(prompt, text)

    def _ids(self, question: dict[str, Any]) -> list[int]:
        """Token ids of a question. A plain prompt gets what the tokenizer begins a sequence with."""
        if "prompt" in question:
            return list(self._tokenizer(question["prompt"])["input_ids"])
        text = self._tokenizer.apply_chat_template(
            question["messages"],
            chat_template=self._template,
            tokenize=False,
            add_generation_prompt=True,
            date_string=DATE,
        )
        # The template has written the special tokens that it wants.
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _ends(self) -> set[Any]:
        """The ids at which a reply ends."""
        ends = self._model.generation_config.eos_token_id
        return set(ends if isinstance(ends, list) else [ends if ends is not None else self._tokenizer.eos_token_id])

    @torch.inference_mode()
    def _reply(self, asked: Sequence[list[int]]) -> list[tuple[str, bool]]:
        """Per row, the text written and whether it came to its end."""
        ends = self._ends()
        pad = self._tokenizer.pad_token_id if self._tokenizer.pad_token_id is not None else next(iter(ends))
        width = max(map(len, asked))
        # Left padding: every row ends where its reply begins.
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in asked], device=self._model.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in asked], device=self._model.device)
        written = self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=self.format.tokens,
            do_sample=False,
            pad_token_id=pad,
        )[:, width:].tolist()
        return [
            (str(self._tokenizer.decode(row, skip_special_tokens=True)), any(token in ends for token in row))
            for row in written
        ]
