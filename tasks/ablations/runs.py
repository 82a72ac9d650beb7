"""The trainings behind ablation tables: each once a seed, whatever number of rows and tables it has a part in."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from prefect import task
from prefect.cache_policies import NO_CACHE

from storage import files
from storage.checkpoints import Checkpoint
from storage.datasets import Dataset
from storage.errors import InputError
from tasks import tracking
from tasks.ablations.rows import PRETRAININGS, Network, Row, Table
from tasks.ensemble import join
from tasks.evaluate import evaluate_checkpoint
from tasks.report import say
from tasks.training import finetune, pretrain
from tasks.training.recipe import Recipe
from tasks.training.recipe import recipe as recipe_of
from tasks.training.spec import Spec
from tasks.training.two_stages import together


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much is rendered and trained for one seed, and what networks see; the two streams train last and least."""

    weak: int = 640
    dense: int = 120
    sparse: int = 75
    brief: int = 120
    pretrain_steps: int = 1200
    finetune_steps: int = 200
    stream_steps: int = 300  # of one stream alone on sparse videos, which have less to learn from
    brief_steps: int = 900  # of one on brief videos: where to look is learned last
    stream_lr: float = 0.01
    joint_steps: int = 80
    joint_batch: int = 8
    wide: int = 64  # frames of clips that are pooled
    whole: int = 64  # of a whole video beside them


BUDGETS = {
    "quick": Budget(
        weak=160,
        dense=45,
        sparse=24,
        brief=24,
        pretrain_steps=150,
        finetune_steps=60,
        stream_steps=100,
        brief_steps=150,
        joint_steps=30,
    ),
    "default": Budget(),
    "long": Budget(
        weak=1600,
        dense=300,
        sparse=150,
        brief=240,
        pretrain_steps=2000,
        finetune_steps=600,
        stream_steps=1000,
        brief_steps=2000,
        joint_steps=400,
        whole=128,
    ),
}


def budget_of(name: str, **given: int | None) -> Budget:
    """A budget by name, with what was given (what is None was not) in its place."""
    return replace(BUDGETS[name], **{key: value for key, value in given.items() if value is not None})


@dataclass(frozen=True)
class Training:
    """One training: what it is, and the keys of those whose weights it starts from."""

    key: str
    stage: Literal["pretrain", "alone", "together"]
    network: Network
    after: tuple[str, ...] = ()


def trainings(network: Network) -> list[Training]:
    """The trainings that a network takes, each behind those it starts from; it is the last one's."""
    if network.two_streams:
        apart = [trainings(stream) for stream in network.streams()]
        starts = tuple(made[-1].key for made in apart)
        return [*apart[0], *apart[1], Training(_key("together", network), "together", network, starts)]
    first = Training(f"pretrain-{network.pretraining}", "pretrain", Network(pretraining=network.pretraining))
    return [first, Training(_key("alone", network), "alone", network, (first.key,))]


def _key(stage: str, network: Network) -> str:
    return f"{stage}-{network.system}-{files.digest_of(asdict(network))[:8]}"


def planned(table: Table) -> list[Training]:
    """The trainings of a table, each once: pretraining, streams, then two streams together."""
    found = {one.key: one for row in table.rows for network in row.networks for one in trainings(network)}
    order = ("pretrain", "alone", "together")
    return sorted(found.values(), key=lambda one: order.index(one.stage))


def recipe(network: Network, style: str, budget: Budget, seed: int) -> Recipe:
    """The recipe of a network's trainings, where videos are of a style."""
    alone = {"sparse": budget.stream_steps, "brief": budget.brief_steps}.get(style) if not network.two_streams else None
    steps = budget.joint_steps if network.two_streams else alone or budget.finetune_steps
    _, augmentation, volumes = PRETRAININGS[network.pretraining]
    made = recipe_of(
        system=network.system,
        frames=(budget.wide if network.clips == "wide" else 16) * network.faster,
        fps=8.0 * network.faster,
        whole=budget.whole * network.faster,
        batch=budget.joint_batch if network.two_streams else 16,
        pretrain_batch=16,
        pretrain_steps=budget.pretrain_steps,
        finetune_steps=steps,
        finetune_lr=budget.stream_lr if alone else None,
        augmentation=augmentation,
        rate="source",
        seed=seed,
    )
    return replace(made, volumes=volumes)


def spec_of(
    root: str, dataset: Dataset, training: Training, starts: list[Checkpoint], style: str, budget: Budget, seed: int
) -> Spec:
    """The spec of a training, from the checkpoints of those in ``after``, in their order."""
    network = training.network
    chosen = recipe(network, style, budget, seed)
    if training.stage == "pretrain":
        return pretrain.spec_for(root, dataset, PRETRAININGS[network.pretraining][0], chosen)
    spec = finetune.spec_for(root, dataset, starts[0] if network.system == "x3d" else None, chosen)
    spec = replace(spec, options={**spec.options, **network.options}, auxiliary=network.auxiliary)
    if training.stage == "together":
        return together(spec, dict(zip(("coarse", "fine"), starts, strict=True)), chosen)
    return spec if network.system == "x3d" else replace(spec, starts={"coarse": starts[0].url}, whole=0)


@task(task_run_name="train · {training.key} · seed {seed}", cache_policy=NO_CACHE)
def train(
    root: str,
    dataset: Dataset,
    training: Training,
    starts: list[Checkpoint],
    style: str,
    budget: Budget,
    seed: int,
    parent: str,
) -> Checkpoint:
    """Trains what was not trained before, with an MLflow run of its own under ``parent``."""
    spec = spec_of(root, dataset, training, starts, style, budget, seed)
    chosen = recipe(training.network, style, budget, seed)
    return pretrain.tracked_fit(root, spec, training.key, dataset, chosen, parent, seed=str(seed))["checkpoint"]


@task(task_run_name="measure · {row.name} · seed {seed}", cache_policy=NO_CACHE)
def measure(
    root: str, dataset: Dataset, row: Row, trained: list[Checkpoint], seed: int, parent: str
) -> dict[str, float]:
    """The metrics of a row's network, or of the ensemble of several; measured once for the same weights and videos."""
    checkpoint = join(root, trained) if len(row.networks) > 1 else trained[0]
    url = files.join(root, "ablation", f"{checkpoint.digest[:20]}-{dataset.version}.json")
    try:
        metrics = files.read_json(url)
    except FileNotFoundError:
        metrics = evaluate_checkpoint(root, dataset, checkpoint, f"{row.name} · {seed}").metrics
        files.replace_json(metrics, url)
    run = tracking.resume_or_start(
        root,
        f"{row.name} · seed {seed}",
        f"{parent}-{row.name}-{seed}",
        {"row": row.name, "seed": seed, "networks": [asdict(network) for network in row.networks]},
        {"checkpoint": checkpoint.url, "checkpoint_digest": checkpoint.digest},
        parent,
    )
    tracking.log_metrics(root, run, metrics)
    tracking.log_dataset(root, run, dataset, "evaluation", len(dataset.parts))
    tracking.end(root, run)
    say(f"  measured     {row.name}, seed {seed}: {100 * metrics['every_frame_map']:.1f} mAP on every frame")
    return metrics


def chosen_seeds(seeds: list[int]) -> list[int]:
    """The seeds, each one an archive and the weights on it; raises `InputError` where there is none or one repeats."""
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise InputError(f"--seeds {','.join(map(str, seeds))}: name one or more, each once, from 0")
    return seeds


def settings(table: Table, budget: Budget, seeds: list[int]) -> dict[str, Any]:
    """What a run of a table is identified by."""
    return {"table": table.id, **asdict(budget), "seeds": seeds}
