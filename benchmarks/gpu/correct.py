"""Is choreo right on this device? Its own properties, in float32 and bfloat16, as a table; exit code 1 where one fails.

    python benchmarks/gpu/correct.py                 on the card
    python benchmarks/gpu/correct.py --device cpu

log π      scored by choreo, packed, against float64 on the CPU
ratio      of an update on samples that its policy has just written: 1. Of the same samples after a step it is not,
           which shows that the check can fail
gradient   of a clipped policy loss and of DPO, against autograd in float64 on the CPU, loss spelt out
resume     a WaltzRL run that was killed (SIGKILL) in the middle of a step and resumed, against an unbroken one: every
           figure, game, weight and moment, bit for bit

No device computes exactly. So each error is compared with the error of plain PyTorch there: transformers' model, in
the same dtype, on the same device, one sequence at a time, weights laid over by hand. `off` may be FACTOR times that.

On a card, PyTorch's fastest kernels add up in any order. So `resume` asks it for deterministic algorithms and its plain
attention; what remains of the other kind is named. With the usual kernels the two runs are compared too, but that row
is told and not judged: nothing there promises equal bits.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before cuBLAS starts: its sums have one order then
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import torch  # noqa: E402
from run import versions  # noqa: E402
from speed import machine  # noqa: E402
from torch import Tensor  # noqa: E402
from work import Sizes, llama, random_llama  # noqa: E402

from choreo import config  # noqa: E402
from choreo.engine import checkpoint  # noqa: E402
from choreo.engine.agent import Team  # noqa: E402
from choreo.engine.learner import Learner  # noqa: E402
from choreo.engine.local import LocalEngine  # noqa: E402
from choreo.engine.losses import DPOLoss, PolicyLoss  # noqa: E402
from choreo.engine.policies import LowRank  # noqa: E402
from choreo.engine.requests import Request  # noqa: E402
from choreo.methods.waltz.trainer import train  # noqa: E402
from choreo.runs.callbacks import Callback  # noqa: E402
from choreo.runs.folder import Run, checkpoints  # noqa: E402
from choreo.runs.progress import Progress  # noqa: E402
from choreo.types import Sample  # noqa: E402

SEED, AGENT = 11, "conversation"
DTYPES = ("float32", "bfloat16")
FACTOR = 3.0
CLIP, BETA = 0.3, 0.1
# Adapters are laid over a narrow base in float32, and stand beside every other (choreo/engine/agent.py, BESIDE).
WIDTHS, VOCABULARY = {"narrow": 64, "wide": 256}, 1024
WAYS = {
    "adapters": {"train": "lora", "rank": 4, "alpha": 8.0},
    "adapters, recomputed": {"train": "lora", "rank": 4, "alpha": 8.0, "recompute": True},
    "whole model": {"train": "full"},
}
STEPS, KILLED_IN = 3, 3
RECIPE = (
    f"seed={SEED}",
    "world.train_prompts=60",
    "world.heldout_prompts=3",
    "stages.stage1_share=0",
    f"learning.steps={STEPS}",
    "learning.prompts=3",
    "learning.samples=1",
    "protocol.answer_tokens=24",
    "protocol.feedback_tokens=48",
    "checkpoint_every=2",
)
CLOCKS = ("seconds", "tokens_per_second")


@dataclass(frozen=True)
class Row:
    """off, allowed: of `check` in `dtype`; allowed None is told and not judged. remark: what else there is to say."""

    check: str
    dtype: str
    what: str
    off: float
    allowed: float | None
    passed: bool
    remark: str = ""


def main() -> int:
    if sys.argv[1:2] == ["--run"]:
        continued(Path(sys.argv[2]), sys.argv[3], (Killer(),))
        return 1  # it should have been killed
    parser = argparse.ArgumentParser(description="Hold choreo's properties to a reference on this device.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: cuda")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("correct.py: PyTorch sees no CUDA card here; --device cpu runs without one", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="choreo-gpu-") as folder:
        rows = checked(args.device, Path(folder))
    place = torch.cuda.get_device_name() if args.device == "cuda" else "a CPU"
    failed = sum(not row.passed for row in rows)
    print(table(rows))
    print(f"{place}, torch {torch.__version__}, seed {SEED}: {len(rows)} rows, {failed} failed")
    if args.json:
        told = [asdict(row) | {"off": row.off if math.isfinite(row.off) else None} for row in rows]
        where = machine(args.device) | {"versions": versions("torch", "transformers")}
        date = datetime.now(UTC).isoformat(timespec="seconds")
        print(json.dumps({"schema": 1, "date": date, **where, "seed": SEED, "rows": told, "failed": failed}))
    return 1 if failed else 0


def checked(device: str, folder: Path) -> list[Row]:
    """Every check. The runs that are killed go on beside the others, in processes of their own."""
    kinds = ("deterministic", "usual") if device == "cuda" else ("usual",)
    begun = {
        (dtype, kind): begin(folder / f"{dtype}-{kind}", dtype, device, kind) for dtype in DTYPES for kind in kinds
    }
    rows: list[Row] = []
    for width in WIDTHS:
        base = small_base(folder / width, WIDTHS[width])
        for dtype in DTYPES:
            for way in WAYS:
                # A CPU takes long for a wide base, which differs from the other in this one place.
                if device == "cuda" or width == "narrow" or (dtype, way) == ("float32", "adapters"):
                    rows += computed(base, width, dtype, device, way)
    for (dtype, kind), killed in begun.items():
        rows.append(resumed(killed, folder / f"{dtype}-{kind}", dtype, device, kind))
    return rows


# ---- log-probabilities, ratios and gradients ----------------------------------------------------


def small_base(folder: Path, width: int) -> Path:
    """A random Llama whose weights bfloat16 has too, so that its copy in another dtype is the same model."""
    shape = llama(width, 2 * width, 2, 4, 2, VOCABULARY, tied=True) | {"initializer_range": 2 / math.sqrt(width) / 2}
    return random_llama(folder, Sizes("", 0, 0, 0, 0, 0, 0, dtype="bfloat16", shape=shape))


def computed(base: Path, width: str, dtype: str, device: str, way: str) -> list[Row]:
    """log π, ratio and gradients of one way to learn. All of them begin away from the base."""
    team = Team.load(base, (AGENT,), dtype=dtype, device=device, seed=SEED, **WAYS[way])
    disturb(team)
    exact, plain = Plain(base, team, torch.float64, "cpu"), Plain(base, team, getattr(torch, dtype), device)
    engine, name = LocalEngine(team, pad_id=0, end_id=1), f"{width} base, {way}"
    rng = random.Random(SEED)
    contexts = [tuple(rng.randrange(5, VOCABULARY) for _ in range(rng.randrange(3, 20))) for _ in range(3)]
    requests = [Request(context, (SEED, i, k)) for i, context in enumerate(contexts) for k in range(2)]
    written = engine.sample(AGENT, requests, max_new_tokens=10)
    turns = [(request.context, one.ids) for request, one in zip(requests, written, strict=True)]
    true = [value.tolist() for value in exact.logprobs(turns)]
    scored, by_hand = engine.score(AGENT, turns), [value.tolist() for value in plain.logprobs(turns)]
    usual = apart(by_hand, true)
    rows = [judged("log π", dtype, name, apart(scored, true), usual)]

    samples = [
        Sample(AGENT, context, ids, one.logprobs, "", 1.0, advantages=(1.0,) * len(ids))
        for (context, ids), one in zip(turns, written, strict=True)
    ]
    learner = Learner(team, AGENT, lr=1e-2, micro_tokens=150)
    before = {key: value.detach().clone() for key, value in team.agents[AGENT].parameters.items()}
    fresh, stale = (learner.update(samples, PolicyLoss())["ratio"] for _ in range(2))
    with torch.no_grad():
        for key, value in team.agents[AGENT].parameters.items():
            value.copy_(before[key])
    # Both sides of the ratio are off by rounding.
    row = judged("ratio", dtype, name, fresh, 2 * usual)
    seen = stale > 10 * float(row.allowed or 0)
    rows.append(replace(row, passed=row.passed and seen, remark=f"{stale:.2g} after a step"))

    samples = disturbed_samples(turns, true, rng)
    pairs = list(zip(samples[::2], samples[1::2], strict=True))
    for what, units, loss, spelt in (
        ("policy", samples, PolicyLoss(CLIP), policy_loss),
        ("DPO", pairs, DPOLoss(BETA), dpo_loss),
    ):
        target = exact.gradient(samples, spelt)
        usual = distance(plain.gradient(samples, spelt), target)
        found = []
        for micro_tokens in (150, 10**6):
            gradient = Learner(team, AGENT, lr=0.0, micro_tokens=micro_tokens).gradient(units, loss)
            found.append(distance([one.double().cpu() for one in gradient], target))
        rows.append(judged("gradient", dtype, f"{name}, {what}", float(torch.tensor(found).max()), usual))
    return rows


def disturb(team: Team) -> None:
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for value in team.agents[AGENT].parameters.values():
            if value.dim() > 1:
                value += 0.02 * torch.randn(value.shape, generator=generator).to(value)


def judged(check: str, dtype: str, what: str, off: float, usual: float) -> Row:
    """usual: what plain PyTorch is off."""
    allowed = FACTOR * usual
    return Row(check, dtype, what, off, allowed, off <= allowed, f"plain PyTorch {usual:.2g}")


def apart(found: Sequence[Sequence[float]], true: Sequence[Sequence[float]]) -> float:
    """Mean |π_found / π_true − 1| over all tokens."""
    gaps = [
        abs(math.expm1(a - b)) for one, other in zip(found, true, strict=True) for a, b in zip(one, other, strict=True)
    ]
    return sum(gaps) / len(gaps)


def distance(found: Sequence[Tensor], target: Sequence[Tensor]) -> float:
    """|found − target| / |target|, of all parameters together."""
    gap = sum(float((a - b).square().sum()) for a, b in zip(found, target, strict=True))
    return math.sqrt(gap / sum(float(b.square().sum()) for b in target))


def disturbed_samples(turns: Sequence[tuple], true: Sequence[Sequence[float]], rng: random.Random) -> list[Sample]:
    """π_old lies on either side of the clip, and so far from where it cuts that rounding crosses none."""
    samples = []
    for (context, ids), values in zip(turns, true, strict=True):
        old = tuple(value + rng.choice((-0.6, -0.1, 0.1, 0.6)) for value in values)
        reference = tuple(value + rng.gauss(0, 0.1) for value in values)
        advantages = tuple(rng.gauss(0, 1) for _ in values)
        samples.append(Sample(AGENT, context, ids, old, "", 0.0, reference=reference, advantages=advantages))
    return samples


class Plain:
    """transformers' model in `dtype`, with the policy's weights laid over it by hand, one sequence at a time."""

    def __init__(self, base: Path, team: Team, dtype: torch.dtype, device: str):
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).to(device).eval().requires_grad_(False)
        self.policy, self.dtype, self.device = team.agents[AGENT], dtype, device
        wide = torch.promote_types(dtype, torch.float32)  # what is learnt is never in bfloat16
        self.leaves = {
            name: value.detach().to(device, wide).requires_grad_() for name, value in self.policy.parameters.items()
        }

    def weights(self) -> dict[str, Tensor]:
        """W + (α/r)·BA, or all weights."""
        policy = self.policy
        if not isinstance(policy, LowRank):
            return {name: value.to(self.dtype) for name, value in self.leaves.items()}
        laid = {}
        for layer in policy.targets:
            down, up = (self.leaves[f"{layer.name}.lora_{factor}"] for factor in "AB")
            weight = self.model.get_parameter(layer.weight)
            laid[layer.weight] = (weight.to(up) + policy.alpha / policy.rank * up @ down).to(self.dtype)
        return laid

    def logprobs(self, turns: Sequence[tuple]) -> list[Tensor]:
        """log π of the ids of each (context, ids)."""
        weights, found = self.weights(), []
        for context, ids in turns:
            given = {"input_ids": torch.tensor([[*context, *ids]], device=self.device), "use_cache": False}
            logits = torch.func.functional_call(self.model, weights, (), given).logits[0, len(context) - 1 : -1]
            logits = logits.to(torch.promote_types(self.dtype, torch.float32)).log_softmax(-1)
            found.append(logits.gather(1, torch.tensor(ids, device=self.device)[:, None])[:, 0])
        return found

    def gradient(self, samples: Sequence[Sample], loss: Callable[..., Tensor]) -> list[Tensor]:
        """float64, on the CPU, in the order of the policy's parameters."""
        values = self.logprobs([(sample.context, sample.ids) for sample in samples])
        gradient = torch.autograd.grad(loss(values, samples), list(self.leaves.values()))
        return [one.double().cpu() for one in gradient]


def policy_loss(values: Sequence[Tensor], samples: Sequence[Sample]) -> Tensor:
    total, count = values[0].new_zeros(()), 0
    for value, sample in zip(values, samples, strict=True):
        old, advantages = (torch.tensor(column).to(value) for column in (sample.logprobs, sample.advantages))
        ratio = (value - old).exp()
        total = total - torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages).sum()
        count += len(sample.ids)
    return total / count


def dpo_loss(values: Sequence[Tensor], samples: Sequence[Sample]) -> Tensor:
    gains = [
        (value - torch.tensor(sample.reference).to(value)).sum() for value, sample in zip(values, samples, strict=True)
    ]
    margins = torch.stack([BETA * (a - b) for a, b in zip(gains[::2], gains[1::2], strict=True)])
    return -torch.nn.functional.logsigmoid(margins).mean()


# ---- resume -------------------------------------------------------------------------------------


class Killer(Callback):
    """Kills this process when a step's figures are written and nothing else of it."""

    def on_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        if step == KILLED_IN:
            os.kill(os.getpid(), signal.SIGKILL)


def begin(path: Path, dtype: str, device: str, kind: str) -> subprocess.Popen[bytes]:
    """A run at `path`/killed, in a process that kills itself."""
    path.mkdir()
    recipe = config.load("waltz", [*RECIPE, f"model.dtype={dtype}", f"model.device={device}"])
    Run.create(path / "killed", recipe).close()
    Run.create(path / "whole", recipe).close()
    # Sums are taken in another order with another number of threads.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, str(Path(__file__).resolve()), "--run", str(path / "killed"), kind]
    return subprocess.Popen(command, env=environment, stderr=(path / "log").open("wb"))


def resumed(killed: subprocess.Popen[bytes], path: Path, dtype: str, device: str, kind: str) -> Row:
    """The killed run, resumed, against an unbroken one."""
    code, what = killed.wait(), f"WaltzRL, {kind} kernels" if device == "cuda" else "WaltzRL"
    run = path / "killed"
    # A wrapper around Python says 128 + 9.
    if (
        code not in (-signal.SIGKILL, 128 + signal.SIGKILL)
        or not checkpoints(run)
        or max(checkpoints(run)) >= KILLED_IN
    ):
        print((path / "log").read_text(errors="replace")[-4000:], file=sys.stderr)
        return Row("resume", dtype, what, math.inf, 0.0, False, f"the run was not killed in step {KILLED_IN}: {code}")
    remarks = continued(run, kind) | continued(path / "whole", kind)
    ends = [checkpoint.load(checkpoints(one)[STEPS]) for one in (run, path / "whole")]
    off = largest_gap(*ends)
    same = off == 0 and record(run) == record(path / "whole")
    judge = device == "cpu" or kind == "deterministic"
    said = "equal to the bit" if same else "games or figures differ" if off == 0 else "weights or moments differ"
    return Row(
        "resume", dtype, what, off, 0.0 if judge else None, same or not judge, "; ".join([said, *sorted(remarks)])
    )


def continued(path: Path, kind: str, callbacks: tuple[Callback, ...] = ()) -> set[str]:
    """Trains the run at `path` from its last checkpoint to its end. Returns which kernels had no deterministic form."""
    ordered = kind == "deterministic"
    sdp = (torch.backends.cuda.enable_flash_sdp, torch.backends.cuda.enable_mem_efficient_sdp)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        torch.use_deterministic_algorithms(ordered, warn_only=True)
        for enable in (*sdp, torch.backends.cuda.enable_cudnn_sdp):
            enable(not ordered)
        with Run.open(path) as run, Progress(callbacks) as progress:
            run.callbacks = callbacks
            train(run.recipe, run, progress)
    torch.use_deterministic_algorithms(False)
    for enable in (*sdp, torch.backends.cuda.enable_cudnn_sdp):
        enable(True)
    texts = [str(one.message) for one in heard]
    return {f"no order: {text.split()[0]}" for text in texts if "deterministic" in text}


def largest_gap(one: Any, other: Any) -> float:
    """The largest difference of a number in two saved states; infinite where their forms differ, or for NaN."""
    if isinstance(one, Tensor):
        gap = (one.double() - other.double()).abs().nan_to_num(nan=math.inf)
        return float(gap.max()) if gap.numel() else 0.0
    if isinstance(one, Mapping):
        if one.keys() != other.keys():
            return math.inf
        return max((largest_gap(value, other[key]) for key, value in one.items()), default=0.0)
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return math.inf
        return max((largest_gap(a, b) for a, b in zip(one, other, strict=True)), default=0.0)
    return 0.0 if one == other else math.inf


def record(path: Path) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Figures of every step but times, and every game."""
    figures = [{name: value for name, value in row.items() if name not in CLOCKS} for row in Run.read(path).metrics]
    return figures, {file.name: gzip.decompress(file.read_bytes()) for file in sorted(path.glob("episodes/*.gz"))}


def table(rows: Sequence[Row]) -> str:
    lines = [f"{'check':9} {'dtype':9} {'of':40} {'off':>9} {'allowed':>9}"]
    for row in rows:
        allowed = "–" if row.allowed is None else f"{row.allowed:.2g}"
        state = "" if row.passed else "FAILED  "
        lines.append(f"{row.check:9} {row.dtype:9} {row.what:40} {row.off:9.2g} {allowed:>9}  {state}{row.remark}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
