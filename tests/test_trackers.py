"""Trackers: what a run logs is read back from what their own libraries wrote, after a resume too."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator

import pytest
from test_macpo_studies import SHORT
from test_runs import episode

from choreo import config
from choreo.errors import BadInput
from choreo.experiment.tracking import tracking
from choreo.files import durable
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.runs.folder import Run
from choreo.runs.progress import Progress
from choreo.studies.shared.arms import Arm, Study
from choreo.trackers.base import require_trackers


def tracked_run(path, *to: str) -> None:
    """Five steps, the last of which is logged, lost by a kill, and logged again after a resume from step 4."""
    track = {"to": list(to), "project": "tests", "episodes_every": 2}
    recipe = config.make({"method": "waltz", "track": track})

    def steps(run, first, last):
        with run, Progress(tracking(run)) as progress:
            run.callbacks = progress.callbacks
            for step in range(first, last + 1):
                run.log(step, {"asr": step / 8, "kl/feedback": float("nan"), "stage": 1, "alarms": ["one", "two"]})
                run.save_episodes(step, [episode(0)], [{"feedback/dir": 0.65}])
                if step == 4:
                    run.checkpoint(step).mkdir()

    steps(Run.create(path, recipe), 1, 5)
    run = Run.open(path)
    assert run.rewind()[0] == 4
    steps(run, 5, 6)


def test_tensorboard_shows_every_step_once(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracked_run(tmp_path / "run", "tensorboard")
    events = EventAccumulator(str(tmp_path / "run" / "trackers" / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["train/asr", "train/stage", "train/alarms"]
    assert [(one.step, one.value) for one in events.Scalars("train/asr")] == [(n, n / 8) for n in range(1, 7)]
    assert {one.value for one in events.Scalars("train/alarms")} == {2.0}
    tables = events.Tensors("train/episodes/text_summary")
    assert [one.step for one in tables] == [2, 4, 6]
    text = tables[0].tensor_proto.string_val[0].decode()
    assert text.startswith("| prompt | kind |") and "¿cómo?" in text and "feedback/dir 0.65" in text


@pytest.mark.slow
def test_a_study_tracks_its_runs(tiny_folder, tmp_path):
    """Each run has a tracker of its own, which is closed before the next begins."""
    (tmp_path / "own.py").write_text(
        "class Lines:\n"
        "    LIBRARY = ''\n"
        "    def __init__(self, tracked):\n"
        "        self.folder = tracked.folder\n"
        "        self.steps = []\n"
        "    def log(self, step, figures):\n"
        "        self.steps.append(step)\n"
        "    def table(self, step, name, rows):\n"
        "        pass\n"
        "    def close(self):\n"
        "        self.folder.mkdir()\n"
        "        (self.folder / 'steps').write_text(repr(self.steps))\n"
    )
    agents = (f'agents.student="{tiny_folder}"', f'agents.teachers=["{tiny_folder}"]')
    settings = (*SHORT, *agents, f'track.to=["{tmp_path / "own.py"}:Lines"]')
    study = Study.open("mine", tmp_path / "study", (0, 1), settings, Progress())
    for run in study.train([Arm("naive-sft", "naive-sft")])["naive-sft"]:
        logged = [line["step"] for line in durable.read_lines(run / "metrics.jsonl")]
        assert logged and (run / "trackers" / "steps").read_text() == repr(logged)


def logged(data: bytes) -> Iterator[bytes]:
    """The records of one of wandb's files: LevelDB's log format, after seven bytes of its own."""
    place, whole = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # a block ends with what no header fits into
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield whole
            whole = b""


@pytest.mark.slow
def test_wandb_offline_has_the_steps_under_one_id(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    from wandb.proto import wandb_internal_pb2

    tracked_run(tmp_path / "run", "wandb")
    wandb.teardown()  # its own process may write the last block after `finish` has returned; this waits for its end
    found, ids = {}, set()
    files = sorted((tmp_path / "run").rglob("*.wandb"))
    for data in (data for file in files for data in logged(file.read_bytes())):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        ids |= {record.run.run_id} if record.WhichOneof("record_type") == "run" else set()
        row = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        if "train/asr" in row:
            found[json.loads(row["_step"])] = (
                json.loads(row["train/asr"]),
                any(key.startswith("train/episodes") for key in row),
            )
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert ids == {info["tracked"]} and len(files) == 2
    assert found == {n: (n / 8, n % 2 == 0) for n in range(1, 7)}


def test_trackio_has_the_steps(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    tracked_run(tmp_path / "run", "trackio")
    (name,) = SQLiteStorage.get_runs("tests")
    rows = SQLiteStorage.get_logs("tests", name)
    assert {row["step"]: row["train/asr"] for row in rows if "train/asr" in row} == {n: n / 8 for n in range(1, 7)}


def test_a_library_that_is_missing_and_a_name_that_is_none_are_said_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(BadInput, match=r"track.to: wandb: wandb is not installed \(pip install 'choreo-rl\[wandb\]'\)"):
        require_trackers(["wandb"])
    with pytest.raises(BadInput, match="tensorboard"):
        config.make({"method": "waltz", "track": {"to": ["tensorbored"]}})
    assert WaltzRecipe().track.to == ()
