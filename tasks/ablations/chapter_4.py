"""Tables 4.2, 4.4 and 4.5 of thesis 001: what detection pretraining on augmented volumes gives."""

from collections.abc import Callable
from functools import partial

from tasks.ablations.rows import KINDS, MAP, Claim, Network, Row, Table, above, coarse, fused

CLS, FREEZE, MIXUP, CUTMIX = "cls.", "Volume Freeze", "Volume MixUp", "Volume CutMix"
SHORT = {"classification": "cls.", "freeze": "VF", "mixup": "VM", "cutmix": "VC"}
MIXED = ("freeze", "mixup", "cutmix")  # the members of an ensemble, one for each augmentation
SINGLE = (
    "Shapes are drawn alike for all classes, so pretraining can only teach motion; the weak clips hold one action each "
    "and the videos several at once, which is the gap that the augmentations are for."
)


def _x3d(name: str, pretraining: str, thesis: str) -> Row:
    return Row(name, (Network(pretraining=pretraining),), {MAP: thesis})


BASELINE = _x3d(CLS, "classification", "17.28")
AUGMENTATION = Table(
    "4.2a",
    "Volume augmentations, single stream of X3D",
    "dense",
    CLS,
    (
        BASELINE,
        _x3d(FREEZE, "freeze", "18.79"),
        _x3d(MIXUP, "mixup", "19.18"),
        _x3d(CUTMIX, "cutmix", "18.99"),
        _x3d("joint", "joint", "19.11"),
        Row("ensemble", tuple(Network(pretraining=one) for one in MIXED), {MAP: "20.50"}),
    ),
    (
        *above("ensemble", "joint", CLS),
        *above("ensemble", MIXUP, CUTMIX, FREEZE, CLS),
        *above(MIXUP, CLS),
        *above(CUTMIX, CLS),
        *above(MIXUP, "joint"),
    ),
    SINGLE,
)


def _two(name: str, system: str, pretraining: str, fine: str, thesis: str) -> Row:
    return Row(name, (fused(system, pretraining, fine),), {MAP: thesis})


SLOW_FAST = ("SlowFast (cls. - cls.)", "SlowFast (VC - VC)")
PAIRS = ("Coarse-Fine (cls. - cls.)", "Coarse-Fine (VC - VC)", "Coarse-Fine (VC - cls.)")
MANY = ("Coarse (ensemble) - Fine (cls.)", "Coarse (ensemble) - Fine (cls. + ensemble)")
ON_CLS = tuple(fused("coarse_fine", one, "classification") for one in MIXED)
ALIKE = tuple(fused("coarse_fine", one, one) for one in MIXED)
MULTI_STREAM = Table(
    "4.2b",
    "Which pretraining for which stream (SlowFast_det, Coarse-Fine)",
    "sparse",
    PAIRS[0],
    (
        Row("Slow (cls.)", (coarse("stride"),), {MAP: "17.49"}),
        Row("Slow (VC)", (coarse("stride", pretraining="cutmix"),), {MAP: "18.60"}),
        Row("Coarse (cls.)", (coarse(),), {MAP: "18.13"}),
        Row("Coarse (VC)", (coarse(pretraining="cutmix"),), {MAP: "18.85"}),
        _x3d("Fast, Fine (cls.)", "classification", "17.28"),
        _x3d("Fast, Fine (VC)", "cutmix", "18.99"),
        _two(SLOW_FAST[0], "slowfast_det", "classification", "classification", "20.31"),
        _two(SLOW_FAST[1], "slowfast_det", "cutmix", "cutmix", "21.22"),
        _two(PAIRS[0], "coarse_fine", "classification", "classification", "23.29"),
        _two(PAIRS[1], "coarse_fine", "cutmix", "cutmix", "22.83"),
        _two(PAIRS[2], "coarse_fine", "cutmix", "classification", "23.57"),
        Row(MANY[0], ON_CLS, {MAP: "24.29"}),
        Row(MANY[1], ON_CLS + ALIKE, {MAP: "24.61"}),
    ),
    (
        *above(SLOW_FAST[1], SLOW_FAST[0]),
        *above(PAIRS[2], PAIRS[0], PAIRS[1]),
        *above(MANY[1], MANY[0], PAIRS[2]),
        *above("Coarse (VC)", "Coarse (cls.)"),
        *above("Fast, Fine (VC)", "Fast, Fine (cls.)"),
    ),
    "The thesis does not say how the ensembles of two streams are made. Here the first has a Coarse-Fine for each "
    "augmentation of the Coarse stream, all with a Fine stream of classification; the second those and one for each "
    "augmentation of both streams.",
)
SEGMENTS = Table(
    "4.4a",
    "Frozen segments of Volume Freeze",
    "dense",
    CLS,
    (BASELINE, _x3d("single segment", "freeze", "18.79"), _x3d("two segments", "freeze_two", "18.83")),
    (*above("single segment", CLS), *above("two segments", CLS)),
    f"{SINGLE} The thesis calls the benefit of a second segment minimal (+0.04), so their order is not counted.",
)
BOUNDARIES = Table(
    "4.4b",
    "Boundaries of Volume MixUp",
    "dense",
    CLS,
    (
        BASELINE,
        _x3d("hard", "mixup_hard", "18.86"),
        _x3d("seamless", "mixup", "19.18"),
        _x3d("seamless, manifold", "mixup_manifold", "19.24"),
    ),
    (*above("seamless", "hard", CLS), *above("seamless, manifold", CLS)),
    f"{SINGLE} Rendered actions begin and end from one frame to the next, so hard boundaries are no less like them "
    "than seamless ones. The thesis calls the gain of manifold mixing minor (+0.06), so that order is not counted.",
)
WINDOWS = Table(
    "4.4c",
    "Windows of Volume CutMix",
    "dense",
    CLS,
    (
        BASELINE,
        _x3d("transient window", "cutmix_window", "18.89"),
        _x3d("transient view", "cutmix", "18.99"),
    ),
    (*above("transient view", "transient window", CLS),),
    SINGLE,
)
CELLS = tuple(KINDS)[1:]


def _kinds(name: str, pretraining: str, *figures: str) -> Row:
    printed = dict(zip(CELLS, figures, strict=True))
    return Row(name, (Network(pretraining=pretraining),), printed, to="" if name == CLS else CLS)


def _more(name: str, one: str, other: str) -> Claim:
    """The gain of an augmentation over classification is larger on frames of one kind than on those of another."""
    return Claim((name, CLS), (CLS, name), one, other)


STATISTICS = Table(
    "4.4e",
    "Frames of one and several actions, near and away from boundaries",
    "dense",
    CLS,
    (
        _kinds(CLS, "classification", "8.63", "18.72", "17.34", "16.18"),
        _kinds(FREEZE, "freeze", "-0.14", "+1.85", "+1.41", "+1.49"),
        _kinds(MIXUP, "mixup", "+1.30", "+2.06", "+1.87", "+1.94"),
        _kinds(CUTMIX, "cutmix", "+1.16", "+1.86", "+1.68", "+1.85"),
    ),
    (
        *(_more(name, CELLS[1], CELLS[0]) for name in (FREEZE, MIXUP, CUTMIX)),
        *(claim for name in (MIXUP, CUTMIX) for claim in above(name, CLS, kind=CELLS[0])),
        *(claim for name in (FREEZE, MIXUP, CUTMIX) for kind in CELLS[1:] for claim in above(name, CLS, kind=kind)),
    ),
    "A frame is near a boundary within half a second of any start or end; the thesis gives no distance. Frames without "
    "an action belong to the last two kinds alone. Rendered videos have two actors, so several means two.",
)
STREAM_OF: dict[str, Callable[..., Network]] = {
    "Fine, Fast": Network,
    "Coarse": coarse,
    "Slow": partial(coarse, "stride"),
}
RESOLUTION = {  # relative to the first, as printed
    "classification": ("17.28", "+0.85", "+0.21"),
    "freeze": ("18.79", "-0.27", "-0.27"),
    "mixup": ("19.18", "+0.12", "-0.01"),
    "cutmix": ("18.99", "-0.14", "-0.39"),
}


def _of(stream: str, pretraining: str) -> str:
    return f"{stream} ({SHORT[pretraining]})"


RESOLUTIONS = Table(
    "4.5a",
    "Lower temporal resolutions (SlowFast_det, Coarse-Fine)",
    "sparse",
    _of("Fine, Fast", "classification"),
    tuple(
        Row(_of(stream, one), (make(pretraining=one),), {MAP: text}, to=_of("Fine, Fast", one) if place else "")
        for one, printed in RESOLUTION.items()
        for place, ((stream, make), text) in enumerate(zip(STREAM_OF.items(), printed, strict=True))
    ),
    (
        *(
            Claim(
                (_of(stream, "classification"), _of("Fine, Fast", one)),
                (_of("Fine, Fast", "classification"), _of(stream, one)),
            )
            for stream in ("Coarse", "Slow")
            for one in MIXED
        ),
        *(c for s in STREAM_OF for one in MIXED for c in above(_of(s, one), _of(s, "classification"))),
    ),
    "Pretraining is at the full rate and a Coarse stream sees a quarter of the frames after res2: whether an overview "
    "helps there is a matter of what a clip's background tells of its class, and rendered backgrounds tell nothing.",
)
SIGMAS = {"T/32": 1 / 32, "T/16": 1 / 16, "T/8": 1 / 8}
AGGREGATION = Table(
    "4.5b",
    "Temporal aggregation of the fusion's Gaussians (Coarse-Fine)",
    "sparse",
    "T/32 (cls.)",
    tuple(
        Row(
            f"{name} ({SHORT[one]})",
            (fused("coarse_fine", one, sigma=sigma),),
            {MAP: text},
            to="" if name == "T/32" else f"T/32 ({SHORT[one]})",
        )
        for one, printed in (("classification", ("22.80", "+0.68", "+0.49")), ("cutmix", ("22.84", "+0.14", "-0.01")))
        for (name, sigma), text in zip(SIGMAS.items(), printed, strict=True)
    ),  # fmt: skip
    (
        *(Claim((f"{wide} (cls.)", "T/32 (VC)"), ("T/32 (cls.)", f"{wide} (VC)")) for wide in ("T/16", "T/8")),
        *above("T/16 (cls.)", "T/8 (cls.)", "T/32 (cls.)"),
    ),
    "Rendered actions follow each other at random, so nothing far away in time helps to know an action: a wide "
    "Gaussian has little to add, whatever the pretraining.",
)
TABLES = (AUGMENTATION, MULTI_STREAM, SEGMENTS, BOUNDARIES, WINDOWS, STATISTICS, RESOLUTIONS, AGGREGATION)
