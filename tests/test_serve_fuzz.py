"""The description at /openapi.json is true: of every route, and of every answer to whatever a fuzzer makes of it."""

from __future__ import annotations

import os
from functools import cache

import pytest
from hypothesis import HealthCheck, given, seed, settings
from serving import KEY, Serving, make_run

from choreo.server.app import application
from choreo.server.openapi import description
from choreo.server.state import Server, Settings
from choreo.types import Limits

SEED, EXAMPLES = 20, int(os.environ.get("CHOREO_FUZZ_EXAMPLES", "15"))


def near():
    """The description, and that the model is there and a user speaks, for most requests are refused at the door else;
    and streams more often."""
    described = description()
    schemas = described["components"]["schemas"]
    schemas["ChatRequest"]["properties"]["model"] = {"const": "run"}
    schemas["ChatRequest"]["properties"]["stream"] = {"enum": [True, False]}
    for request in ("ResponsesRequest", "MessagesRequest"):
        schemas[request]["properties"] |= {"model": {"const": "run"}, "stream": {"enum": [True, False]}}
    for message in ("Message", "InputMessage", "AnthropicMessage"):
        schemas[message]["properties"]["role"] = {"const": "user"}
    return described


DESCRIBED = {"as described": description, "near": near}
OPERATIONS = [
    (name, mode, f"{method.upper()} {path}")
    for name, mode in (("as described", "positive"), ("as described", "negative"), ("near", "positive"))
    for path, methods in description()["paths"].items()
    for method, operation in methods.items()
    if "requestBody" in operation or (name, mode) == ("as described", "positive")
]


@cache  # its import takes seconds, and is for the process alone that runs these tests
def fuzzer():
    import schemathesis
    from schemathesis.checks import load_all_checks, not_a_server_error
    from schemathesis.specs.openapi import checks

    load_all_checks()
    held = [
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_headers_conformance,
        checks.response_schema_conformance,
        checks.negative_data_rejection,
        checks.ignored_auth,
        checks.unsupported_method,
        checks.allow_header_conformance,
    ]
    operations = {
        (name, operation.ok().label): operation.ok()
        for name, described in DESCRIBED.items()
        for operation in schemathesis.openapi.from_dict(described()).get_all_operations()
    }
    return schemathesis.GenerationMode, held, operations


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Serving(make_run(tmp_path_factory.mktemp("runs") / "run")) as serving:
        yield serving


def test_every_route_is_described_and_the_other_way_round():
    settings = Settings("run", "off", Limits(1, 9, 9), 0.6)
    routes = {
        (method.lower(), route.path)
        for route in application(Server(settings, {}, [])).routes
        for method in route.methods - {"HEAD"}
    }
    assert routes == {(method, path) for path, methods in description()["paths"].items() for method in methods}


def test_it_is_served_and_needs_no_key(server):
    assert server.http.get("/openapi.json", headers={"Authorization": ""}).json() == description()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mode", "label"), OPERATIONS)
def test_answers_are_as_described(server, name, mode, label):
    print("seed", SEED)
    modes, held, operations = fuzzer()
    operation = operations[name, label]

    @seed(SEED)
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy(generation_mode=modes(mode)))
    def ask(case):
        case.call_and_validate(base_url=server.url, headers={"Authorization": f"Bearer {KEY}"}, checks=held, timeout=60)

    ask()
    assert server.rest == []
