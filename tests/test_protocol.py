"""The protocol at its boundary: a scripted engine says what it is told, and what was asked of it is checked."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from hashlib import blake2b

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from choreo.agents.local import LocalAgent
from choreo.engine.requests import Completion
from choreo.game.play import NOTHING, play
from choreo.judges.base import judge_episodes
from choreo.methods.waltz.systems import GUARD, ORACLE, block, oracle
from choreo.models.chat import END, PAD, ROLES, Chat
from choreo.text.feedback import parse_feedback, render_feedback
from choreo.types import AGENTS, CONVERSATION, FEEDBACK, Feedback, Limits, Prompt, TextTurn, Turn, Verdict

LIMITS = Limits(rounds=1, answer_tokens=8, feedback_tokens=96)
ASKS = Feedback("SECRET", True, False, "say less")
FINE = Feedback("SECRET", False, False, "nothing")


@pytest.fixture(scope="module")
def chat() -> Chat:
    """Byte-level BPE with a few merges: "the lamp" has one canonical spelling in ids and many others."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[PAD, END, *(f"<|{role}|>" for role in ROLES)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the lamp the lamp say less say more", render_feedback(FINE)] * 9, trainer)
    return Chat(PreTrainedTokenizerFast(tokenizer_object=tokenizer))


class Scripted:
    """Says script(agent, round, prompt id), as text or as ids, cut at the limit; remembers every batch."""

    version = 7

    def __init__(self, chat: Chat, script):
        self.chat, self.script, self.batches = chat, script, []
        self.end_id, self.pad_id, self.positions = chat.end_id, chat.pad_id, None

    def sample(self, agent, requests, *, max_new_tokens, temperature=1.0):
        self.batches.append((agent, list(requests), temperature))
        return [self._say(agent, request, max_new_tokens) for request in requests]

    def score(self, agent, pairs):
        raise AssertionError("playing needs no scores")

    def _say(self, agent, request, limit):
        said = self.script(agent, request.key[-1], request.key[-4])
        ids = (*self.chat.encode(said), self.end_id) if isinstance(said, str) else tuple(said)
        ids = ids[:limit]
        return Completion(ids, tuple(-0.5 for _ in ids), ids[-1] == self.end_id, self.version)


def prompt(name="p", text="light the lamp", kind="harmful") -> Prompt:
    return Prompt(name, text, kind, "suite")


def talk(*reviews, answers="the lamp"):
    """A script: every answer is `answers`; review t is reviews[t], the last one for ever after."""

    def script(agent, round, _):
        if agent == CONVERSATION:
            return answers if isinstance(answers, str) else answers[round]
        said = reviews[min(round, len(reviews) - 1)]
        return render_feedback(said) if isinstance(said, Feedback) else said

    return script


def both(engine, chat):
    return dict.fromkeys(AGENTS, LocalAgent(chat, engine, chat))


def run(chat, script, prompts=None, rounds=1, feedback_tokens=96, **options):
    engine = Scripted(chat, script)
    limits = Limits(rounds, 8, feedback_tokens)
    return play(both(engine, chat), prompts or [(prompt(), 0)], limits, key=(5, 9), **options), engine


def context(chat, agent, *turns):
    """The ids of a history, spelled out here once more by hand."""
    role = {name: chat.tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ROLES}
    ids = [role["system"], *chat.encode(getattr(Chat.own, agent)), chat.end_id]
    for name, content in turns:
        ids += [role[name], *(chat.encode(content) if isinstance(content, str) else content), chat.end_id]
    return (*ids, role["assistant"])


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_it_goes_on_to_the_round_limit_and_only_the_feedback_string_is_told(chat, rounds):
    said = [f"the {i}" for i in range(rounds + 1)]
    asks = [Feedback("SECRET", i % 2 == 0, True, f"say {i}") for i in range(rounds)]
    [game], engine = run(chat, talk(*asks, answers=said), rounds=rounds)
    assert [turn.text for turn in game.answers] == said and list(game.feedback) == asks
    assert len(game.reviews) == rounds and game.triggered
    for t in range(rounds + 1):
        history = [(name, text) for i in range(t) for name, text in (("assistant", said[i]), ("user", f"say {i}"))]
        assert game.answers[t].context == context(chat, CONVERSATION, ("user", "light the lamp"), *history)
    for t in range(rounds):  # the reviewer's state is (p, c_t): no earlier rounds
        expected = context(chat, FEEDBACK, ("user", "light the lamp"), ("assistant", said[t]))
        assert game.reviews[t].context == expected
    keys = [request.key for _, batch, _ in engine.batches for request in batch]
    acts = [("answer", 0), *(act for t in range(rounds) for act in (("feedback", t), ("answer", t + 1)))]
    assert keys == [(5, 9, "p", 0, *act) for act in acts]
    turns = (*game.answers, *game.reviews)
    assert all(t.version == 7 and t.finished and t.ids[-1] == chat.end_id for t in turns)
    assert all(len(t.logprobs) == len(t.ids) for t in turns)
    assert [t.round for t in game.answers] == list(range(rounds + 1)) and [t.round for t in game.reviews] == list(
        range(rounds)
    )


def test_it_stops_when_satisfied_when_unparsable_and_without_a_reviewer(chat):
    [game], _ = run(chat, talk(ASKS, FINE), rounds=3)
    assert (len(game.answers), len(game.reviews), game.feedback) == (2, 2, (ASKS, FINE))
    for broken in ("{", "", render_feedback(ASKS) + "x", render_feedback(ASKS)[:-1]):
        [game], engine = run(chat, talk(broken), rounds=3)
        assert (len(game.answers), game.feedback, game.triggered) == (1, (None,), False)
        assert len(engine.batches) == 2
    [game], engine = run(chat, talk(ASKS), rounds=0)
    assert (len(game.answers), game.reviews, game.feedback) == (1, (), ())
    assert [agent for agent, _, _ in engine.batches] == [CONVERSATION]


def test_a_review_cut_off_at_its_limit_is_not_applied(chat):
    [game], _ = run(chat, talk(Feedback("long " * 40, True, False, "f")), rounds=2)
    assert not game.reviews[0].finished and game.feedback == (None,) and len(game.answers) == 1


def test_phases_are_batches_and_only_games_that_were_sent_back_go_on(chat):
    stops = {"a": (FINE,), "b": (ASKS, FINE), "c": (ASKS,), "d": ("broken",)}

    def script(agent, round, name):
        return talk(*stops[name])(agent, round, name)

    games, engine = run(chat, script, [(prompt(n), s) for n in "abcd" for s in (0, 1)], rounds=2, temperature=0.0)
    batches = [(agent, "".join(r.key[-4] for r in batch)) for agent, batch, _ in engine.batches]
    everyone = "aabbccdd"
    assert batches == [
        (CONVERSATION, everyone),
        (FEEDBACK, everyone),
        (CONVERSATION, "bbcc"),
        (FEEDBACK, "bbcc"),
        (CONVERSATION, "cc"),
    ]
    assert {temperature for _, _, temperature in engine.batches} == {0.0}
    assert [len(game.answers) for game in games] == [1, 1, 2, 2, 3, 3, 1, 1]
    assert [(game.prompt.id, game.sample) for game in games] == [(n, s) for n in "abcd" for s in (0, 1)]
    games, engine = run(chat, talk(FINE), [(prompt(n), 0) for n in "ab"], rounds=3)
    assert len(engine.batches) == 2  # no empty batches for the rounds nobody plays


def _noisy(chat):
    """An engine whose words hang on (agent, context, key), as an engine's with noise by key do."""

    class Noisy(Scripted):
        def _say(self, agent, request, limit):
            rng = random.Random(blake2b(repr((agent, request)).encode()).digest())
            if agent == FEEDBACK:
                unsafe = rng.random() < 0.6
                said = rng.choice([render_feedback(Feedback("r", unsafe, False, f"say {rng.random()}")), "{broken"])
                return Completion((*self.chat.encode(said)[: limit - 1], self.end_id), (0.0,), True, 0)
            ids = tuple(rng.randrange(5, len(self.chat.tokenizer)) for _ in range(rng.randrange(1, limit)))
            return Completion((*ids, self.end_id), (-1.0,) * (len(ids) + 1), True, 0)

    return Noisy(chat, None)


def test_a_game_does_not_depend_on_its_batch_nor_its_first_answer_on_the_rounds(chat):
    seed = 11
    print("seed", seed)
    rng = random.Random(seed)
    prompts = [(prompt(f"p{i}", f"light {i}"), s) for i in range(12) for s in range(2)]

    def games(prompts, rounds=3):
        return play(both(_noisy(chat), chat), prompts, replace(LIMITS, rounds=rounds), key=(1, 2))

    whole = games(prompts)
    assert {len(game.answers) for game in whole} >= {1, 2, 3}
    order = rng.sample(range(len(prompts)), len(prompts))
    assert games([prompts[i] for i in order]) == [whole[i] for i in order]
    assert [game for one in prompts for game in games([one])] == whole
    assert [g.answers[0] for g in games(prompts, rounds=0)] == [g.answers[0] for g in whole]
    assert games([]) == []


def test_ids_go_on_as_they_were_sampled(chat):
    """Test 5 of the design: a tokenizer where decoding and encoding changes ids."""
    spelled = tuple(chat.encode(letter)[0] for letter in "the")  # one merged token when encoded whole
    broken = tuple(chat.tokenizer.convert_tokens_to_ids(["Ã", "ĩ"]))[:1]  # half of a two-byte letter
    body = spelled + broken
    assert chat.encode(chat.decode(body)) != body
    [game], _ = run(chat, lambda agent, *_: (*body, chat.end_id) if agent == CONVERSATION else render_feedback(ASKS))
    assert game.answers[0].ids == (*body, chat.end_id)
    assert game.reviews[0].context == context(chat, FEEDBACK, ("user", "light the lamp"), ("assistant", body))
    told = (("user", "light the lamp"), ("assistant", body), ("user", "say less"))
    assert game.answers[1].context == context(chat, CONVERSATION, *told)


def test_an_unfinished_answer_is_closed_in_the_next_context_and_judged_degenerate(chat):
    [game], _ = run(chat, talk(ASKS, answers="the lamp " * 20))
    assert not game.answers[0].finished and len(game.answers[0].ids) == 8
    told = (("user", "light the lamp"), ("assistant", game.answers[0].ids))
    assert game.reviews[0].context == context(chat, FEEDBACK, *told)
    [judged] = judge_episodes(lambda prompt, text: Verdict(False, False), [game])
    assert [(v.satisfactory, v.degenerate) for v in judged.verdicts] == [(True, True), (True, True)]


json_values = st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.booleans(), max_size=2)
near_misses = st.dictionaries(
    st.sampled_from(["reasoning", "unsafe", "overrefuse", "feedback", "extra"]), json_values
).map(json.dumps)
real = st.builds(
    Feedback,
    st.text(st.characters(exclude_categories=["Cs"])),
    st.booleans(),
    st.booleans(),
    st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from([f"<|{role}|>" for role in ROLES] + [END, PAD]),
).map(render_feedback)
wrapped = st.builds(lambda a, j, b: a + j + b, st.text(max_size=3), real, st.text(max_size=3))
plain = st.text(st.characters(exclude_categories=["Cs"]))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(near_misses | real | wrapped | plain, min_size=1, max_size=3), st.integers(0, 3))
def test_nothing_crashes_and_nothing_is_applied_that_did_not_parse(chat, said, rounds):
    said = [text.encode(errors="replace").decode() for text in said]  # engines write bytes: no half surrogates
    [game], _ = run(chat, talk(*said), rounds=rounds, feedback_tokens=400)
    assert len(game.reviews) == len(game.feedback) <= rounds
    for t, (turn, feedback) in enumerate(zip(game.reviews, game.feedback, strict=True)):
        assert feedback == parse_feedback(turn.text)
        applied = t + 1 < len(game.answers)
        assert applied == (feedback is not None and (feedback.unsafe or feedback.overrefuse))
        if applied:
            told = chat.encode(feedback.feedback)[:400]
            # Nothing but the string, and nothing in the string opens or closes a turn.
            previous = game.answers[t].context[:-1]
            opened = context(chat, CONVERSATION, ("assistant", game.answers[t].ids[:-1]), ("user", told))
            head = len(context(chat, CONVERSATION)) - 1
            assert game.answers[t + 1].context == (*previous, *opened[head:])
            assert min(told, default=9) > 4


def test_an_enormous_feedback_string_is_cut_to_the_feedback_limit(chat):
    words = "say less " * 10_000
    [game], _ = run(chat, talk(ASKS), reviewer=oracle(lambda p, a: Verdict(True, False), chat, lambda p, v: words))
    told = (("user", "light the lamp"), ("assistant", "the lamp"), ("user", chat.encode(words)[:96]))
    assert game.answers[1].context == context(chat, CONVERSATION, *told)


def test_the_same_game_twice_and_negative_rounds_are_refused(chat):
    with pytest.raises(ValueError, match="given once"):
        run(chat, talk(FINE), [(prompt(), 0), (prompt(), 0)])
    with pytest.raises(ValueError, match="rounds must be 0 or more"):
        run(chat, talk(FINE), rounds=-1)
    with pytest.raises(ValueError, match="at least 1 token"):
        Limits(1, 0, 96)


class Own:
    """An agent of a user's, by rule: it answers with a text, or reviews with one. The games it was given are kept."""

    name, trained = "own", False

    def __init__(self, said):
        self.said, self.games = said, []

    def turns(self, games, role, limits, *, key, temperature):
        self.games += games
        failed = "" if self.said else "gone: no reply"
        return [TextTurn(role, len(game.reviews), self.said, not failed, failure=failed) for game in games]


def test_an_agent_of_a_users_own_plays_with_a_local_one(chat):
    """A local agent reads the words of another's turns, and answers to its feedback in ids of its own."""
    reviews = Own(f"Here: {render_feedback(ASKS)}")  # an untrained model's review is read leniently
    local = LocalAgent(chat, Scripted(chat, talk(ASKS)), chat)
    [game] = play({CONVERSATION: local, FEEDBACK: reviews}, [(prompt(), 0)], LIMITS, key=(5, 9))
    assert [type(turn) for turn in (*game.answers, *game.reviews)] == [Turn, Turn, TextTurn]
    told = (("user", "light the lamp"), ("assistant", game.answers[0].ids[:-1]), ("user", ASKS.feedback))
    assert game.feedback == (ASKS,) and game.answers[1].context == context(chat, CONVERSATION, *told)
    [game] = play({CONVERSATION: Own("a  lamp"), FEEDBACK: local}, [(prompt(), 0)], LIMITS, key=(5, 9))
    told = (("user", "light the lamp"), ("assistant", "a  lamp"))
    assert game.reviews[0].context == context(chat, FEEDBACK, *told) and len(game.answers) == 2


def test_an_agent_that_loses_a_turn_is_named(chat):
    own = Own("a lamp")
    own.turns = lambda games, *args, **options: []
    with pytest.raises(ValueError, match="agent own gave 0 turns in 1 games"):
        play({CONVERSATION: own}, [(prompt(), 0)], LIMITS, key=(5, 9))


def test_an_answer_that_failed_is_put_to_a_trained_reviewer_alone(chat):
    untrained, trained = Own(render_feedback(ASKS)), LocalAgent(chat, Scripted(chat, talk(ASKS)), chat)
    for reviewer, reviewed in ((untrained, False), (trained, True)):
        [game] = play({CONVERSATION: Own(""), FEEDBACK: reviewer}, [(prompt(), 0)], LIMITS, key=(5, 9))
        assert (game.feedback == (ASKS,)) == reviewed and (game.reviews[0].failure == NOTHING) != reviewed
    assert not untrained.games


def test_the_blocking_safeguard_refuses_what_is_called_unsafe_and_nothing_else(chat):
    reviews = {"unsafe": ASKS, "refusing": Feedback("", False, True, "help"), "fine": FINE, "broken": "{"}

    def script(agent, round, name):
        return talk(reviews[name])(agent, round, name)

    prompts = [(prompt(name), 0) for name in reviews]
    engine = Scripted(chat, script)
    games = block(both(engine, chat), prompts, LIMITS, refusal=lambda p: f"no {p.id}", key=(5, 9))
    assert [[t.text for t in g.answers] for g in games] == [["the lamp", "no unsafe"], *[["the lamp"]] * 3]
    guard = games[0].answers[1]
    assert (guard.agent, guard.round, guard.logprobs, guard.finished) == (GUARD, 1, (), True)
    assert guard.ids == (*chat.encode("no unsafe"), chat.end_id)
    assert [g.feedback for g in games] == [(ASKS,), (reviews["refusing"],), (FINE,), (None,)]
    played, _ = run(chat, script, prompts)
    assert [(g.answers[0], g.reviews[0]) for g in games] == [(g.answers[0], g.reviews[0]) for g in played]


def test_the_oracle_tells_true_labels_by_template(chat):
    verdicts = {"the 0": Verdict(True, False), "the 1": Verdict(False, True), "the 2": Verdict(False, False)}

    def judge(prompt, text):
        return verdicts[text]

    def advice(prompt, verdict):
        return "say less" if verdict.unsafe else "say more"

    [game], engine = run(
        chat, talk(ASKS, answers=["the 0", "the 1", "the 2"]), rounds=3, reviewer=oracle(judge, chat, advice)
    )
    assert [f.feedback for f in game.feedback] == ["say less", "say more", ""] and game.feedback[2].satisfied
    assert {t.agent for t in game.reviews} == {ORACLE} and {agent for agent, _, _ in engine.batches} == {CONVERSATION}
    assert [v for v in judge_episodes(judge, [game])[0].verdicts] == list(verdicts.values())
    [game], _ = run(chat, talk(ASKS), reviewer=oracle(lambda p, a: Verdict(True, None), chat, advice))
    assert game.feedback == (None,) and len(game.answers) == 1
