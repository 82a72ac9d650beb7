"""What a flow run that fails leaves on its page: why it failed, what was done until then, what was lost, what to do."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from storage import files, timing
from storage.errors import InputError
from storage.secrets import printable
from tasks import report, spending
from tasks.audits import contents
from tasks.pages import page

Function = TypeVar("Function", bound=Callable[..., Any])
LONGEST = 2000  # characters of an error


def accounted(function: Function) -> Function:
    """A flow's function that says on the run's page, and on a report page, what came of it where it fails."""

    @functools.wraps(function)
    def run(*args: Any, **words: Any) -> Any:
        try:
            return function(*args, **words)
        except Exception as error:
            given = inspect.signature(function).bind(*args, **words)
            given.apply_defaults()
            _tell(function.__name__, given.arguments, error)
            raise

    return run  # type: ignore[return-value]


def _tell(flow: str, given: dict[str, Any], error: Exception) -> None:
    """Tells Prefect and the report page of a failure; what goes wrong here hides no failure."""
    try:
        root, name = str(given["root"]), str(given.get("dataset") or given.get("name") or "")
        why = printable(f"{type(error).__name__}: {error}")[:LONGEST]
        lines = [f"# {flow} failed", "", report.escape(why), "", _remedy(error), ""]
        if name and not isinstance(error, InputError):
            lines += _losses(root, name)
            lines.append(page.link(page.told(root, flow, name, str(given.get("model") or ""), failure=why)))
        rows = timing.rows(spending.between(spending.spent()))
        report.markdown(f"{flow}-failed", "\n".join([*lines, timing.markdown(rows)]), f"why {flow} failed")
    except Exception as second:
        report.say(f"  page         the failure could not be told ({type(second).__name__}: {second})")


def _remedy(error: Exception) -> str:
    if isinstance(error, InputError):
        return "Nothing was begun that has to be undone; mend what it names and run it again."
    return "What is committed stays. Run it again with the same options: only what is missing is done."


def _losses(root: str, name: str) -> list[str]:
    """What became of the archive's files so far, by the ledgers."""
    root = files.existing_root(root)
    data = page.dataset_of(root, name)
    found = contents.funnel(root, data)
    if not found["listed"]:
        return []
    ends = ", ".join(f"{found[end]:,} {end}" for end in ("kept", "dropped", "quarantined"))
    lines = [f"{contents.in_files(found['listed'], found['pieces'])} so far: {ends}", ""]
    return [*lines, *(f"- {n:,} {report.escape(reason)}" for reason, n in found["by_reason"].items()), ""]
