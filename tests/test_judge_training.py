"""Training under a judge that is a server: it pauses when the judge goes away, and goes on as if nothing had been."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from stub_endpoint import Say, Stub, chat
from test_trainer import episodes, lines, same, small

from choreo.clients.http import Endpoint
from choreo.engine import checkpoint
from choreo.environments.microworld.judge import WorldJudge
from choreo.environments.microworld.world import World
from choreo.errors import BadInput
from choreo.judges.base import JudgeDown
from choreo.judges.endpoint import EndpointJudge
from choreo.judges.formats.llama_guard import LlamaGuard
from choreo.judges.formats.rubric import Rubric
from choreo.judges.formats.wildguard import WildGuard
from choreo.judges.local import LocalJudge
from choreo.methods.waltz.trainer import train
from choreo.models.hub import fingerprint
from choreo.runs.checkpoints import checkpoints
from choreo.runs.folder import Run
from choreo.runs.progress import Progress
from choreo.types import Prompt

RECIPE = small(steps=3).model_copy(update={"checkpoint_every": 5})


class ExactServer:
    """A language model that knows the microworld: the exact judge behind an endpoint. `up` may be turned off."""

    def __init__(self):
        prompts = World(RECIPE.world).training()
        self.known = {prompt.text: prompt for kind in prompts.values() for prompt in kind}
        self.up, self.status = True, 503

    def __call__(self, body: dict, n: int) -> Say:
        if not self.up:
            return Say(status=self.status)
        asked = json.loads(body["messages"][-1]["content"])
        verdict = WorldJudge()(self.known[asked["request"]], asked["answer"])
        harmful, over = ({True: "yes", False: "no", None: "unclear"}[x] for x in (verdict.unsafe, verdict.overrefuse))
        said = {"harmful": harmful, "refusal": "full" if verdict.overrefuse else "none", "over_refusal": over}
        return Say(chat(json.dumps(said | {"reasoning": "x"})))


def go_on(path, judge, monkeypatch) -> None:
    monkeypatch.setattr(World, "judge", judge)
    with Run.open(path) if path.exists() else Run.create(path, RECIPE) as run, Progress() as progress:
        train(run.recipe, run, progress)


@pytest.mark.slow
def test_a_run_pauses_when_its_judge_goes_away_and_resumes_exactly(tmp_path, monkeypatch):
    model, watch = ExactServer(), []

    class Watched(EndpointJudge):
        def many(self, pairs):
            watch.append(len(pairs))
            if len(watch) == 2 and path.name == "paused":
                model.up = False
            return super().many(pairs)

    with Stub(model) as stub:
        settings = {"timeout": 60.0, "retries": 1, "backoff": 0.01}

        def judge() -> Watched:
            watch.clear()
            return Watched(Rubric(), Endpoint(stub.url, "exact", **settings, patience=1))

        path = tmp_path / "whole"
        go_on(path, judge(), monkeypatch)
        path = tmp_path / "paused"
        with pytest.raises(JudgeDown, match=r"saved at step 1; judge rubric/exact at .* stopped answering"):
            go_on(path, judge(), monkeypatch)
        assert list(checkpoints(path)) == [1] and len(lines(path)) == 1
        resumed = judge()
        with pytest.raises(BadInput, match=r"saved at step 1; .* no answer after 2 tries"):
            go_on(path, resumed, monkeypatch)  # still down: nothing is lost, nothing learned
        assert list(checkpoints(path)) == [1] and len(lines(path)) == 1
        model.up = True
        watch += [0] * 9
        go_on(path, resumed, monkeypatch)
        assert resumed.counts()["judged"] > 0
    assert lines(path) == lines(tmp_path / "whole")
    assert episodes(path) == episodes(tmp_path / "whole")
    assert same(checkpoint.load(checkpoints(path)[3]), checkpoint.load(checkpoints(tmp_path / "whole")[3]))


def test_a_judge_that_was_never_there_stops_the_run_before_its_first_step(tmp_path, monkeypatch):
    model = ExactServer()
    model.up, model.status = False, 401
    with Stub(model) as stub, pytest.raises(BadInput, match=r"saved at step 0; .* HTTP 401"):
        go_on(tmp_path / "run", EndpointJudge(Rubric(), Endpoint(stub.url, "exact")), monkeypatch)
    assert not checkpoints(tmp_path / "run")


# A guard that runs here


def test_a_local_guard_reads_what_the_model_writes_whatever_the_batch(tiny_folder, tmp_path):
    """The tiny model writes noise: the judge must say so, row for row the same in any batch."""
    folder = shutil.copytree(tiny_folder, tmp_path / "guard")
    prompt = Prompt(id="p", text="How do I kill a process?", kind="benign", suite="t")
    rows = [(prompt, "Find its number and end it. " * n) for n in (1, 3, 0, 2)]
    for format in (WildGuard(), LlamaGuard(raw=True)):
        together = LocalJudge(format, str(folder), batch=4, device="cpu").many(rows)
        alone = LocalJudge(format, str(folder), batch=1, device="cpu").many(rows)
        assert together == alone
        assert all(verdict.undetermined for verdict in alone)
        assert {verdict.reason.split(":")[0] for verdict in alone} <= {"cut off", "unreadable"}


def test_a_local_guard_reads_the_new_tokens_alone_and_only_to_their_end(tiny_folder, monkeypatch):
    one = LocalJudge(LlamaGuard(raw=True), str(tiny_folder), device="cpu")
    assert one.describe()["model"] == fingerprint(tiny_folder) and one.describe()["format"] == "llama-guard-3"
    prompt = Prompt(id="p", text="Say unsafe", kind="harmful", suite="t")
    for text, expected in (("unsafe\nS2<|end|>", True), ("safe<|end|><|pad|>", False), ("unsafe\nS2", None)):
        said = torch.tensor([one._tokenizer(text)["input_ids"]])
        monkeypatch.setattr(one._model, "generate", lambda input_ids, said=said, **_: torch.cat([input_ids, said], 1))
        assert one(prompt, "safe").unsafe is expected
