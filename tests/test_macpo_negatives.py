"""What MACPO's agents learn away from."""

from __future__ import annotations

from test_macpo import recipe

from choreo.methods.macpo.agents import MacpoAgents
from choreo.methods.macpo.answers import AnswerWriter, negatives, weak_negatives
from choreo.methods.macpo.split import split_prompts


def test_negative_agents_may_write_at_a_temperature_of_their_own(tiny_folder):
    greedy = recipe(tiny_folder, writing={"negative_temperature": 0.0, "answer_tokens": 8})
    loaded = MacpoAgents.load(greedy)
    prompts, student, teacher = split_prompts(greedy).unlabelled, loaded.student, loaded.teachers[0]
    writer = AnswerWriter(greedy, loaded, prompts)
    contexts = [student.context(prompt) for prompt in prompts]
    keys = [("other", i) for i in range(len(prompts))]
    likeliest = [turn.ids for turn in student.write("student-", contexts, keys, tokens=8, temperature=0.0)]
    assert negatives(writer, 1, student) == [ids for (ids,) in weak_negatives(writer)] == likeliest
    sampled = [turn.ids for turn in writer.write(1, teacher, teacher.negative, "again")]
    assert sampled != likeliest  # as positives are, and as negatives are by default
    same = AnswerWriter(recipe(tiny_folder, writing={"answer_tokens": 8}), loaded, prompts)
    assert negatives(same, 1, student) != likeliest
