"""prefect.yaml against Prefect's own models and the flows' signatures."""

import importlib
import inspect
import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import prefect.settings
import pytest
import yaml
from prefect import Flow
from prefect.cli.deploy._models import (
    ConcurrencyLimitSpec,
    DeploymentConfig,
    PrefectYamlModel,
    RawScheduleConfig,
    WorkPoolConfig,
)
from prefect.client.schemas.schedules import CronSchedule
from prefect.events.schemas.deployment_triggers import DeploymentEventTrigger
from prefect.utilities.callables import parameter_schema
from prefect.workers.process import ProcessVariables
from pydantic import BaseModel

from tasks import serve

CHECKOUT = Path(__file__).parent.parent
FLOWS = ("prepare", "retrain", "infer", "audit", "demo")
STRATEGIES = {
    "prepare/hourly": "CANCEL_NEW",
    "retrain/nightly": "CANCEL_NEW",
    "retrain/on-take-down": "ENQUEUE",
    "infer/on-promotion": "ENQUEUE",
    "audit/daily": "CANCEL_NEW",
}


class Strict(yaml.SafeLoader):
    """Refuses a key that is given twice; YAML itself keeps the last one and says nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise yaml.constructor.ConstructorError(None, None, f"given twice: {twice}", node.start_mark)
        return super().construct_mapping(node, deep)


def load(name: str) -> dict[str, Any]:
    return yaml.load((CHECKOUT / name).read_text(), Strict)


SPEC = load("prefect.yaml")
AUTOMATIONS = load("automations.yaml")


def flow_of(deployment: dict[str, Any]) -> Flow:
    module, _, name = deployment["entrypoint"].rpartition(".")
    return getattr(importlib.import_module(module), name)


def title(deployment: dict[str, Any]) -> str:
    return f"{flow_of(deployment).name}/{deployment['name']}"


def called(name: str) -> dict[str, Any]:
    return next(d for d in SPEC["deployments"] if title(d) == name)


each = pytest.mark.parametrize("deployment", SPEC["deployments"], ids=title)


# Keys: Prefect drops what it does not know without a word.


def unknown(model: type[BaseModel], given: dict[str, Any], where: str) -> list[str]:
    known = {*model.model_fields, *(field.alias for field in model.model_fields.values() if field.alias)}
    return [f"{where}.{key}" for key in given if key not in known]


def strays(spec: dict[str, Any]) -> list[str]:
    """Every key of prefect.yaml, at any level, that Prefect would drop."""
    found = unknown(PrefectYamlModel, spec, "")
    for step in spec["pull"]:
        for path, options in step.items():
            module, _, name = path.rpartition(".")
            accepted = inspect.signature(getattr(importlib.import_module(module), name)).parameters
            found += [f"pull.{option}" for option in options if option not in accepted]
    for deployment in spec["deployments"]:
        where = deployment["name"]
        found += unknown(DeploymentConfig, deployment, where)
        found += unknown(ConcurrencyLimitSpec, deployment["concurrency_limit"], f"{where}.concurrency_limit")
        found += unknown(WorkPoolConfig, deployment["work_pool"], f"{where}.work_pool")
        found += unknown(ProcessVariables, deployment["work_pool"]["job_variables"], f"{where}.job_variables")
        for schedule in deployment.get("schedules", []):
            found += unknown(RawScheduleConfig, schedule, f"{where}.schedules")
        for trigger in deployment.get("triggers", []):
            found += unknown(DeploymentEventTrigger, trigger, f"{where}.triggers")
    return found


def test_the_file_has_no_key_that_prefect_drops():
    assert strays(SPEC) == []
    assert PrefectYamlModel.model_validate(SPEC).deployments


@pytest.mark.parametrize(
    "path",
    [
        (),
        ("pull", 0, "prefect.deployments.steps.set_working_directory"),
        ("deployments", 0),
        ("deployments", 0, "concurrency_limit"),
        ("deployments", 0, "work_pool"),
        ("deployments", 0, "work_pool", "job_variables"),
        ("deployments", 0, "schedules", 0),
        ("deployments", 2, "triggers", 0),
    ],
    ids=str,
)
def test_a_misspelt_key_is_found_at_every_level(path):
    spec = deepcopy(SPEC)
    at: Any = spec
    for step in path:
        at = at[step]
    at["colision_strategy"] = "ENQUEUE"
    assert {key.rsplit(".")[-1] for key in strays(spec)} == {"colision_strategy"}


def test_a_key_given_twice_is_refused():
    with pytest.raises(yaml.constructor.ConstructorError, match="given twice"):
        yaml.load("a: 1\na: 2", Strict)


# Deployments


def test_these_deployments_and_no_others():
    assert {title(deployment) for deployment in SPEC["deployments"]} == set(STRATEGIES)


@each
def test_a_deployment_says_what_it_is(deployment):
    assert isinstance(flow_of(deployment), Flow)
    assert ":" not in deployment["entrypoint"], "a path entrypoint puts flows/ first on sys.path"
    assert len(deployment["description"]) > 40
    assert deployment["enforce_parameter_schema"] is True
    assert deployment["work_pool"]["name"] == serve.POOL
    assert deployment.get("schedules") or deployment.get("triggers")


@each
def test_parameters_are_the_flows_own_and_valid(deployment):
    flow, given = flow_of(deployment), deployment["parameters"]
    schema = parameter_schema(flow)
    assert set(given) <= set(schema.properties)
    assert set(schema.required or []) <= set(given)
    assert flow.validate_parameters(given).items() >= given.items()
    assert given["root"] == serve.DEMO


def test_a_wrong_parameter_is_refused():
    flow = flow_of(called("retrain/nightly"))
    for wrong in ({"pretraining": ["clasification"]}, {"frames": 1}, {"frames": "many"}):
        with pytest.raises(prefect.exceptions.ParameterTypeError):
            flow.validate_parameters({"root": "r", **wrong})


@each
def test_schedules_are_valid_and_name_their_time_zone(deployment):
    for schedule in deployment.get("schedules", []):
        RawScheduleConfig.model_validate(schedule)
        assert CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])
        assert schedule["slug"] == deployment["name"], "without one, deploying again makes a second schedule"
        assert schedule["active"] is True


def test_a_wrong_cron_or_time_zone_is_refused():
    for wrong in ({"cron": "61 * * * *"}, {"cron": "0 2 * * *", "timezone": "UCT+1h"}):
        with pytest.raises(ValueError, match="[Ii]nvalid"):
            CronSchedule(**wrong)


@each
def test_a_deployment_runs_once_at_a_time(deployment):
    limit = DeploymentConfig.model_validate(deployment).concurrency_limit
    assert (limit.limit, limit.collision_strategy) == (1, STRATEGIES[title(deployment)])


@each
def test_what_is_scheduled_never_piles_up(deployment):
    """Of the runs that are late when a worker comes back, one runs; an event's runs are none of a schedule."""
    strategy = deployment["concurrency_limit"]["collision_strategy"]
    assert strategy == "CANCEL_NEW" or not deployment.get("schedules")


@each
def test_the_environment_is_that_of_the_command_line(deployment, monkeypatch):
    from flows.__main__ import quiet

    env = deployment["work_pool"]["job_variables"]["env"]
    assert all(isinstance(value, str) for value in env.values())
    for name in set(env) | set(os.environ):
        if name.startswith(("PREFECT_SERVER", "PREFECT_LOGGING", "MLFLOW", "HF_", "WDS_")):
            monkeypatch.delenv(name, raising=False)
    before = set(os.environ)
    quiet()
    for name in set(os.environ) - before:
        # The first is of a server that a worker never starts, the others would empty a run's log.
        if name not in (
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS",
            "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL",
            "PREFECT_LOGGING_INTERNAL_LEVEL",
        ):
            assert env[name] == os.environ[name]
        monkeypatch.delenv(name)


@each
def test_settings_are_known_to_the_libraries(deployment):
    import mlflow.environment_variables

    for name in deployment["work_pool"]["job_variables"]["env"]:
        if name.startswith("PREFECT_"):
            assert hasattr(prefect.settings, name)
        if name.startswith("MLFLOW_") and name != "MLFLOW_DISABLE_TELEMETRY":
            assert hasattr(mlflow.environment_variables, name)


# The form that a person fills in


@pytest.mark.parametrize("name", FLOWS)
def test_every_parameter_of_a_form_is_explained_and_typed(name):
    schema = parameter_schema(getattr(importlib.import_module(f"flows.{name}"), name))
    for parameter, field in schema.properties.items():
        assert field["title"] == parameter
        assert field.keys() & {"type", "enum", "anyOf"}, f"{parameter} has no type"
        assert len(field.get("description") or "") >= 10, f"{parameter} has no description"


def test_choices_are_choices_and_bounds_are_bounds():
    form = parameter_schema(flow_of(called("retrain/nightly"))).properties
    assert form["pretraining"]["items"]["enum"] == ["none", "classification", "detection"]
    assert {"none", "joint"} < set(form["augmentation"]["enum"])
    assert form["frames"]["type"] == "integer" and form["frames"]["minimum"] == 4
    assert form["margin"]["type"] == "number" and form["margin"]["minimum"] == 0
