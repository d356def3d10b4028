"""lm-eval on a pair behind a server: a local task in its own form, answers with feedback, and what is refused."""

from __future__ import annotations

import json

import pytest
from stub_endpoint import Say, Stub, chat

lm_eval = pytest.importorskip("lm_eval", reason="needs choreo-rl[lm-eval]")

from choreo.errors import BadInput  # noqa: E402

pytestmark = pytest.mark.slow

FINE = '{"reasoning": "", "unsafe": false, "overrefuse": false, "feedback": ""}'
WRONG = '{"reasoning": "", "unsafe": false, "overrefuse": true, "feedback": "Give the number."}'


def script(body: dict, n: int) -> Say:
    *_, last = body["messages"]
    if body["messages"][0]["role"] == "system":
        return Say(chat(WRONG if "I would rather not" in last["content"] else FINE))
    if "With this in mind" in last["content"]:
        return Say(chat("4\n\nand more"))
    return Say(chat("I would rather not." if "2 + 2" in last["content"] else "6"))


def test_a_local_task_is_put_to_the_pair(tmp_path):
    from lm_eval.tasks import TaskManager

    from choreo.integrations.lm_eval_model import Agents, cut

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
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)
    with Stub(script) as stub:
        found = {}
        for rounds in (0, 1):
            agents = Agents(f"a@{stub.url}", rounds=rounds, folder=tmp_path)
            result = lm_eval.simple_evaluate(agents, tasks=["sums"], task_manager=tasks, bootstrap_iters=0)
            found[rounds] = result["results"]["sums"]["exact_match,none"]
    assert found == {0: 0.5, 1: 1.0} and agents.failed == 0
    assert cut("a b c", ["c", "b"]) == "a " and cut("a", []) == "a"
    with pytest.raises(BadInput, match="log-probabilities"):
        agents.loglikelihood([])
