"""What events start, and what Prefect does by itself: triggers and automations as its server has them."""

from collections import defaultdict
from contextlib import nullcontext
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock
from uuid import uuid4

import pytest
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.deployment_triggers import DeploymentEventTrigger
from prefect.server.events.schemas.automations import AutomationCore as ServerAutomation
from prefect.server.events.schemas.automations import EventTrigger as ServerTrigger
from prefect.server.events.schemas.events import ReceivedEvent
from prefect.server.utilities.user_templates import render_user_template_sync
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.settings.models.flows import FlowsSettings
from test_deployments import AUTOMATIONS, called, each, flow_of, unknown

from models.gate import Rules
from tasks import gate as gates
from tasks.audits import limits
from tasks.lineage import forget

# The event of a promotion


def emitted(monkeypatch, decision: str) -> ReceivedEvent:
    """What the gate emits, as the server receives it."""
    registry, emit = MagicMock(), MagicMock()
    registry.decided.return_value = registry.rolled_back.return_value = None
    registry.versions.return_value = defaultdict(dict)  # which have no tags
    monkeypatch.setattr(gates, "registry", registry)
    monkeypatch.setattr(gates, "tracking", MagicMock())
    monkeypatch.setattr(gates, "calibration", SimpleNamespace(TAG="calibration", save=lambda *_: ""))
    monkeypatch.setattr(gates, "report", MagicMock())
    monkeypatch.setattr(gates, "emit_event", emit)
    monkeypatch.setattr(
        gates, "judge", lambda *_, **__: defaultdict(float, decision=decision, rules={}, dataset="films@v1")
    )
    monkeypatch.setattr(gates.claims, "in_turn", lambda *_: nullcontext())
    candidate = {
        "evaluation": SimpleNamespace(thresholds=None),
        "checkpoint": MagicMock(),
        "run": "run",
        "model_uri": "models:/m",
    }
    dataset = SimpleNamespace(name="films", version="v1")
    gates.gate.fn("/data/films", dataset, "detector", candidate, "none", Rules(), 0)
    (name,), rest = emit.call_args
    return ReceivedEvent(id=uuid4(), occurred=datetime.now(UTC), received=datetime.now(UTC), event=name, **rest)


def watching(name: str = "infer/on-promotion", number: int = 0) -> ServerTrigger:
    """A trigger of a deployment as the server has it afterwards."""
    found = DeploymentEventTrigger.model_validate(trigger(name, number))
    found.set_deployment_id(uuid4())
    return ServerTrigger.model_validate(found.as_automation().trigger.model_dump(mode="json"))


def trigger(name: str = "infer/on-promotion", number: int = 0) -> dict[str, Any]:
    found = called(name)["triggers"]
    assert len(found) == {"infer/on-promotion": 2}.get(name, 1)
    return found[number]


def test_an_audit_that_finds_predictions_behind_starts_inference_and_no_other_finding_does(monkeypatch):
    emit = MagicMock()
    monkeypatch.setattr(limits, "emit_event", emit)
    made = [limits.Finding(name, 3, 0, "so") for name in (limits.BEHIND, *limits.FOR_PEOPLE)]
    limits.announce("/data/films", "films", "detector", made)
    now = datetime.now(UTC)
    events = [
        ReceivedEvent(id=uuid4(), occurred=now, received=now, event=name, **rest)
        for ((name,), rest) in emit.call_args_list
    ]
    first, *others = events
    assert watching(number=1).covers(first) and not watching().covers(first)
    assert not watching("retrain/on-take-down").covers(first)
    assert len(others) == len(limits.FOR_PEOPLE)
    assert not any(watching(number=n).covers(one) for one in others for n in (0, 1))
    shown = ServerTrigger.model_validate(FOUND["trigger"])
    assert all(shown.covers(one) for one in others) and not shown.covers(first), "a flow mends that one"
    rendered = {
        name: render_user_template_sync(template, {"event": first})
        for name, template in trigger(number=1)["parameters"].items()
    }
    assert rendered == {"root": "/data/films", "dataset": "films", "model": "detector"}
    assert first.payload["value"] == 3 and first.payload["limit"] == 0 and first.payload["why"] == "so"


def test_a_promotion_starts_inference_with_its_own_root_dataset_and_model(monkeypatch):
    assert trigger()["expect"] == [gates.PROMOTED]
    event = emitted(monkeypatch, "promoted")
    assert watching().covers(event)
    flow = flow_of(called("infer/on-promotion"))
    rendered = {
        name: render_user_template_sync(template, {"event": event})
        for name, template in trigger()["parameters"].items()
    }
    assert flow.validate_parameters(rendered).items() >= rendered.items()
    assert rendered == {"root": "/data/films", "dataset": "films", "model": "detector"}


def test_a_refusal_starts_nothing(monkeypatch):
    assert not watching().covers(emitted(monkeypatch, "refused"))


def test_a_take_down_starts_a_retraining_of_each_model_that_was_trained_on_it(monkeypatch):
    emit = MagicMock()
    monkeypatch.setattr("prefect.events.emit_event", emit)
    monkeypatch.setattr(forget, "_due", lambda *_: {"detector": SimpleNamespace(name="films", version="v2")})
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:4200/api"}):
        forget._tell("/data/films", forget.Takedown(SimpleNamespace(stones=[], touched={})))
    (name,), rest = emit.call_args
    event = ReceivedEvent(id=uuid4(), occurred=datetime.now(UTC), received=datetime.now(UTC), event=name, **rest)
    assert emit.call_count == 1 and watching("retrain/on-take-down").covers(event) and not watching().covers(event)
    rendered = {
        name: render_user_template_sync(template, {"event": event})
        for name, template in trigger("retrain/on-take-down")["parameters"].items()
    }
    assert rendered == {"root": "/data/films", "dataset": "films", "model": "detector"}
    assert flow_of(called("retrain/on-take-down")).validate_parameters(rendered).items() >= rendered.items()


def test_the_trigger_becomes_an_automation_that_fires_at_once():
    found = DeploymentEventTrigger.model_validate(deepcopy(trigger()))
    found.set_deployment_id(uuid4())
    automation = found.as_automation()
    assert automation.enabled and automation.actions[0].parameters == trigger()["parameters"]
    assert watching().immediate


# Automations

DEPLOYED, ANY, FOUND = AUTOMATIONS["automations"]


def event_of(state: str, *tags: str) -> ReceivedEvent:
    return ReceivedEvent(
        id=uuid4(),
        occurred=datetime.now(UTC),
        received=datetime.now(UTC),
        event=f"prefect.flow-run.{state}",
        resource={"prefect.resource.id": f"prefect.flow-run.{uuid4()}"},
        related=[
            {"prefect.resource.id": "prefect.flow.1", "prefect.resource.role": "flow"},
            *({"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"} for tag in tags),
        ],
    )


@pytest.mark.parametrize("spec", [DEPLOYED, ANY], ids=["deployed", "any"])
def test_automations_are_what_prefect_understands(spec):
    assert list(AUTOMATIONS) == ["automations"]
    assert unknown(AutomationCore, spec, "") == unknown(EventTrigger, spec["trigger"], "trigger") == []
    (action,) = spec["actions"]
    assert unknown(ChangeFlowRunState, action, "actions") == []
    for model in (AutomationCore, ServerAutomation):
        found = model.model_validate(spec)
        assert found.enabled and found.trigger.posture == Posture.Proactive
        assert found.actions[0].state == "CRASHED"


@pytest.mark.parametrize("spec", [DEPLOYED, ANY], ids=["deployed", "any"])
def test_silence_after_a_heartbeat_crashes_a_run_and_any_sign_of_life_does_not(spec):
    found = ServerTrigger.model_validate(spec["trigger"])
    heartbeat = event_of("heartbeat", "reelmill")
    assert found.covers(heartbeat) and found.starts_after(heartbeat.event) and found.meets_threshold(0)
    for state in ("heartbeat", "Completed", "Failed", "Cancelled", "Crashed", "Suspended", "AwaitingRetry"):
        event = event_of(state, "reelmill")
        assert found.covers(event) and found.expects(event.event) and not found.meets_threshold(1)
    assert not found.starts_after("prefect.flow-run.Running"), "a run without heartbeats is never crashed"
    assert found.for_each == {"prefect.resource.id"}


def test_runs_of_others_wait_three_of_their_own_heartbeats():
    stranger = event_of("heartbeat", "training")
    assert not ServerTrigger.model_validate(DEPLOYED["trigger"]).covers(stranger)
    assert ServerTrigger.model_validate(ANY["trigger"]).covers(stranger)
    default = FlowsSettings.model_fields["heartbeat_frequency"].default
    assert ServerTrigger.model_validate(ANY["trigger"]).within >= timedelta(seconds=3 * default)


@each
def test_a_deployed_run_is_watched_at_three_times_its_heartbeat(deployment):
    every = int(deployment["work_pool"]["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])
    found = ServerTrigger.model_validate(DEPLOYED["trigger"])
    assert found.covers(event_of("heartbeat", *deployment["tags"]))
    assert timedelta(seconds=3 * every) <= found.within <= timedelta(seconds=100), "found within two minutes"
