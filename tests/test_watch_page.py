"""The page of `choreo watch`, as a person with a keyboard meets it in a real browser, while a run goes on."""

from __future__ import annotations

import math
import signal

import httpx2
import pytest
from browser import CHROMIUM, Page
from macpo import recipe as macpo_recipe
from macpo import run_through
from serving import Started

from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.methods.waltz.trainer import train
from choreo.runs.folder import Run
from choreo.runs.progress import Progress
from choreo.types import CONVERSATION, FEEDBACK, Episode, Feedback, Prompt, Turn, Verdict

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt install chromium)")

HOSTILE = '<img src=x onerror=alert(1)><b id="bold">'
UNSAFE, GOOD, OVER = Verdict(True, False, reason="harm"), Verdict(False, False), Verdict(False, True)


def turn(agent, number, text):
    return Turn(agent, number, (1, 2), (5, 6, 7), (-0.1, -0.2, -0.3), 1, text, True)


def game(sample, text, *verdicts):
    answers = tuple(turn(CONVERSATION, number, f"{text} {number}") for number in range(len(verdicts)))
    review = Feedback("", len(verdicts) > 1, False, HOSTILE)
    prompt = Prompt(f"p{sample}", f"{text}?", "harmful", "suite")
    return Episode(prompt, sample, answers, (turn(FEEDBACK, 0, "{}"),), (review,), verdicts)


def play(run, step, games, **figures):
    run.log(step, {"asr": 1 / step, "orr": 0.1, "reward/conversation": 0.5, "seconds": 2.0, "alarms": [], **figures})
    paid = [{"conversation/answer": 1.0 - sample, "feedback/dir": -0.65} for sample, _ in enumerate(games)]
    run.save_episodes(step, games, paid, [{"feedback/0": (0.5, -0.25, 1.5)} for _ in games])


def watching(folder, key="sk-test"):
    return Started("watch", str(folder), "--port", "0", environment={"CHOREO_API_KEY": key})


def text(page, name):
    return page.js(f"document.getElementById('{name}').textContent")


def count(page, selector):
    return page.js(f"document.querySelectorAll('{selector}').length")


def seen(page, selector, words):
    page.wait(f"[...document.querySelectorAll('{selector}')].some((one) => one.textContent.includes({words!r}))", 60)


@pytest.mark.slow
def test_a_run_is_followed_from_its_first_step_to_the_game_that_went_wrong(tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    recipe = WaltzRecipe.model_validate({"seed": 1, "learning": {"steps": 4}})
    with watching(folder) as server, Page(f"{server.url}/#key=sk-test") as page:
        seen(page, "#runs-hint", "There is no run yet")
        assert page.js("location.hash").find("key") < 0
        with Run.create(folder / "mine", recipe) as run:
            seen(page, ".card", "starting")
            play(
                run,
                1,
                [game(0, "fine", GOOD), game(1, f"broken {HOSTILE}", GOOD, OVER), game(2, "mended", UNSAFE, GOOD)],
            )
            seen(page, ".card", "training, step 1 of 4")
            seen(page, ".card", "Step 1: 3 games; at their end 1 repaired, 1 broken, 1 over-refusing.")
            page.press("Enter", 13, text="\r")  # no run is chosen: the one that runs
            seen(page, "#figures h3", "Reward")
            assert count(page, "#figures path") == 0, "one step is a point"
            play(run, 2, [game(0, "later", UNSAFE)], alarms=[f"it burns {HOSTILE}"])
            page.wait("document.querySelectorAll('#figures path').length > 0", 60)
            seen(page, "#alarm", "step 2, mine: it burns")
            assert count(page, "line.mark") >= 1
        page.press("1", 49)
        seen(page, ".card", "stopped after step 2 of 4")
        seen(page, "#alarms li", "at its end, since step 2")

        page.press("4", 52)
        seen(page, "#count", "4 games")
        page.press("b", 66)
        seen(page, "#count", "1 game")
        seen(page, "#game .turn", f"broken {HOSTILE} 0")
        assert page.js("document.querySelector('#game ins').textContent") == " 1", "what the revision has changed"
        assert page.js("[...document.querySelectorAll('#game .turn h3')].map((one) => one.textContent)") == [
            "draft", "review", "revision",
        ]  # fmt: skip
        assert "Rewards: conversation +0.00, feedback −0.65" in text(page, "game")
        page.press("t", 84)
        seen(page, "#game .hint", "Advantage: mean +0.583, from −0.250 to +1.500.")
        assert "Nothing was learnt from this turn" in text(page, "game")
        assert page.js("document.querySelectorAll('.tokens span')[3].title") == "id 5, log π −0.1, advantage +0.500"
        page.press("c", 67)
        seen(page, "#count", "4 games")
        page.press("/", 191)
        page.write("mend")
        seen(page, "#count", "1 game")
        seen(page, "#game .text", "mended?")
        page.press("Escape", 27)
        page.press("c", 67)
        seen(page, "#count", "4 games")
        page.press("j", 74)
        page.wait("document.querySelector('.line[aria-selected=true]').dataset.place === '1'")
        place = page.js("location.hash")
        page.js("window.before = true; location.reload()")
        page.wait("!window.before && document.querySelectorAll('.line').length === 4")
        assert page.js("location.hash") == place
        assert count(page, "#bold, img") == 0
        assert page.complaints == []
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == 0
        page.wait("!document.getElementById('error').hidden", 60)
        assert "Is choreo watch still running?" in text(page, "error")


def test_a_keyboard_keeps_its_place_while_the_page_is_drawn_anew(tmp_path):
    name = "waltz-frozen-conversation_seed40"
    folder = tmp_path / "runs"
    with Run.create(folder / name, WaltzRecipe()) as run:
        play(run, 1, [game(0, "fine", GOOD)])
        with watching(folder) as server, Page(f"{server.url}/#key=sk-test", width=900) as page:
            seen(page, ".card", "Step 1: 1 game.")
            page.js(
                "[...document.querySelectorAll('.card button')].find((one) => one.textContent === 'curves').focus()"
            )
            play(run, 2, [game(0, "later", GOOD)])
            seen(page, ".card", "Step 2: 1 game.")
            assert page.js("document.activeElement.textContent") == "curves"
            assert text(page, "rows").startswith(name)
            assert count(page, "#rows .name wbr") == 3, "a long name breaks after - and _ alone"


def test_a_wrong_review_is_marked_and_a_tapped_game_comes_into_view(tmp_path):
    """On a phone. A review of one answer says that nothing is wrong with it; one of two that the first is unsafe."""
    open_answer = Verdict(False, None)
    with Run.create(tmp_path / "mine", WaltzRecipe()) as run:
        play(run, 1, [game(0, "missed", UNSAFE), game(1, "false alarm", GOOD, GOOD), game(2, "unsure", open_answer)])
    marks = {
        "missed": [["unsafe: no ✗ the judge says yes", "bad"], ["over-refusing: no ✓ the judge agrees", "good"]],
        "false alarm": [["unsafe: yes ✗ the judge says no", "bad"], ["over-refusing: no ✓ the judge agrees", "good"]],
        "unsure": [["unsafe: no ✓ the judge agrees", "good"], ["over-refusing: no (the judge left it open)", ""]],
    }
    top = "Math.round(document.getElementById('{}').getBoundingClientRect().top)"
    with watching(tmp_path) as server, Page(f"{server.url}/#key=sk-test", width=420, height=800) as page:
        seen(page, "#about", "1 run, 0 running, 3 games")
        page.press("4", 52)
        page.wait("document.querySelectorAll('.line').length === 3")
        seen(page, "#game .text", "missed?")
        assert page.js(top.format("game")) > 400, "nobody has asked for a game yet"
        for place, (prompt, wanted) in enumerate(marks.items()):
            page.js(f"document.querySelectorAll('.line')[{place}].click()")
            page.wait(
                f"document.querySelector('#game .text').textContent === '{prompt}?' && {top.format('game')} === 0"
            )
            heads = "[...document.querySelectorAll('#game .head span:not(.hint)')]"
            said = page.js(f"{heads}.map((one) => [one.textContent, one.className])")
            assert [one for one in said if ":" in one[0]] == wanted
            page.js("document.querySelector('#game .back').click()")
            assert page.js(top.format("list")) in range(0, 100)
        assert page.complaints == []


def test_seeds_are_a_band_and_recipes_say_what_differs(tmp_path):
    for seed, steps, rank in ((1, 3, 8), (2, 3, 8), (3, 2, 4)):
        with Run.create(
            tmp_path / f"seed{seed}", WaltzRecipe.model_validate({"seed": seed, "model": {"rank": rank}})
        ) as run:
            for step in range(1, steps + 1):
                play(run, step, [], asr=seed / 10)
    with watching(tmp_path) as server, Page(f"{server.url}/#key=sk-test", width=390, height=844, dark=True) as page:
        page.wait("document.querySelectorAll('#rows tr').length === 3")
        for _ in range(3):
            page.press("j", 74)
            page.press("x", 88)
        page.press("Enter", 13, text="\r")
        seen(page, "#legend li", "waltz, seeds 1, 2")
        seen(page, "#legend li", "seed3")
        seen(page, "#figures figure", "waltz, seeds 1, 2 15.0 %")
        assert count(page, "path[fill-opacity]") == count(page, "#figures figure")
        page.js("document.getElementById('band').click()")
        assert count(page, "path[fill-opacity]") == 0 and count(page, "#legend li") == 3
        page.press("3", 51)
        seen(page, "#settings td", "model.rank")
        rows = page.js(
            "[...document.querySelectorAll('#settings tbody tr')].map((row) => row.cells[0].firstChild.textContent)"
        )
        assert rows == ["seed", "model.rank"]
        assert page.js("document.querySelector('#settings tbody').rows[1].cells[3].className") == "other"
        for key, code in (("1", 49), ("2", 50), ("4", 52)):
            page.press(key, code)
            assert page.js("document.documentElement.scrollWidth <= innerWidth"), (
                f"view {key} is as narrow as the screen"
            )
        page.press("?", 191)
        assert page.js("document.getElementById('help').open")
        assert page.complaints == []


def test_only_who_has_the_key_reads_anything(tmp_path):
    with Run.create(tmp_path / "run", WaltzRecipe()) as run:
        play(run, 1, [game(0, "secret", GOOD)])
    with watching(tmp_path) as server:
        for path in ("/runs", "/curves?runs=1", "/recipes?runs=1", "/choices", "/games", "/game?game=1"):
            for headers in ({}, {"Authorization": "Bearer sk-guess"}):
                assert httpx2.get(server.url + path, headers=headers).status_code == 401
            assert httpx2.get(server.url + path, headers={"Authorization": "Bearer sk-test"}).status_code in (200, 404)
        for path in ("/", "/page.js", "/page.css", "/chart.js"):
            page = httpx2.get(server.url + path)
            assert "default-src 'none'" in page.headers["content-security-policy"] and page.status_code == 200
            assert "innerHTML" not in page.text
        with httpx2.Client(base_url=server.url, headers={"Authorization": "Bearer sk-test"}) as http:
            table = http.get("/runs")
            assert http.get("/runs", headers={"If-None-Match": table.headers["etag"]}).status_code in (200, 304)
            for asked in ("order=best", "runs=a", "at=-1", "first_step=x", "at=" + "9" * 20):
                assert http.get(f"/games?{asked}").status_code == 400, asked
            assert http.get("/game?game=999").status_code == http.get("/nothing").status_code == 404
            assert http.post("/runs").status_code == 405
        with Page(f"{server.url}/") as page:
            page.wait("!document.getElementById('key-form').hidden")
            assert count(page, "section:not([hidden])") == 0
            page.write("sk-test")
            page.press("Enter", 13, text="\r")
            page.wait("document.querySelectorAll('#rows tr').length === 1")


def test_a_report_opens_by_its_link_and_knows_nothing_of_the_page(tmp_path):
    with Run.create(tmp_path / "run", WaltzRecipe()) as run:
        play(run, 1, [game(0, "fine", GOOD)])
    hostile = "try { sessionStorage.length } catch { document.title = origin } fetch('/runs')"
    run.report.write_text(f"<style>p {{ color: rgb(1, 2, 3) }}</style><p>ASR fell.</p><script>{hostile}</script>")
    with watching(tmp_path) as server:
        with Page(f"{server.url}/#key=sk-test") as page:
            seen(page, "#rows a", "report")
            seen(page, ".card a", str(run.report))
            link = page.js("document.querySelector('#rows a').href")
            page.js("document.querySelector('#rows a').target = ''; document.querySelector('#rows a').click()")
            page.wait(f"location.href === {link!r} && document.title === 'null'")
            assert page.js("getComputedStyle(document.querySelector('p')).color") == "rgb(1, 2, 3)"
            assert any("connect" in one.lower() for one in page.complaints), "it may ask the server for nothing"
        assert link.startswith(f"{server.url}/report/") and len(link.rpartition("/")[2]) > 40
        assert httpx2.get(link).headers["cache-control"] == "no-store"
        run.report.unlink()
        for gone in (link, link + "x", f"{server.url}/report/é", f"{server.url}/report/"):
            assert httpx2.get(gone, headers={"Authorization": "Bearer sk-test"}).status_code == 404


@pytest.mark.slow
def test_real_runs_of_both_methods_are_shown(tmp_path, tiny_folder):
    """What the trainers write: every turn that was learnt from has an advantage for each of its ids."""
    recipe = WaltzRecipe.model_validate(
        {
            "seed": 3,
            "world": {"train_prompts": 90, "heldout_prompts": 3},
            "stages": {"stage1_share": 0.0},
            "learning": {"steps": 2, "prompts": 3, "samples": 2, "beta": 0.1, "kl": "k1-reward"},
        }
    )
    with Run.create(tmp_path / "waltz", recipe) as run, Progress() as progress:
        train(recipe, run, progress)
    run_through(macpo_recipe(tiny_folder), tmp_path / "macpo")
    with watching(tmp_path) as server, httpx2.Client(base_url=server.url, timeout=60) as http:
        http.headers["Authorization"] = "Bearer sk-test"
        while (table := http.get("/runs").json())["waiting"] or not table["games"]:
            pass
        macpo, waltz = table["runs"]
        assert (macpo["method"], waltz["method"], waltz["last"]["games"]) == ("macpo", "waltz", 6)
        learnt = 0
        for found in http.get("/games", params={"runs": waltz["run"], "most": 200}).json()["games"]:
            one = http.get("/game", params={"game": found["id"]}).json()
            paid = {name.split("/")[0] for name in one["rewards"]}
            assert {name.split("/")[0] for name in one["learnt"]} == paid
            for turn in one["turns"]:
                assert "".join(turn["pieces"]).startswith(turn["text"])
                if turn["advantages"] is not None:
                    assert len(turn["advantages"]) == len(turn["ids"]) and all(map(math.isfinite, turn["advantages"]))
                    learnt += 1
        assert learnt > 0
        (first,) = http.get("/games", params={"runs": macpo["run"], "most": 1, "order": "oldest"}).json()["games"]
        assert (first["verdict"], first["outcome"], first["reward"]) == ("unjudged", "unrevised", None)
        with Page(f"{server.url}/#key=sk-test") as page:
            page.wait("document.querySelectorAll('#rows tr').length === 2")
            page.js(f"location.hash = 'view=curves&runs={macpo['run']}'")
            seen(page, "#figures h3", "loss")
            assert page.complaints == []


def test_the_link_that_is_printed_opens_the_page(tmp_path):
    with watching(tmp_path, key="") as server:
        link = server.out.readline().strip()
        assert link.startswith(f"{server.url}/#key=sk-")
        with Page(link) as page:
            seen(page, "#runs-hint", "There is no run yet")
