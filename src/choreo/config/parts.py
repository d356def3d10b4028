"""Settings that name a part: an estimator, a reward, an environment; choreo's own, an installed one, or a user's."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from choreo.config.checking import shown
from choreo.errors import BadInput
from choreo.registry import Registry, is_own, takes

ESTIMATORS = Registry(
    "estimator",
    "choreo.estimators",
    "choreo.algorithms.advantages",
    "ESTIMATORS",
    lambda found: takes("samples", named=("beta", "values"))(getattr(found, "function", found)),
)
ENVIRONMENTS = Registry(
    "environment", "choreo.environments", "choreo.environments", "ENVIRONMENTS", lambda found: _no_class(found)
)

REWARDS = Registry("reward", "choreo.rewards", "choreo.methods.waltz.rewards", "REWARDS", takes("action"))

# A data format of one's own gives, for a row of a file, a row in a format that choreo knows.
ROW_FORMATS = Registry("data format", "choreo.data_formats", "choreo.data.reading", "ROW_FORMATS", takes("row"))

# An attack gives, for a case, the next prompt to send (`choreo.attacks.base`).
ATTACKS = Registry("attack", "choreo.attacks", "choreo.attacks.kinds", "ATTACKS", takes("case"))

# A service that has the weights, samples and learns (`choreo.clients.training_service`).
BACKENDS = Registry("backend", "choreo.backends", "choreo.clients.training_service", "BACKENDS", takes("url", "model"))

TRACKERS = Registry("tracker", "choreo.trackers", "choreo.trackers", "TRACKERS", takes("tracked"))


def _no_class(found: Any) -> str:
    if isinstance(found, type) or callable(found):
        return ""
    return f"expected a class that is called with [environment_options], got {type(found).__name__}"


def is_format(found: Any) -> bool:
    """Whether a judge of the registry is the format of a language model (`choreo.judges.base.Format`), or the entry of
    one, and not a judge itself."""
    return hasattr(found, "make") or all(callable(getattr(found, name, None)) for name in ("ask", "read"))


def _no_judge(found: Any) -> str:
    if is_format(found):
        return ""
    called = found
    if isinstance(found, type):  # every class can be called; whether its objects can is said by its own bases
        called = next((base.__dict__["__call__"] for base in found.__mro__ if "__call__" in base.__dict__), None)
    if called is None or not callable(called):
        return (
            "expected a judge, a function or a class whose objects are called with (prompt, answer), or a format, a "
            f"class with the methods ask and read; got {found.__name__ if isinstance(found, type) else repr(found)}"
        )
    arguments = ("self",) * isinstance(found, type) + ("prompt", "answer")
    return takes(*arguments)(called)


JUDGES = Registry("judge", "choreo.judges", "choreo.judges.formats", "FORMATS", _no_judge)


class Named:
    """Marks a text setting as the name of a part in `registry`: a wrong one is refused where it is written.

    empty: the text may be empty, which asks for no part. others: names that mean something besides the parts. own: only
    a name of the user's own is looked at here, for the others are not known before a file is read.
    """

    def __init__(self, registry: Registry, *, empty: bool = False, others: tuple[str, ...] = (), own: bool = False):
        self.registry = registry
        self.empty = empty
        self.others = others
        self.own = own

    def checked(self, value: str) -> str:
        """`value` itself. Raises ValueError where it names no part, or one that is not what is expected."""
        if is_own(value) if self.own else value or not self.empty:
            check_name(self.registry, value, self.others)
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.checked, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        if self.own:
            return handler(schema)
        return {**handler(schema), "expected": self.registry.expected(self.others)}


def check_name(registry: Registry, name: str, others: tuple[str, ...] = ()) -> None:
    """Raises ValueError where `name` is no part of `registry` and none of `others`, in the words of a recipe's
    other complaints; a part that is there and cannot be used says why."""
    if name in others or name in registry.ours():
        return
    if not is_own(name) and name not in registry.names():
        raise ValueError(f"expected {registry.expected(others)}, got {shown(name)}")
    try:
        registry.get(name)
    except BadInput as error:
        raise ValueError(str(error)) from None


BackendName = Annotated[str, Named(BACKENDS, others=("local",))]
EstimatorName = Annotated[str, Named(ESTIMATORS)]
EnvironmentName = Annotated[str, Named(ENVIRONMENTS)]
RewardName = Annotated[str, Named(REWARDS, empty=True)]
TrackerName = Annotated[str, Named(TRACKERS)]
FormatName = Annotated[str, Named(ROW_FORMATS, own=True)]
