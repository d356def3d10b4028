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
    takes("samples", named=("beta", "values")),
)
ENVIRONMENTS = Registry(
    "environment", "choreo.environments", "choreo.environments", "ENVIRONMENTS", lambda found: _no_class(found)
)


def _no_class(found: Any) -> str:
    if isinstance(found, type) or callable(found):
        return ""
    return f"expected a class that is called with [environment_options], got {type(found).__name__}"


class Named:
    """Marks a text setting as the name of a part in `registry`: a wrong one is refused where it is written.

    empty: the text may be empty, which asks for no part.
    """

    def __init__(self, registry: Registry, *, empty: bool = False):
        self.registry = registry
        self.empty = empty

    def checked(self, value: str) -> str:
        """`value` itself. Raises ValueError where it names no part, or one that is not what is expected."""
        if value or not self.empty:
            check_name(self.registry, value)
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.checked, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "expected": self.registry.expected()}


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


EstimatorName = Annotated[str, Named(ESTIMATORS)]
EnvironmentName = Annotated[str, Named(ENVIRONMENTS)]
