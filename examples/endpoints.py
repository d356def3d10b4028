"""Two models behind OpenAI-compatible servers play the game untrained: one answers, the other reviews.

    python examples/endpoints.py prompts.jsonl qwen3:8b@http://localhost:11434/v1
    python examples/endpoints.py prompts.jsonl A@http://localhost:8000/v1 B@http://localhost:8001/v1

A line of the file is {"prompt": "…", "kind": "harmful" | "benign" | "general"}. Replies are kept in the folder of the
evaluation, so that the same call after a stop asks nothing twice.
"""

from __future__ import annotations

import sys

import choreo


def main(suite: str, conversation: str, feedback: str = "", out: str = "runs/endpoints") -> choreo.EvaluationResult:
    found = choreo.evaluate_models(
        conversation,
        feedback,
        suites=[suite],
        judge="offline",
        out=out,
        callbacks=[choreo.ProgressBar()],
        into_existing=True,
    )
    for system, measures in found.summary["systems"].items():
        print(system, {name: measures[name] for name in ("asr", "orr")})
    game = found.episodes["collaboration-untrained"][0]
    for answer in game.answers:
        print("answer:", answer.text)
    print("report:", found.folder / "report.html" if found.folder else "")
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
