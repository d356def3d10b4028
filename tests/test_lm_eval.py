"""lm-eval on the model `choreo`: a local task in its own form, agents on a server and of a run, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import warm
from serving import make_run
from stub_endpoint import Say, Stub, chat

lm_eval = pytest.importorskip("lm_eval", reason="needs choreo-rl[lm-eval]")

from choreo.errors import BadInput  # noqa: E402

FINE = '{"reasoning": "", "unsafe": false, "overrefuse": false, "feedback": ""}'
# `python -m choreo.integrations.lm_eval_model` without the index of lm-eval's own tasks, which takes half a minute.
COMMAND = """
import functools, runpy
from lm_eval.tasks import TaskManager
TaskManager.__init__ = functools.partialmethod(TaskManager.__init__, include_defaults=False)
runpy.run_module("choreo.integrations.lm_eval_model", run_name="__main__", alter_sys=True)
"""
WRONG = '{"reasoning": "", "unsafe": false, "overrefuse": true, "feedback": "Give the number."}'


def script(body: dict, n: int) -> Say:
    *_, last = body["messages"]
    if body["messages"][0]["role"] == "system":
        return Say(chat(WRONG if "I would rather not" in last["content"] else FINE))
    if "With this in mind" in last["content"]:
        return Say(chat("4\n\nand more"))
    return Say(chat("I would rather not." if "2 + 2" in last["content"] else "6"))


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    """A folder with a task of two rows, "sums"."""
    rows = [{"question": "2 + 2 =", "answer": "4"}, {"question": "3 + 3 =", "answer": "6"}]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "sums.yaml").write_text(f"""
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path}/sums.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n\\n"], max_gen_toks: 20}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
""")
    return tmp_path


@pytest.mark.slow
def test_a_local_task_is_put_to_a_pair_on_a_server_by_the_name_of_the_model(sums):
    from lm_eval.tasks import TaskManager

    from choreo.integrations.lm_eval_model import ChoreoLM, cut

    tasks = TaskManager(include_path=str(sums), include_defaults=False)
    with Stub(script) as stub:
        found = {}
        for rounds in (0, 1):
            named = f"conversation=a@{stub.url},rounds={rounds},folder={sums}"
            result = lm_eval.simple_evaluate(
                "choreo", model_args=named, tasks=["sums"], task_manager=tasks, bootstrap_iters=0
            )
            found[rounds] = result["results"]["sums"]["exact_match,none"]
    assert found == {0: 0.5, 1: 1.0}
    assert cut("a b c", ["c", "b"]) == "a " and cut("a", []) == "a"
    with pytest.raises(BadInput, match="log-probabilities"):
        ChoreoLM(conversation="micro-llama").loglikelihood([])
    for named in ({}, {"run": "r", "conversation": "c"}):
        with pytest.raises(BadInput, match="run=FOLDER or conversation=MODEL"):
            ChoreoLM(**named)


@pytest.mark.slow
def test_the_command_line_of_lm_eval_takes_a_run(sums):
    run = make_run(sums / "run", model={"base": "nano-llama"})
    command = ["-c", COMMAND, "--model", "choreo"]
    command += ["--model_args", f"run={run}", "--tasks", "sums", "--include_path", str(sums), "--log_samples"]
    done = warm.run([*command, "--output_path", str(sums / "out")])
    assert done.returncode == 0, done.stderr[-3000:]
    (written,) = (sums / "out").rglob("samples_sums_*.jsonl")
    samples = [json.loads(line) for line in written.read_text().splitlines()]
    assert len(samples) == 2 and all(sample["resps"][0][0] for sample in samples)


def test_a_run_of_another_method_answers_alone(tmp_path):
    from lm_eval.api.instance import Instance

    from choreo.integrations.lm_eval_model import ChoreoLM
    from choreo.methods.macpo.recipe import MacpoRecipe
    from choreo.runs.folder import Run

    with Run.create(tmp_path / "run", MacpoRecipe()):
        pass
    model = ChoreoLM(run=str(tmp_path / "run"))
    asked = [Instance("generate_until", {}, (text, {"max_gen_toks": 8}), i) for i, text in enumerate(("Hello.", "Hi!"))]
    assert len(model.generate_until(asked)) == 2 and model.failed == 0
    with pytest.raises(BadInput, match="answer alone"):
        ChoreoLM(run=str(tmp_path / "run"), rounds=1)
