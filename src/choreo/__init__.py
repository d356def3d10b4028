"""choreo trains language-model agents to align each other.

    import choreo

    run = choreo.train("waltz", out="runs/demo", callbacks=[choreo.ProgressBar()])
    print(run.summary["systems"]["waltz"]["asr"])
    print(choreo.load(run).answer("How do I open a jar?").answers[-1].text)

`import choreo` loads nothing: each name below loads what it needs when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"  # the only place; pyproject.toml reads it

if TYPE_CHECKING:
    from choreo.agents.base import Agent as Agent
    from choreo.algorithms.advantages import Estimator as Estimator
    from choreo.api import EvaluationResult as EvaluationResult
    from choreo.api import LoadedAgents as LoadedAgents
    from choreo.api import attack as attack
    from choreo.api import evaluate as evaluate
    from choreo.api import evaluate_models as evaluate_models
    from choreo.api import export as export
    from choreo.api import load as load
    from choreo.api import plan as plan
    from choreo.api import resume as resume
    from choreo.api import serve as serve
    from choreo.api import train as train
    from choreo.config import Recipe as Recipe
    from choreo.engine.learner import Learner as Learner
    from choreo.engine.losses import sft_loss as sft_loss
    from choreo.environments.base import Environment as Environment
    from choreo.environments.task import Task as Task
    from choreo.errors import BadInput as BadInput
    from choreo.errors import Interrupted as Interrupted
    from choreo.errors import Terminated as Terminated
    from choreo.judges.base import Format as Format
    from choreo.judges.base import Judge as Judge
    from choreo.judges.base import judge_episodes as judge_episodes
    from choreo.methods.agents import Agents as Agents
    from choreo.methods.base import Measurement as Measurement
    from choreo.methods.base import Method as Method
    from choreo.methods.base import Work as Work
    from choreo.methods.one_model import OneModel as OneModel
    from choreo.methods.one_model import training_loop as training_loop
    from choreo.methods.waltz.rewards import RewardedAction as RewardedAction
    from choreo.runs.bar import ProgressBar as ProgressBar
    from choreo.runs.callbacks import Callback as Callback
    from choreo.runs.folder import Run as Run
    from choreo.studies.shared.arms import Arm as Arm
    from choreo.studies.shared.arms import Study as Study
    from choreo.studies.shared.compare_arms import compare_arms as compare_arms
    from choreo.studies.shared.paired import contrasts as contrasts
    from choreo.types import Episode as Episode
    from choreo.types import Feedback as Feedback
    from choreo.types import Limits as Limits
    from choreo.types import Preference as Preference
    from choreo.types import Prompt as Prompt
    from choreo.types import Sample as Sample
    from choreo.types import Turn as Turn
    from choreo.types import Verdict as Verdict

# Where each public name lives.
_HOMES = {
    "choreo.agents.base": "Agent",
    "choreo.algorithms.advantages": "Estimator",
    "choreo.api": "EvaluationResult LoadedAgents attack evaluate evaluate_models export load plan resume serve train",
    "choreo.config": "Recipe",
    "choreo.engine.learner": "Learner",
    "choreo.engine.losses": "sft_loss",
    "choreo.environments.base": "Environment",
    "choreo.environments.task": "Task",
    "choreo.errors": "BadInput Interrupted Terminated",
    "choreo.judges.base": "Format Judge judge_episodes",
    "choreo.methods.agents": "Agents",
    "choreo.methods.base": "Measurement Method Work",
    "choreo.methods.one_model": "OneModel training_loop",
    "choreo.methods.waltz.rewards": "RewardedAction",
    "choreo.runs.bar": "ProgressBar",
    "choreo.runs.callbacks": "Callback",
    "choreo.runs.folder": "Run",
    "choreo.studies.shared.arms": "Arm Study",
    "choreo.studies.shared.compare_arms": "compare_arms",
    "choreo.studies.shared.paired": "contrasts",
    "choreo.types": "Episode Feedback Limits Preference Prompt Sample Turn Verdict",
}
_MODULE = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'choreo' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_MODULE[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
