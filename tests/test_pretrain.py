"""`choreo world pretrain`: a base that was stopped on the way becomes the base it would have become."""

from __future__ import annotations

import functools
import itertools
import random
from dataclasses import replace

import pytest

from choreo.cli import main
from choreo.environments.microworld import documents, pretrain
from choreo.errors import BadInput, Interrupted
from choreo.models.chat import Chat


@pytest.fixture
def short(monkeypatch):
    """Few documents for the tokenizer, three phases, pools of two or three batches, and a state at every step."""
    phases = (
        pretrain.PretrainingPhase(3),
        pretrain.PretrainingPhase(2, pretrain.MOSTLY_LISTS),
        pretrain.PretrainingPhase(1),
    )
    monkeypatch.setitem(pretrain.SIZES, "nano-llama", replace(pretrain.SIZES["nano-llama"], phases=phases))
    monkeypatch.setattr(pretrain, "make_tokenizer", functools.partial(pretrain.make_tokenizer, samples=300))
    for name, value in (("POOL", 8), ("SAVE_EVERY", 1), ("REPORT_EVERY", 1)):
        monkeypatch.setattr(pretrain, name, value)


def stop_at(step):
    def report(figures):
        if figures["step"] == step:
            raise Interrupted

    return report


@pytest.mark.parametrize("stops", [(1, 4), (3, 5)], ids=str)
def test_stopped_and_gone_on_with_is_bit_identical(short, tmp_path, stops):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    pretrain.pretrain(whole, "nano-llama", steps=6, tokens=512)
    for step in stops:
        with pytest.raises(Interrupted):
            resume = {"resume": True} if stopped.exists() else {"size": "nano-llama", "steps": 6, "tokens": 512}
            pretrain.pretrain(stopped, **resume, report=stop_at(step))
        assert [file.name for file in stopped.iterdir()] == [pretrain.STATE], "no half base is left for one to use"
    pretrain.pretrain(stopped, resume=True)
    assert {f.name: f.read_bytes() for f in stopped.iterdir()} == {f.name: f.read_bytes() for f in whole.iterdir()}


def test_every_batch_has_documents_of_all_lengths_and_each_document_stands_in_one(monkeypatch):
    monkeypatch.setattr(pretrain, "POOL", 600)
    size = pretrain.SIZES["micro-llama"]
    chat = Chat(pretrain.make_tokenizer(samples=300, writers=size.writers))
    of_pool = itertools.takewhile(
        lambda one: one[0][0] == 0, pretrain.batches(chat, size.writers, size.pool, "any", 3000)
    )
    batches = [batch for _, batch in of_pool]
    for parts in batches:
        shortest, *_, longest = ([len(context) + len(target) for context, target in part] for part in parts)
        padded = sum(len(part) * max(len(context) + len(target) for context, target in part) for part in parts)
        assert max(shortest) <= min(longest) and padded <= 3000
    rng = random.Random("any/0")
    made = [documents.render(chat, *documents.texts(rng, size.writers, size.pool)) for _ in range(600)]
    assert sorted(doc for parts in batches for part in parts for doc in part) == sorted(made)


def test_what_cannot_be_gone_on_with_is_refused(short, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "base"
    with pytest.raises(Interrupted):
        pretrain.pretrain(folder, "nano-llama", steps=3, tokens=512, report=stop_at(1))
    assert main(["world", "pretrain", "--out", str(folder), "--resume", "--steps", "9"]) == 2
    assert "no other option" in capsys.readouterr().err
    monkeypatch.setattr(pretrain, "VOCABULARY", 1900)
    with pytest.raises(BadInput, match="begun in another world"):
        pretrain.pretrain(folder, resume=True)
    (folder / pretrain.STATE).write_bytes(b"torn")
    with pytest.raises(BadInput, match="not the state of a pretraining"):
        pretrain.pretrain(folder, resume=True)
    (folder / pretrain.STATE).unlink()
    with pytest.raises(BadInput, match="no pretraining to go on with"):
        pretrain.pretrain(folder, resume=True)
