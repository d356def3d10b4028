"""What the README and docs/ say is run as it stands.

A block with title="NAME" is a file of that name. A bash block after the line `<!-- run -->` is executed, and a python
block without a title too, both in a folder of the page's own, in order. Of every other bash block the commands of
choreo are parsed. A block that begins with `# needs: …` takes a server or another program: it is parsed or compiled.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import warm

import choreo
from choreo.cli.parser import parser

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
FENCE = re.compile(r"(<!-- run -->\n)?^```(\w+)(?: title=\"(.*?)\")?\n(.*?)^```$", re.S | re.M)

# What keeps a training of minutes to seconds. Everything else of a page is run as it is written.
SMALL = ["learning.steps=2", "learning.prompts=3", "world.train_prompts=60", "world.heldout_prompts=2"]


class Block(NamedTuple):
    language: str
    title: str
    text: str
    run: bool

    @property
    def needs(self) -> bool:
        return self.text.startswith("# needs: ")


def blocks(page: Path) -> list[Block]:
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [Block(language, title, text, bool(run)) for run, language, title, text in found]


def commands(text: str) -> list[list[str]]:
    """The arguments of every choreo command in a shell script, without redirections."""
    text = re.sub(r"<<'END'.*?^END$", "", text.replace("\\\n", " "), flags=re.S | re.M)
    lines = re.findall(r"^(?:[A-Z_]+=\S* )*choreo (.*)$", text, re.M)
    found = [shlex.split(line.split(" > ")[0].split(" >> ")[0], comments=True) for line in lines]
    return found


def test_the_readme_takes_four_minutes():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_of_a_page_is_one(page):
    for block in blocks(page):
        if block.language == "bash":
            for arguments in commands(block.text):
                parser().parse_args(arguments)
        if block.language == "python":
            compile(block.text, str(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_to_a_file_leads_to_one(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http", "#")):
            assert (page.parent / target.split("#")[0]).exists(), target


RUN = [page for page in PAGES if page.name != "end-to-end.md" and any(b.run or b.title for b in blocks(page))]
PYTHON = [page for page in PAGES if any(b.language == "python" and not (b.title or b.needs) for b in blocks(page))]


def bash(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a script in `folder`/mine, with `choreo` and `python` as forks of the warm process."""
    tools, mine = folder / "bin", folder / "mine"
    tools.mkdir()
    mine.mkdir(exist_ok=True)
    warm.command(tools / "choreo", "-m", "choreo.cli")
    warm.command(tools / "python")
    where = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(["bash", "-c", f"set -eu\n{script}"], cwd=mine, env=where, **streams) as shell:
        try:
            out, err = shell.communicate(timeout=1500)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)  # a page that broke off leaves its judge behind
    return subprocess.CompletedProcess("bash", shell.returncode, out, err)


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=[page.stem for page in RUN])
def test_a_guide_runs_as_it_is_written(page, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    for block in blocks(page):
        if block.title:
            (mine / block.title).write_text(block.text, encoding="utf-8")
    script = "\n".join(block.text for block in blocks(page) if block.run)
    assert script.strip(), "files that nothing uses"
    done = bash(script, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("page", PYTHON, ids=[page.stem for page in PYTHON])
def test_the_python_of_a_page_runs_as_it_is_written(page, tmp_path):
    wanted = [b.text for b in blocks(page) if b.language == "python" and not (b.title or b.needs)]
    program = "\n".join(wanted)
    small = program.replace('choreo.train("waltz", ', f'choreo.train("waltz", overrides={SMALL!r}, ')
    assert program.count("choreo.train(") == small.count("overrides=")
    done = warm.run(["-c", small], cwd=tmp_path)
    assert done.returncode == 0 and done.stdout, done.stderr[-3000:]


@pytest.mark.slow
def test_your_own_model_data_and_judge_from_a_clean_folder_to_an_export(tmp_path):
    setup, *steps = [block.text for block in blocks(ROOT / "docs" / "end-to-end.md") if block.language == "bash"]
    assert "make " in setup and len(steps) == 8  # what installs choreo is run by `make test` itself
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    done = bash("\n".join(steps).replace("8321", port), tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "format rate" in done.stdout
    mine, pair = tmp_path / "mine", {"conversation", "feedback"}
    for run, agents in (("run", pair), ("run-two", pair), ("run-macpo", {"student+"})):
        assert (mine / run / "report.html").is_file()
        assert agents <= {path.name for path in (mine / run.replace("run", "exported")).iterdir()}
    summary = json.loads((mine / "run" / "summary.json").read_text())
    bill = summary["judging"]["rubric/stand-in"]
    assert bill["judged"] == bill["rows"] > 0 and summary["systems"]["waltz"]["asr"]["n"] > 0


def test_the_page_of_the_library_names_all_that_it_has():
    page = (ROOT / "docs" / "api" / "choreo.md").read_text(encoding="utf-8")
    assert set(choreo.__all__) <= {*re.findall(r"`(\w+)`", page), "__version__"}
