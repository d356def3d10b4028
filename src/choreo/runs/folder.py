"""The run folder: all inputs, records and results of one experiment. A kill at any moment does not damage it.

recipe.toml    the recipe as run, defaults included: `choreo train RUN/recipe.toml` repeats it
run.json       versions, seeds, device, times of start and of each resume
metrics.jsonl  one line per step
rounds.json    MACPO: one entry per round, with every agent measured on held-out prompts. ceiling/: the run of the
               strong ceiling
warmup/        WaltzRL: the run of the feedback agent's warm start, with answers.jsonl.gz, what it learnt from
episodes/      step-000012.jsonl.gz: every sampled episode with its rewards by component
heldout/       SYSTEM.jsonl.gz, a system's judged games on held-out prompts; SYSTEM.json, its measures. MACPO: round-1/,
               the same of every policy after that round
checkpoints/   step-000010/: all that is needed to go on exactly
trackers/      what trackers wrote (`[track]`)
judgements.sqlite   replies of judges over an endpoint, so that no question is sent, or paid for, twice
dialogues.json, summary.json, report.html   written at the end
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import choreo
from choreo import config, parallel
from choreo.errors import BadInput
from choreo.files import durable
from choreo.files.json_file import read_array, read_object
from choreo.runs import shipped
from choreo.runs.callbacks import Callback, notify
from choreo.runs.checkpoints import checkpoints, step_named
from choreo.runs.episodes import earlier_of, episode_of, record
from choreo.runs.heldout import games_of, measured_file, write_measured
from choreo.runs.lock import LOCK, take
from choreo.types import Episode, Prompt

_CONTENTS = (
    "recipe.toml",
    "run.json",
    "metrics.jsonl",
    "rounds.json",
    "episodes",
    "heldout",
    "checkpoints",
    "ceiling",
    "warmup",
    "trackers",
    "outcomes.json",  # of MACPO until 0.1
    "dialogues.json",
    "summary.json",
    "report.html",
    "judgements.sqlite",
    "judgements.sqlite-shm",
    "judgements.sqlite-wal",
)
_PACKAGES = ("torch", "transformers", "tokenizers", "numpy")


class Run:
    """A run folder. One that is held for writing (`create`, `open`) has a lock, which keeps every other process out
    until `close`; what it holds can be read afterwards too."""

    def __init__(self, path: Path, recipe: config.Recipe, info: dict[str, Any], lock: int):
        """Use `create` or `open`. info: the content of run.json. lock: the descriptor of the lock file."""
        self.path, self.recipe, self.info = path, recipe, info
        self.callbacks: tuple[Callback, ...] = ()  # they hear of every line of metrics.jsonl
        self._lock = lock
        self._beside: dict[str, Any] = {}

    @classmethod
    def create(cls, path: str | Path, recipe: config.Recipe, overwrite: bool = False) -> Run:
        """A new run at `path`. Raises BadInput where something is there, unless it is a run and `overwrite` is set."""
        path = Path(path)
        lock, info = parallel.first(lambda: _new(path, recipe, overwrite))
        return cls(path, recipe, info, lock if parallel.rank() == 0 else -1)

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """The run at `path`, to go on with.

        Raises BadInput where there is none, where another process holds it, or where its recipe lacks a setting: the
        default may have changed since, and the run would go on with another recipe than it began with.
        """
        path = Path(path)
        lock, info = parallel.first(lambda: _begun(path))
        return cls(path, config.load(path / "recipe.toml"), info, lock if parallel.rank() == 0 else -1)

    @classmethod
    def read(cls, path: str | Path) -> Run:
        """The run at `path`, finished or not, to look at: no lock is taken. Raises BadInput where there is none."""
        path, info = Path(path), read_info(path)
        return cls(path, config.load(path / "recipe.toml"), info, -1)

    @property
    def finished(self) -> bool:
        return is_finished(self.path)

    @property
    def summary(self) -> dict[str, Any]:
        """summary.json: method, seed, and under "systems" the measures of every system. Raises BadInput where the run
        is not finished."""
        if not self.finished:
            raise BadInput(f"{self.path}: has no summary yet; it is not finished")
        return read_object(self.path / "summary.json")

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, one per training step."""
        return list(durable.read_lines(self.path / "metrics.jsonl"))

    @property
    def dialogues(self) -> list[dict[str, Any]]:
        """The held-out dialogues that the report shows; none before the run has come to its end."""
        file = self.path / "dialogues.json"
        return read_array(file) if file.is_file() else []

    @property
    def report(self) -> Path:
        """Where the report is, report.html."""
        return self.path / "report.html"

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, method={self.recipe.method!r}, finished={self.finished})"

    def close(self) -> None:
        """Lets other processes write this run."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def changed(self, threads: int, code: Mapping[str, str]) -> list[str]:
        """What has changed since the run began, such as "torch 2.12.0 became 2.13.0". A new run notes both arguments.

        threads: of PyTorch. Sums are divided over them, so another number of threads adds in another order. code: the
        digest of what each part of the user's own is made of, by its name in the recipe.
        """
        facts = {"threads": threads, "code": dict(code)}
        self.note(**{name: fact for name, fact in facts.items() if name not in self.info})
        then = {**self.info.get("versions", {}), "threads": self.info["threads"]}
        now = {**versions(), "threads": threads}
        names = [name for name in now if then.get(name, now[name]) != now[name]]
        edited = [name for name, digest in code.items() if self.info["code"].get(name, digest) != digest]
        if edited:
            self.note(edited=sorted({*self.info.get("edited", ()), *edited}))
        became = [f"{name} {then[name]} became {now[name]}" for name in names]
        return became + [f"the code of {name} changed" for name in edited]

    def note(self, **facts: Any) -> None:
        """Adds facts to run.json, such as device="cuda:0"."""
        self.info |= facts
        durable.write_json(self.path / "run.json", self.info)

    def log(self, step: int, figures: Mapping[str, Any]) -> None:
        """Appends the line of `step` (from 1, rising) to metrics.jsonl."""
        if parallel.rank() == 0:
            for file in self.path.glob(
                "heldout/*.*"
            ):  # of weights that are other ones now; a round's stay what they are
                file.unlink()
        figures, self._beside = {**self._beside, **figures}, {}
        durable.append_line(self.path / "metrics.jsonl", {"step": step, **figures})
        notify(self.callbacks, "on_metrics", step, figures)

    def log_beside(self, figures: Mapping[str, Any]) -> None:
        """Keeps figures for the next line of metrics.jsonl, where another part of the program writes that line."""
        self._beside = {**self._beside, **figures}

    def save_episodes(
        self,
        step: int,
        episodes: Sequence[Episode],
        rewards: Sequence[Mapping[str, float]],
        advantages: Sequence[Mapping[str, Sequence[float]]] = (),
    ) -> None:
        """Writes the episodes of `step`. rewards[i]: the rewards of episode i, by component. advantages[i]: of its
        turns that were learnt from, those of every id, by "agent/round"; without any, none are written."""
        given = zip(episodes, rewards, advantages or [{}] * len(episodes), strict=True)
        records = (record(episode, parts, tokens) for episode, parts, tokens in given)
        durable.write_lines(self.path / "episodes" / f"step-{step:06d}.jsonl.gz", records)
        notify(self.callbacks, "on_episodes", step, episodes, rewards)

    def save_measured(
        self, system: str, figures: Mapping[str, Any], episodes: Sequence[Episode], round: int | None = None
    ) -> None:
        """Keeps what was measured of a system on held-out prompts. round: as for `heldout.measured_file`."""
        file = measured_file(self.path, system, round)
        if parallel.rank() == 0:
            file.parent.mkdir(parents=True, exist_ok=True)
        write_measured(file, figures, episodes)

    def measured(self, system: str, prompts: Sequence[Prompt]) -> tuple[dict[str, Any], list[Episode]] | None:
        """What `save_measured` has kept of a system; None where it has nothing, or its games are on other prompts."""
        file = measured_file(self.path, system)
        if not file.is_file():
            return None
        named = {(prompt.id, prompt.turns): prompt for prompt in prompts}
        games = {
            (game["prompt"]["id"], (*earlier_of(game), ("user", game["prompt"]["text"]))): game
            for game in durable.read_lines(games_of(file))
        }
        if games.keys() != named.keys():
            return None
        return read_object(file), [episode_of(game, named[asked]) for asked, game in games.items()]

    def checkpoint(self, step: int) -> Path:
        """The folder for the checkpoint of `step`. Write it under another name, then rename it to this one."""
        return self.path / "checkpoints" / f"step-{step:06d}"

    def rewind(self) -> tuple[int, Path | None]:
        """Goes back to the last checkpoint and drops all later records. Returns its step and path, or (0, None).

        A resumed run repeats those steps, so its record equals that of a run that never stopped.
        """
        return parallel.first(self._rewind)

    def _rewind(self) -> tuple[int, Path | None]:
        step, path = max(checkpoints(self.path).items(), default=(0, None))
        if path is None and is_finished(self.path):
            raise BadInput(f"{self.path}: its checkpoints are gone, and training anew would erase its record")
        durable.cut_after(self.path / "metrics.jsonl", step)
        for file in self.path.glob("episodes/step-*.jsonl.gz"):
            if step_named(file) > step:
                file.unlink()
        return step, path

    def save_dialogues(self, dialogues: Iterable[Mapping[str, Any]]) -> None:
        """Writes the dialogues that the report shows."""
        durable.write_json(self.path / "dialogues.json", list(dialogues))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json; the run then counts as finished."""
        durable.write_json(self.path / "summary.json", summary)


def _new(path: Path, recipe: config.Recipe, overwrite: bool) -> tuple[int, dict[str, Any]]:
    """Makes the folder of a new run. Returns its lock, and what run.json holds."""
    if not overwrite:
        _refuse_if_used(path)
    durable.make_folder(path)
    if overwrite:
        _refuse_if_foreign(path)
        _refuse_if_read(path, recipe)
    lock = take(path)
    try:
        if overwrite:
            _clear(path)
        _refuse_if_used(path)  # another process may have been here before the lock
        info = {
            "schema": 1,
            "name": recipe.name,
            "method": recipe.method,
            "seeds": {"seed": recipe.seed, "split_seed": recipe.world.split_seed},
            "versions": versions(),
            "device": "cpu",
            "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
            "started": _now(),
            "resumed": [],
        }
        durable.write_json(path / "run.json", info)
        durable.write_text(path / "recipe.toml", config.to_toml(recipe))
        for folder in ("episodes", "checkpoints"):
            (path / folder).mkdir()
    except BaseException:
        os.close(lock)
        raise
    return lock, info


def _begun(path: Path) -> tuple[int, dict[str, Any]]:
    """Takes the lock of a run that was begun, and clears away what a kill left half done. Returns as `_new`."""
    info = read_info(path)
    config.load(path / "recipe.toml")
    if unset := config.unset(path / "recipe.toml"):
        raise BadInput(f"{path / 'recipe.toml'}: {unset[0]}: missing; an exact resume needs every setting")
    lock = take(path)
    for leftover in [*path.glob(f".*{durable.TEMPORARY}"), *path.glob(f"episodes/.*{durable.TEMPORARY}")]:
        leftover.unlink()
    for half in path.glob("checkpoints/.tmp-*"):
        shutil.rmtree(half)
    for folder in ("episodes", "checkpoints"):
        (path / folder).mkdir(exist_ok=True)
    info["resumed"] = [*info.get("resumed", []), _now()]
    durable.write_json(path / "run.json", info)
    return lock, info


def new_folder(name: str) -> Path:
    """runs/NAME-TIME, for a run or an evaluation that was given no folder."""
    slug = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run"
    return parallel.first(lambda: Path("runs") / f"{slug}-{time.strftime('%Y%m%d-%H%M%S')}")


def read_info(path: str | Path) -> dict[str, Any]:
    """run.json of the run at `path`. Raises BadInput when `path` is not a run folder."""
    path = Path(path)
    if not path.is_dir():
        known = "" if len(path.parts) > 1 else f"; pairs that ship with choreo: {', '.join(shipped.pairs())}"
        raise BadInput(f"{path}: no such run folder{known}")
    if not (path / "run.json").is_file():
        raise BadInput(f"{path}: not a run folder (it has no run.json)")
    return read_object(path / "run.json")


def is_finished(path: str | Path) -> bool:
    """Whether the run at `path` has a summary."""
    return (Path(path) / "summary.json").is_file()


def versions() -> dict[str, str]:
    """Versions of Python, choreo and the packages that affect the numbers, read without importing them."""
    found = {"python": platform.python_version(), "choreo": choreo.__version__}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _used(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.name != LOCK) if path.is_dir() else []


def _refuse_if_used(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise BadInput(f"{path}: is a file; a run needs a folder")
    if _used(path):
        raise BadInput(f"{path}: already exists; name another with --run, go on with --resume, or give --overwrite")


def _refuse_if_foreign(path: Path) -> None:
    """Raises BadInput where --overwrite would remove something that is not a run, as with a mistyped path."""
    used = _used(path)
    if used and "run.json" not in used:
        raise BadInput(f"{path}: not a run folder (it has no run.json), so --overwrite will not empty it")


def _refuse_if_read(path: Path, recipe: config.Recipe) -> None:
    """Raises BadInput where --overwrite would remove what the recipe reads, such as the warm start of this very run."""
    here = path.resolve()
    for name in _texts(recipe.model_dump()):
        named = Path(name)
        if named.is_absolute() and here in (named.resolve(), *named.resolve().parents) and named.exists():
            raise BadInput(f"{name}: the recipe reads it, and --overwrite would remove it")


def _texts(value: Any) -> Iterator[str]:
    """Every text in nested settings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | tuple | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(inner)


def _clear(path: Path) -> None:
    half = re.compile(rf"\..*{re.escape(durable.TEMPORARY)}")
    strangers = [name for name in _used(path) if name not in _CONTENTS and not half.fullmatch(name)]
    if strangers:
        raise BadInput(f"{path}: holds {strangers[0]!r}, which no run writes; move it before using --overwrite")
    for name in sorted(_used(path), key="run.json".__eq__):  # run.json last: a run half cleared is still a run
        entry = path / name
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
