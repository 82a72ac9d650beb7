"""The page of a run in Prefect: what went in, what came out, what was lost and why, where the time went, links."""

from typing import Any

from storage import timing
from tasks import pool, report, spending


def text(title: str, said: dict[str, list[str]], rows: dict[str, Any], link: str = "") -> str:
    """A run's page: what it says under headings, where its time went, links, and every figure in a table."""
    lines = [f"# {report.escape(title)}", ""]
    for heading, some in said.items():
        lines += [f"## {heading}", "", *(f"- {report.escape(one)}" for one in some or ["nothing"]), ""]
    lines.append(timing.markdown(timing.rows(spending.between(spending.spent()))))
    more = {"Dask dashboard": pool.dashboard("status"), "MLflow": rows.pop("MLflow", "")}
    links = [f"- {name}: {url}" for name, url in more.items() if url]
    body = [f"| {report.escape(str(k))} | {report.escape(str(v))} |" for k, v in rows.items()]
    figures = ["## All figures", "", "| | |", "|---|---|", *body, ""] if body else []
    lines += ["", "## Links", "", *links, link, "", *figures]
    return "\n".join(lines)
