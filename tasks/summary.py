"""What a flow says at its end: a page in Prefect, a name and tags, and lines on the terminal."""

from collections import Counter
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, TaskRunFilter
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run

from storage import datasets
from storage.datasets import Dataset
from storage.inventory import in_units
from storage.ledger import Report
from tasks import account, naming, registry, report, tracking
from tasks.audits.contents import in_files
from tasks.footprint import MEASURES, shown
from tasks.pages import page
from tasks.plans import rates


def _reasons(counts: dict[str, int], verdict: str) -> list[str]:
    return [f"{n:,} {verdict}: {reason}" for reason, n in counts.items()]


def _nothing(found: dict[str, Any]) -> str:
    """What a report page says first of a run that had nothing to do."""
    return f"Nothing to do: {found['nothing_to_do']}." if "nothing_to_do" in found else ""


def _lost(dropped: int, quarantined: Counter[str]) -> list[str]:
    """Tags of a run that lost something."""
    counts = {"dropped": dropped, "quarantined": quarantined.total()}
    return [name for name, n in counts.items() if n]


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
    naming.rename(f"prepare · {dataset.name} · {dataset.clips:,} clips, {of}", dataset.name, *_lost(dropped, both))
    note = _nothing(found)
    found |= {"report": page.told(root, "prepare", dataset.name, note=note, unchanged=dataset.version if note else "")}
    said = {
        "What went in": [f"{of} of {(flow_run.parameters or {}).get('archive', 'the archive')}"],
        "What came out": [
            f"{sharded.kept:,} kept: {dataset.clips:,} clips in {len(dataset.parts):,} parts, "
            f"{in_units(found['bytes'])}; {selected.kept:,} of them selected",
            note or f"{decoded:,} decodes in this run",
        ],
        "What was dropped, and why": [
            *_reasons(found["dropped_by_reason"], "files dropped"),
            *_reasons(quarantined, "files quarantined"),
            *_reasons(found["clips_dropped"], "clips dropped"),
        ],
    }
    text = account.text(f"Dataset {dataset.name} {dataset.version}", said, found, page.link(found["report"]))
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
    rates.keep(root, "retrain", dataset.name)
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
    won = [kind for kind, decision in decisions.items() if decision["decision"] == "promoted"]
    came = f"{won[-1]} promoted" if won else f"{len(candidates)} candidates, none promoted"
    naming.rename(f"retrain · {dataset.name} · champion v{found['champion']} · {came}", dataset.name, model)
    said = {
        "What went in": [
            f"{dataset.name}@{dataset.version}: {dataset.clips:,} clips in {len(dataset.parts):,} parts",
            f"{len(candidates)} candidates: {', '.join(scores)}",
        ],
        "What came out": [
            f"{model} version {found['champion']} is champion",
            *(f"{kind}: mAP {100 * v['every_frame_map']:.1f}" for kind, v in scores.items()),
        ],
        "What was not promoted, and why": [
            f"{kind} was {d['decision']}: {d['why']}" for kind, d in decisions.items() if d["decision"] != "promoted"
        ],
        "Classes that were not measured": [
            f"{c['kind']}: {', '.join(map(str, c['evaluation'].excluded))}"
            for c in candidates
            if c["evaluation"].excluded
        ],
    }
    text = account.text(f"Retraining on {dataset.name}", said, rows, page.link(str(found["report"])))
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
    done = f"{found['clips'] - found['left']:,} of {found['clips']:,} clips"
    nothing = "nothing to do · " if "nothing_to_do" in found else ""
    tags = (dataset, model, f"champion v{found['champion']}")
    naming.rename(f"infer · champion v{found['champion']} · {nothing}{done}", *tags)
    note = _nothing(found)
    same = f"{datasets.load(root, dataset).version}-v{found['champion']}" if note else ""
    found = found | {"report": page.told(root, "infer", dataset, model, note=note, unchanged=same)}
    champion = registry.champion(root, model)
    links = {"MLflow": tracking.run_url(root, champion.run)} if champion else {}
    had = found["clips"] - found["left"] - found["predicted"]
    said = {
        "What went in": [
            f"{found['clips']:,} clips in {found['parts']:,} parts of {dataset}; {had:,} had predictions already",
            f"{model} version {found['champion']}, the champion",
        ],
        "What came out": [
            note or f"{found['predicted']:,} clips predicted in this run",
            f"{found['segments']:,} segments in {found['segments_path']}",
        ],
        "What was left out, and why": [f"{found['left']:,} clips: {found['why_left']}"] if found["left"] else [],
    }
    text = account.text(f"{model} over {dataset}", said, found | links, page.link(found["report"]))
    report.markdown("infer", text, "what infer did")
    return found | {"task_runs": task_runs()}


ABLATED = {"figure": "figure", "MLflow run": "mlflow"}


def ablated(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The outcome of `ablate`, whose tables have runs and pages of their own."""
    tables, whole = [one["table"] for one in found], sum(one["seconds"] for one in found) or 1.0
    said = {
        "What went in": [f"{len(tables)} tables of thesis 001: {', '.join(tables)}; each is a run below this one"],
        "What came out": [f"table {one['table']}: {one['holds']}" for one in found],
        "What was dropped, and why": [],
        "What took how long": [
            f"table {one['table']}: {one['seconds']:.0f} s, {100 * one['seconds'] / whole:.0f} %; its page says on what"
            for one in found
        ],
    }
    rows = {f"{what} of table {one['table']}": one[name] for one in found for what, name in ABLATED.items()}
    report.markdown("ablate", account.text("Ablations", said, rows), "what ablate did")
    naming.rename(f"ablate · {', '.join(tables)} · done")
    return found


def task_runs() -> int | None:
    """How many task runs the current flow run has had so far; None where Prefect's server does not answer."""
    return report.tell(_count_task_runs) if flow_run.id else 0


def _count_task_runs() -> int:
    with get_client(sync_client=True) as client:
        only = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run.id]))
        return len(client.read_task_runs(flow_run_filter=only, task_run_filter=TaskRunFilter(), limit=200))
