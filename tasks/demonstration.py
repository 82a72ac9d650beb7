"""What the demo says at its end: on the terminal what a person wants to know of it, and all of it as summary.json."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from storage import files
from tasks import account, naming, report


@dataclass
class Watch:
    """Runs the steps of the demo and keeps how long each took."""

    seconds: dict[str, float] = field(default_factory=dict)

    def __call__(self, title: str, step: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
        report.say(f"\n{title}")
        naming.rename(f"{naming.title()} · {title}")
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
    report.markdown("demo", _page(root, summary), "what the demo did")
    return summary


def _page(root: str, summary: dict[str, Any]) -> str:
    """The run's page in Prefect."""
    archive, found, gate = summary["archive"], summary["infer"], summary["gate"]
    said = {
        "What went in": [f"{archive['videos']} rendered files, seed {summary['seed']}"],
        "What came out": [
            f"{archive['kept']} kept: {summary['clips']} clips in {summary['parts']} parts",
            *(f"mAP {100 * value:.1f}, {name.replace('_', ' ')}" for name, value in summary["map"].items()),
            f"detection was {gate['decision']}: {gate['why']}; version {summary['champion']} is champion",
            f"{found['segments']} segments in {found['clips']} clips",
            f"the second runs decoded {summary['decoded_second_run']} and predicted {found['recomputed_second_run']}",
        ],
        "What was dropped, and why": [
            *([f"{archive['dropped']} dropped"] if archive["dropped"] else []),
            *(f"{n} quarantined: {reason}" for reason, n in archive["quarantined"].items()),
        ],
    }
    whole = sum(summary["seconds"].values()) or 1.0
    said["Where the time went"] = [
        f"{100 * n / whole:.0f} % {name}, {n:.1f} s" for name, n in summary["seconds"].items()
    ]
    rows = {**summary["reports"], "summary": f"{root}/summary.json", "MLflow": summary["mlflow"]["url"]}
    return account.text(f"Demo, seed {summary['seed']}", said, rows)


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
