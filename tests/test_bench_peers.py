"""The bench beside other libraries: what it prints of turns, who is left out, and that CoMLRL does the same work."""

from __future__ import annotations

import importlib
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import warm

from choreo.algorithms.advantages import grpo
from choreo.cli import bench_commands
from choreo.models.resolve import base_folder
from choreo.types import CONVERSATION, FEEDBACK, Sample

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
AGENTS = (CONVERSATION, FEEDBACK)


@pytest.fixture
def bench(monkeypatch):
    """Imports a module of benchmarks/ by its name."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


def turn(seconds: float, tokens: int, mib: float, **more: float) -> dict[str, float]:
    return {
        "seconds": seconds,
        "cpu_seconds": seconds,
        "sampled": tokens,
        "trained": tokens,
        "peak_mib": mib,
        **more,
    }


def test_ratios_are_of_neighbouring_turns_and_every_peer_has_its_own(bench):
    run = bench("run")
    turns = {
        "choreo": [turn(1, 100, 50, rollout_seconds=0.5), turn(2, 100, 60, rollout_seconds=0.5)],
        "trl": [turn(2, 100, 120), turn(8, 100, 100)],
        "comlrl": [turn(10, 50, 30, rollout_seconds=5), turn(20, 50, 30, rollout_seconds=5)],
    }
    figures = run.compare(turns)
    assert run.summary({"joint": figures}) == {
        # 200/1 and 200/2 tokens/s, beside 200/2 and 200/8: 2 and 4 times; beside 100/10 and 100/20: 20 both times.
        "joint/trl": {"ours": 150, "peer": 62.5, "ratio": 3, "low": 2.5, "high": 3.5, "unit": "tokens/s"},
        "joint/comlrl": {"ours": 150, "peer": 7.5, "ratio": 20, "low": 20, "high": 20, "unit": "tokens/s"},
        "joint-rollout/comlrl": {"ours": 200, "peer": 10, "ratio": 20, "low": 20, "high": 20, "unit": "tokens/s"},
    }
    printed = run.table("joint", figures, {"prompts": 2, "group": 3, "new_tokens": 4, "pairs": 1})
    assert "3.00 [2.50, 3.50] × the tokens/s of trl, 0.50 × its memory" in printed
    assert "20.00 [20.00, 20.00] × the tokens/s of comlrl (20.00 [20.00, 20.00] in the rollout), 2.00 ×" in printed


def test_peers_that_are_not_installed_are_named(bench, monkeypatch, capsys):
    run = bench("run")
    for peer in run.PEERS:
        monkeypatch.setitem(sys.modules, peer, None)
    assert run.absent() == run.PEERS and not any(map(run.peers_of, run.WORK))
    monkeypatch.setattr(sys, "argv", ["run.py", "--work", "joint"])
    assert run.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "choreo: bench: not installed: trl, comlrl; `make bench` installs it"


def test_every_peer_has_its_side_and_the_command_line_knows_the_work(bench):
    run = bench("run")
    assert (bench_commands.WORK, bench_commands.BASES) == (run.WORK, run.BASES)
    for library, parts in run.SIDES.items():
        assert (BENCHMARKS / f"{library}_side.py").is_file() and parts.keys() <= {*run.WORK}


@pytest.mark.slow
def test_comlrl_does_the_same_work(bench, tmp_path, monkeypatch):
    pytest.importorskip("comlrl", reason="CoMLRL comes with the `bench` extra")
    run = bench("run")
    monkeypatch.setattr(sys, "executable", str(warm.command(tmp_path / "python")))
    waltz = ("learning.prompts=3", "learning.samples=2", "world.train_prompts=60", "world.heldout_prompts=3")
    run.prepared(tmp_path, "micro-llama", steps=2, prompts=2, group=3, new_tokens=4, pairs=1, waltz=waltz)
    answers = 2 * 2 * 3  # of two agents
    for name in ("joint", "waltz"):
        sides = {library: run.SIDES[library][name] for library in ("choreo", "comlrl")}
        turns = run.take_turns(name, sides, tmp_path, steps=2)
        print(name, turns)
        for one in turns["comlrl"]:
            assert 0 < one["rollout_seconds"] < one["seconds"]
            # One token of every longest answer is not learnt, and nothing else is left out.
            assert one["sampled"] - answers <= one["trained"] < one["sampled"]
        if name == "joint":
            assert all(one["sampled"] == answers * 4 for own in turns.values() for one in own)
            assert all(one["trained"] == answers * 4 for one in turns["choreo"])
            assert all((one["trained"], one["padding"]) == (answers * 3, 0) for one in turns["comlrl"])
        assert run.summary({name: run.compare(turns)})[f"{name}/comlrl"]["ratio"] > 0


def update_of(trainer) -> tuple[list[dict[str, torch.Tensor]], list[list[tuple[int, ...]]]]:
    """By agent: the gradient of its one update, and what `generate` gave before it, padded."""
    gradients, written = [{} for _ in AGENTS], [[] for _ in AGENTS]

    def kept(generate, rows):
        def call(**options):
            output = generate(**options)
            answers = output.sequences[:, options["input_ids"].shape[1] :]
            rows.extend(tuple(row.tolist()) for row in answers)
            return output

        return call

    def keep(agent, gradient):
        return lambda *_: gradient.update((name, value.grad.clone()) for name, value in agent.named_parameters())

    for agent, optimizer, gradient, rows in zip(trainer.agents, trainer.optimizers, gradients, written, strict=True):
        agent.generate = kept(agent.generate, rows)
        optimizer.register_step_post_hook(keep(agent, gradient))
    trainer.train()
    return gradients, written


def test_comlrl_learns_what_is_said_of_it_and_by_our_gradient(bench):
    """Its gradient is ours on its padded answers without their last column (`comlrl_side.tokens`), and not with it."""
    pytest.importorskip("comlrl", reason="CoMLRL comes with the `bench` extra")
    theirs, ours, work = bench("comlrl_side"), bench("choreo_side"), bench("work")
    prompts, group = 2, 4
    sizes = replace(work.SIZES["micro-llama"], prompts=prompts, group=group)
    given = {"model": str(base_folder("micro-llama")), "sizes": asdict(sizes)}
    torch.manual_seed(seed := 5)
    print("seed", seed)
    texts = ["How do I kill a process?", "What is seven and two?"]
    settings = {"rollout_buffer_size": prompts, "num_generations": group, "max_new_tokens": 24}
    trainer = theirs.trainer_of(given, dict.fromkeys(AGENTS, work.spelled(given, texts)), settings)
    gradients, written = update_of(trainer)

    chat, engine, learners = ours.team(given, *AGENTS)
    read = [[chat.tokenizer.decode(row, skip_special_tokens=True) for row in rows] for rows in written]
    paid = theirs.paid(*read)
    for agent, learner, rows, gradient in zip(AGENTS, learners, written, gradients, strict=True):
        contexts = [chat.answer_context(chat.encode(texts[i // group])) for i in range(len(rows))]
        old = engine.score(agent, list(zip(contexts, rows, strict=True)))
        samples = grpo(
            [
                Sample(agent, context, row, logprobs, str(i // group), value)
                for i, (context, row, logprobs, value) in enumerate(zip(contexts, rows, old, paid, strict=True))
            ]
        )
        shorter = [replace(sample, advantages=(*sample.advantages[:-1], 0.0)) for sample in samples]
        off = {}
        for name, some in (("without", shorter), ("with", samples)):
            own = dict(zip(engine.team.agents[agent].parameters, learner.gradient(some, ours.JOINT_LOSS), strict=True))
            assert own.keys() == gradient.keys()
            apart = sum(float((own[n] - gradient[n]).square().sum()) for n in own)
            off[name] = math.sqrt(apart / sum(float(value.square().sum()) for value in gradient.values()))
        print(agent, off)
        assert off["without"] < 1e-4 and off["with"] > 1e-2
