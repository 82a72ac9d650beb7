"""What a flow says at its end: a page in Prefect, lines on the terminal, and for the demo a summary.json."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, TaskRunFilter
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run

from storage import datasets, files
from storage.datasets import Dataset
from storage.ledger import Report
from tasks import page, pool, rates, registry, report, tracking
from tasks.audit_data import in_files
from tasks.footprint import MEASURES, shown


def _page(title: str, rows: dict[str, Any]) -> str:
    body = "\n".join(f"| {report.escape(str(k))} | {report.escape(str(v))} |" for k, v in rows.items())
    return f"# {title}\n\n| | |\n|---|---|\n{body}\n"


def _beside() -> dict[str, str]:
    """What a page says besides: where the time went, and the Dask dashboard where a cluster does the work."""
    found = {"time by stage": rates.shares(), "Dask dashboard": pool.dashboard("status")}
    return {name: value for name, value in found.items() if value}


def standing(root: str, name: str) -> str:
    """The version of a dataset that counts now; empty where there is none."""
    return datasets.latest(root, name)


def prepared(
    root: str, dataset: Dataset, before: str, reports: list[Report], features: str, labels: str, sheets: dict[str, Any]
) -> dict[str, Any]:
    """The outcome of `prepare`: what went in, what came out, what was lost and why, what was decoded.

    ``before`` is the version that counted when it began, ``reports`` are those of listing, sharding, scoring,
    selection and feature extraction.
    """
    listed, sharded, scored, selected, extracted = reports
    both = listed.quarantined + sharded.quarantined
    quarantined = dict(sorted(both.items(), key=lambda reason: (-reason[1], reason[0])))
    decoded = sharded.decoded + scored.decoded + extracted.decoded
    dropped = listed.dropped.total() + sharded.dropped.total()
    found = {
        "dataset": dataset.name,
        "version": dataset.version,
        "videos": listed.items,
        "pieces": sharded.kept + dropped + both.total(),  # a long video is read in several
        "kept": sharded.kept,
        "dropped": dropped,
        "dropped_by_reason": dict(listed.dropped + sharded.dropped),
        "quarantined": quarantined,
        "parts": len(dataset.parts),
        "clips": dataset.clips,
        "clips_selected": selected.kept,
        "clips_dropped": dict(selected.dropped),
        "bytes": sum(part.bytes for part in dataset.parts),
        "decoded": decoded,
        "features": features,
        "pseudo_labels": labels,
        "contact_sheet": sheets["sheet"],
        "materialised": sheets["materialised"],
        "task_runs": task_runs(),
    }
    lost = ", ".join(f"{n} {reason}" for reason, n in quarantined.items()) or "none"
    of = in_files(found["videos"], found["pieces"])
    report.say(
        f"  prepared     {of}: {found['kept']} kept, {found['dropped']} dropped, "
        f"quarantined {lost}; "
        f"{found['clips']} clips in {found['parts']} parts; {decoded} decodes in this run"
    )
    if dataset.version == before and not decoded and not sheets["materialised"]:
        why = f"the {found['videos']} files listed are those of {dataset.name}@{dataset.version}, and have all columns"
        report.say(f"  prepared     nothing to do: {why}")
        found |= {"nothing_to_do": why}
    rates.keep(root, "prepare", dataset.name)
    report.rename(f"prepare · {dataset.name} · {dataset.clips:,} clips, {of}")
    found |= {"report": page.told(root, "prepare", dataset.name)}
    text = _page(f"Dataset {dataset.name} {dataset.version}", found | _beside()) + page.link(found["report"])
    report.markdown("prepare", text, "what prepare did")
    return found


def measured(candidates: dict[str, PrefectFuture]) -> dict[str, PrefectFuture]:
    """Waits for the candidates; those that ended well. One that failed keeps no other from the gate."""
    for future in candidates.values():
        future.wait()
    return {kind: future for kind, future in candidates.items() if future.state.is_completed()}


def settled(root: str, run: str, *futures: PrefectFuture) -> None:
    """Waits for tasks in the order in which they feed each other; raises what the first that failed raised.

    Asking the last one alone would say that it is pending, as it never began. Ends the MLflow run as failed.
    """
    try:
        for future in futures:
            future.result()
    except BaseException:
        tracking.end(root, run, "FAILED")
        raise


def retrained(
    root: str,
    dataset: Dataset,
    model: str,
    run: str,
    candidates: list[dict[str, Any]],
    decisions: dict[str, Any],
) -> dict[str, Any]:
    """The outcome of `retrain`: metrics of every candidate and every decision of the gate."""
    scores = {c["kind"]: c["evaluation"].metrics for c in candidates}
    named = {"every_frame_map": "map"} | {name: name for name in MEASURES}
    facts = {f"{kind}_{to}": values[name] for kind, values in scores.items() for name, to in named.items()}
    tracking.log_metrics(root, run, facts)
    tracking.end(root, run)
    champion = registry.champion(root, model)
    found = {
        "dataset": f"{dataset.name}@{dataset.version}",
        "metrics": scores,
        "excluded_classes": {c["kind"]: c["evaluation"].excluded for c in candidates},
        "gates": decisions,
        "champion": champion.version if champion else None,
        "figures": {c["kind"]: c["figures"] for c in candidates},
        "mlflow_run": run,
        "mlflow_url": tracking.run_url(root, run),
        "report": page.told(root, "retrain", dataset.name, model, run),
        "task_runs": task_runs(),
    }
    rows: dict[str, Any] = {f"{kind}: mAP": f"{100 * v['every_frame_map']:.1f}" for kind, v in scores.items()}
    rows |= {f"{kind}: cost": shown(v) for kind, v in scores.items()}
    rows |= {f"gate: {kind}": f"{d['decision']}, {d['why']}" for kind, d in decisions.items()}
    rows |= {"champion": f"{model} version {found['champion']}", "MLflow": found["mlflow_url"]}
    report.rename(f"retrain · {dataset.name} · champion v{found['champion']} · {len(candidates)} candidates")
    text = _page(f"Retraining on {dataset.name}", rows | _beside()) + page.link(str(found["report"]))
    report.markdown("retrain", text, "what retrain did")
    return found


def inferred(root: str, dataset: str, model: str, found: dict[str, Any]) -> dict[str, Any]:
    """The outcome of `infer`."""
    report.say(
        f"  inferred     {found['predicted']} of {found['clips']} clips, {found['segments']} segments; "
        f"{found['segments_path']}"
    )
    if not found["predicted"] and not found["left"]:
        why = f"every clip of {dataset} has the predictions of {model} version {found['champion']}"
        report.say(f"  inferred     nothing to do: {why}")
        found = found | {"nothing_to_do": why}
    rates.keep(root, "infer", dataset)
    report.rename(f"infer · {model} v{found['champion']} · {found['predicted']:,} of {found['clips']:,} clips")
    found = found | {"report": page.told(root, "infer", dataset, model)}
    champion = registry.champion(root, model)
    links = {"MLflow": tracking.run_url(root, champion.run)} if champion else {}
    text = _page(f"{model} over {dataset}", found | links | _beside()) + page.link(found["report"])
    report.markdown("infer", text, "what infer did")
    return found | {"task_runs": task_runs()}


def task_runs() -> int | None:
    """How many task runs the current flow run has had so far; None where Prefect's server does not answer."""
    return report.tell(_count_task_runs) if flow_run.id else 0


def _count_task_runs() -> int:
    with get_client(sync_client=True) as client:
        only = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run.id]))
        return len(client.read_task_runs(flow_run_filter=only, task_run_filter=TaskRunFilter(), limit=200))


@dataclass
class Watch:
    """Runs the steps of the demo and keeps how long each took."""

    seconds: dict[str, float] = field(default_factory=dict)

    def __call__(self, title: str, step: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
        report.say(f"\n{title}")
        began = time.monotonic()
        result = step(*args, **options)
        self.seconds[title] = round(time.monotonic() - began, 2)
        return result


def demonstrated(
    root: str,
    made: dict[str, Any],
    first: dict[str, Any],
    again: dict[str, Any],
    trained: dict[str, Any],
    inferred_first: dict[str, Any],
    inferred_again: dict[str, Any],
    audited: dict[str, Any],
    watch: Watch,
) -> dict[str, Any]:
    """Writes ``summary.json`` and prints what a person would want to know of the demo."""
    scores = {kind: values["every_frame_map"] for kind, values in trained["metrics"].items()}
    gate = trained["gates"]["detection"]
    summary = {
        "seed": made["seed"],
        "archive": {
            "videos": first["videos"],
            "kept": first["kept"],
            "dropped": first["dropped"],
            "quarantined": first["quarantined"],
        },
        "parts": first["parts"],
        "clips": first["clips"],
        "decoded_first_run": first["decoded"],
        "decoded_second_run": again["decoded"],
        "map": {
            "classification_pretraining": scores["classification"],
            "detection_pretraining": scores["detection"],
            "no_pretraining": scores["none"],
        },
        "metrics": trained["metrics"],
        "gate": {name: gate[name] for name in ("decision", "delta", "ci_low", "ci_high", "why")},
        "gates": trained["gates"],
        "champion": trained["champion"],
        "infer": {
            "clips": inferred_first["clips"],
            "segments": inferred_first["segments"],
            "predicted_first_run": inferred_first["predicted"],
            "recomputed_second_run": inferred_again["predicted"],
            "predictions": inferred_first["predictions_path"],
            "segments_table": inferred_first["segments_path"],
        },
        "task_runs": {
            "prepare": first["task_runs"],
            "prepare again": again["task_runs"],
            "retrain": trained["task_runs"],
            "infer": inferred_first["task_runs"],
            "infer again": inferred_again["task_runs"],
        },
        "seconds": watch.seconds,
        "mlflow": {"run": trained["mlflow_run"], "url": trained["mlflow_url"]},
        "figures": {**trained["figures"], "volumes": first["contact_sheet"]},
        "reports": {"prepare": again["report"], "retrain": trained["report"], "infer": inferred_again["report"]},
        "audit": audited,
    }
    files.replace_json(summary, files.join(root, "summary.json"))
    _tell(root, summary)
    return summary


def _tell(root: str, summary: dict[str, Any]) -> None:
    archive, scores, gate, found = (summary[name] for name in ("archive", "map", "gate", "infer"))
    bad = sum(archive["quarantined"].values())
    reasons = ", ".join(f"{n} {reason}" for reason, n in archive["quarantined"].items())
    numbers = "" if gate["ci_low"] is None else "{delta:+.3f}, 95 % CI {ci_low:+.3f} to {ci_high:+.3f}".format(**gate)
    percent = {name: f"{100 * value:.1f}" for name, value in scores.items()}
    looked = filter(None, [summary["reports"]["infer"], summary["figures"]["volumes"]])
    lines = {
        "archive": f"{archive['videos']} files = {archive['kept']} kept + {archive['dropped']} dropped + {bad} "
        f"quarantined ({reasons})",
        "parts": f"{summary['parts']} with {summary['clips']} clips",
        "decoded": f"{summary['decoded_first_run']} in the first run, {summary['decoded_second_run']} in the second",
        "mAP": f"no pretraining {percent['no_pretraining']} · classification "
        f"{percent['classification_pretraining']} · detection {percent['detection_pretraining']}, on held-out videos",
        "gate": f"detection challenged the champion and was {gate['decision']} ({numbers})",
        "infer": f"{found['segments']} segments in {found['clips']} clips; "
        f"{found['recomputed_second_run']} recomputed in the second run",
        "look at": "\n             ".join([*looked, *_figures(summary), f"{root}/summary.json"]),
        "next": "`make serve` shows Prefect and MLflow in the browser, with the schedules of prefect.yaml",
    }
    report.say("\n" + "\n".join(f"{title:<12} {text}" for title, text in lines.items()))


def _figures(summary: dict[str, Any]) -> list[str]:
    folder = summary["figures"]["detection"]
    return [files.join(folder, name) for name in files.names(folder, ".png")]
