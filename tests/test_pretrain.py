"""`choreo world pretrain`: a base that was stopped on the way becomes the base it would have become."""

from __future__ import annotations

import pytest

from choreo.errors import BadInput, Interrupted
from choreo.microworld import pretrain


def test_stopped_and_gone_on_with_is_bit_identical(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "REPORT_EVERY", 1)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    pretrain.pretrain(whole, "nano-llama", steps=4, tokens=512)

    def stop(figures):
        if figures["step"] == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        pretrain.pretrain(stopped, "nano-llama", steps=4, tokens=512, report=stop)
    assert (stopped / pretrain.STATE).is_file()
    pretrain.pretrain(stopped, resume=True)
    assert {f.name: f.read_bytes() for f in stopped.iterdir()} == {f.name: f.read_bytes() for f in whole.iterdir()}
    with pytest.raises(BadInput, match="no pretraining to go on with"):
        pretrain.pretrain(whole, resume=True)
