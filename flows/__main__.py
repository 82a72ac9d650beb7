"""The command line: `reelmill COMMAND …`, or `python -m flows COMMAND …`.

Options are made from the typed signature of what a command runs, which is imported only when that command is
asked for: `reelmill --help` loads neither Prefect nor torch.
"""

import errno
import importlib
import inspect
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import click

COMMANDS = {  # name: (what runs, its check before anything starts, one line of help)
    "demo": ("flows.demo:demo", "tasks.checks:demo", "Render an archive, then run the whole chain on it."),
    "prepare": ("flows.prepare:prepare", "tasks.checks:prepare", "Archive to parts, features and pseudo labels."),
    "retrain": ("flows.retrain:retrain", "tasks.checks:retrain", "Pretrain, fine-tune, evaluate, gate, promote."),
    "ablate": ("flows.ablate:ablate", "tasks.checks:ablate", "Ablation tables of the thesis on rendered archives."),
    "infer": ("flows.infer:infer", "tasks.checks:infer", "Run the champion where its predictions are missing."),
    "audit": ("flows.audit:audit", "tasks.checks:audit", "What is stale, dropped, drifting or behind."),
    "status": ("tasks.status:status", None, "What is there, lost, behind and in hand now, on one page."),
    "plan": ("tasks.plans.plan:PLANS", None, "What a flow would do, why and for how long; changes nothing."),
    "page": ("tasks.pages.page:page", None, "One HTML file with what a root says of a dataset and its model."),
    "rollback": ("tasks.rollback:rollback", None, "Give the alias champion back to an earlier version."),
    "approve": ("tasks.approval:approve", None, "Promote or refuse a challenger that waits for a person's word."),
    "select": ("tasks.select:choose", None, "Apply thresholds to the stored scores; decodes nothing again."),
    "label": ("tasks.label:relabel", None, "Place the labels of clips with several actions where scores propose."),
    "what-if": ("tasks.what_if:what_if", None, "What thresholds would keep and drop; changes nothing."),
    "features": ("tasks.backbone:features", None, "A champion's backbone features as a column, for temporal heads."),
    "adopt": ("tasks.adopt:adopt", None, "Make a dataset of WebDataset tars that exist, where they are."),
    "verify": ("tasks.verify:verify", None, "Check every byte of a root, or a sample of it."),
    "repair": ("tasks.repair:repair", None, "Take damaged objects away that can be made again; say what cannot."),
    "requeue": ("tasks.requeue:requeue", None, "Ask for quarantined videos to be tried again."),
    "drill": ("tasks.drill:drill", None, "Kill and damage things in a scratch archive; say what was lost."),
    "gc": ("tasks.gc:gc", None, "Remove what no dataset and no plan refers to."),
    "trace": (
        "tasks.lineage.trace:trace",
        None,
        "Where a model came from, or where a source went; by its indexes.",
    ),
    "forget": (
        "tasks.lineage.forget:forget",
        None,
        "Take sources down for good, and prove that nothing is left.",
    ),
    "columns": ("tasks.columns:show", None, "List columns and their versions."),
    "column-diff": ("tasks.columns:compare", None, "How two versions of a column differ."),
    "column-add": ("tasks.columns:add", None, "Add a column from a table, joined by key."),
    "column-drop": ("tasks.columns:drop", None, "Remove a version of a column that nothing uses."),
    "serve": ("tasks.serve:serve", None, "Prefect, a worker and MLflow on this machine, with all deployments."),
    "join": ("tasks.training.join:join", None, "Take part in trainings of several machines."),
    "render": ("tasks.render:render", None, "Render a labelled archive of H.264 files."),
    "annotations": ("tasks.annotations:convert", None, "Labels out of Charades, MultiTHUMOS or Kinetics annotations."),
    "submission": ("tasks.annotations:submit", None, "Predictions of held-out videos as a Charades submission."),
    "submission-score": ("tasks.annotations:measure", None, "Score a submission by the Charades protocol."),
    "cost": ("tasks.cost:cost", None, "MACs and parameters of a system, without building its weights."),
}
WORDS = {"trace": "what", "forget": "sources"}  # what a command takes as words of its own, without a flag
EXIT_INPUT, EXIT_FAILED = 2, 1
KNOWN = ("InputError", "RootError")  # the person who called can mend these
DISK = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)]  # no fault of ours
DISK += ["database or disk is full"]  # as SQLite says it
FAILURES = ["BudgetExceeded", "Incomplete", "Damaged", "Conflict", "StoreError", "TrainingFailed", "ClusterLost"]
FAILURES += ["CancelledRun"]  # such as one that another process does already


def quiet() -> None:
    """Settings of the libraries that a command line wants; what the caller has set stays."""
    for name, value in {
        # The ephemeral server takes 6 to 15 s to start, the default allows 20.
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # errors are said once, in one line, below
        "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",  # else a line for each event that a lost server did not get
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "HF_HUB_OFFLINE": "1",
        "WDS_SECURE": "1",
        # Huge pages: torch reads this once, so it has to be there before the first tensor.
        "THP_MEM_ALLOC_ENABLE": "1",
    }.items():
        os.environ.setdefault(name, value)


def _load(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def _option(parameter: inspect.Parameter, hint: Any) -> click.Option:
    """A click option of the type, default and description of a parameter."""
    description = ""
    bounds: dict[str, Any] = {}
    if get_origin(hint) is Annotated:
        hint, *notes = get_args(hint)
        for note in notes:
            description = getattr(note, "description", None) or description
            for rule in getattr(note, "metadata", []):
                bounds |= {k: getattr(rule, k) for k in ("ge", "gt", "le") if hasattr(rule, k)}
    required = parameter.default is inspect.Parameter.empty
    default = None if required else parameter.default
    words: dict[str, Any] = {
        "help": description,
        "required": required,
        "default": default,
        "show_default": not required,
    }
    flag = "--" + parameter.name.rstrip("_").replace("_", "-")  # `as_`: a word that Python keeps to itself
    kinds = [a for a in get_args(hint) if a is not type(None)]
    if get_origin(hint) is not list and get_origin(kinds[0] if kinds else None) is Literal:  # it may be left out
        hint = kinds[0]
    if get_origin(hint) is list:
        inner = get_args(hint)[0]
        choices = get_args(inner) if get_origin(inner) is Literal else ()
        plain = inner if inner in (int, float) else str
        words |= {"callback": _splitter(choices, plain), "metavar": "A,B,…"}
        words |= {} if required else {"default": ",".join(map(str, default or ()))}
        return click.Option([flag], **words)
    if get_origin(hint) is Literal:
        return click.Option([flag, parameter.name], type=click.Choice(get_args(hint)), **words)
    if hint is bool:
        return click.Option([f"{flag}/--no-{flag[2:]}"], **words)
    plain = hint if isinstance(hint, type) else kinds[0]
    if plain in (int, float) and bounds:
        kind = click.IntRange if plain is int else click.FloatRange
        least, most = bounds.get("gt", bounds.get("ge")), bounds.get("le")
        return click.Option([flag], type=kind(least, most, min_open="gt" in bounds), **words)
    return click.Option([flag], type=plain, **words)


def _words(parameter: inspect.Parameter, hint: Any) -> click.Argument:
    """What a command takes without a flag: one word, or all of them for a list."""
    many = get_origin(get_args(hint)[0]) is list
    return click.Argument([parameter.name], nargs=-1 if many else 1, required=True, callback=_listed if many else None)


def _listed(_: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> list[str]:
    return list(value)


def _splitter(choices: tuple[str, ...], kind: type = str) -> Callable[[click.Context, click.Parameter, str], list[Any]]:
    def split(_: click.Context, parameter: click.Parameter, value: str) -> list[Any]:
        found = [word.strip() for word in (value or "").split(",") if word.strip()]
        for word in found:
            if choices and word not in choices:
                raise click.BadParameter(f"{word!r} is none of {', '.join(choices)}", param=parameter)
        try:
            return [kind(word) for word in found]
        except ValueError as error:
            raise click.BadParameter(f"{value!r}: give numbers, separated by commas", param=parameter) from error

    return split


def _guard() -> None:
    """Starts a process that ends what this one has started (Prefect's server, trainings) when this one is gone.

    Prefect leaves its ephemeral server running when the flow's process is killed.
    """
    from tasks.children import MARK

    os.environ[MARK] = uuid.uuid4().hex
    command = [sys.executable, "-m", "tasks.children"]
    checkout = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    subprocess.Popen(command, cwd=checkout, stdin=subprocess.PIPE, start_new_session=True)


def _shown(text: str) -> str:
    from tasks.redaction import shown

    return shown(text)


def _run(target: Any, check: Callable[..., Any] | None, options: dict[str, Any]) -> None:
    """Runs a command; what a person can mend is one line and exit code 2, a failed stage one line and 1."""
    try:
        if check is not None:
            check(**options)
        result = _flow(target, options) if hasattr(target, "fn") else target(**options)
        if isinstance(result, str):
            click.echo(_shown(result))
    except Exception as error:
        if code := _said(error):
            sys.exit(code)
        from tasks import redaction

        redaction.install()  # the traceback that follows holds no credentials
        raise


def _flow(flow: Any, options: dict[str, Any]) -> Any:
    from tasks import silence

    _guard()
    return silence.run(flow, options, lambda error: _said(error) or EXIT_FAILED)


def _said(error: BaseException) -> int:
    """Says an error in one line and returns its exit code; 0 where it is one of ours and needs its traceback."""
    names = {kind.__name__ for kind in type(error).__mro__}
    failed = names & set(FAILURES) or any(words in str(error) for words in DISK)
    code = EXIT_INPUT if names & set(KNOWN) else EXIT_FAILED if failed else 0
    if code:
        click.echo(_shown(f"reelmill: {'' if code == EXIT_INPUT else 'failed: '}{error}"), err=True)
    return code


class Command(click.Command):
    """A command whose root may also be given first, without its flag: ``reelmill verify ROOT``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = self.name in WORDS
        if args and not args[0].startswith("-") and not words and any(option.name == "root" for option in self.params):
            args = ["--root", *args]
        return super().parse_args(ctx, args)


class Commands(click.Group):
    """Lists commands from the table and imports one only when it is run or its own help is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        quiet()
        where, check, line = COMMANDS[name]
        target = _load(where)
        if isinstance(target, dict):
            return click.Group(name, help=line, commands=[
                _command(flow, _load(COMMANDS[flow][0]), None, planned) for flow, planned in target.items()
            ])  # fmt: skip
        return _command(name, target, _load(check) if check else None)


def _command(
    name: str, target: Any, check: Callable[..., Any] | None, instead: Callable[..., Any] | None = None
) -> click.Command:
    """A command with the options of what it runs; ``instead`` is run with them where that is given."""
    function = getattr(target, "fn", target)
    hints = get_type_hints(function, include_extras=True)
    options: list[click.Parameter] = [
        _words(parameter, hints[parameter.name])
        if parameter.name == WORDS.get(name)
        else _option(parameter, hints[parameter.name])
        for parameter in inspect.signature(function).parameters.values()
    ]
    text = inspect.cleandoc((instead or function).__doc__ or "").partition("\n\nArgs:")[0]
    return Command(
        name,
        params=options,
        help=text,
        callback=lambda **given: _run(instead or target, check, given),
        context_settings={"max_content_width": 110},
    )


@click.command(cls=Commands)
@click.version_option("0.1.0", prog_name="reelmill")
def main() -> None:
    """Reelmill: from an archive of video to a promoted model and its predictions, and again on a schedule."""


if __name__ == "__main__":
    main()
