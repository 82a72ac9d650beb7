"""Tables 3.3 and 3.4 of thesis 001: Grid Pool and Multi-stage Fusion, on videos in which little happens."""

from tasks.ablations.rows import MAP, Network, Row, Table, above, coarse, fused

BRIEF = (
    "Events of 0.5 to 1 s in videos of 14 to 20 s, before a camera that shakes: what pooling by four frames blurs is "
    "there to be lost, and a motion is told from the hand's by more than the seven frames that the layers before the "
    "pooling see, so a grid that comes close has something to find. But Grid Unpool reads the logits at even places "
    "again before it interpolates: points close together place an event no more finely than striding does."
)


def _row(name: str, network: Network, thesis: str, gflops: str = "") -> Row:
    return Row(name, (network,), {MAP: thesis}, gflops=gflops)


LOCATION = Table(
    "3.3a",
    "Fusion location (Fine-Fine)",
    "sparse",
    "late",
    (
        _row("late", fused("fine_fine", fusion="late"), "21.84", "77.15"),
        _row("one-to-one", fused("fine_fine", fusion="one_to_one"), "22.50", "81.80"),
        _row("multi-stage", fused("fine_fine", fusion="multi_stage"), "22.65", "94.80"),
    ),
    above("multi-stage", "one-to-one", "late"),
    "A class of the rendered videos is one motion of one shape, which the last layers know; the scenes, objects and "
    "parts that the levels of a network tell apart in Charades are not drawn. Little may be expected of more levels.",
)
MASK = Table(
    "3.3c",
    "Fusion mask (Fine-Fine)",
    "sparse",
    "late, no mask",
    (
        _row("late, no mask", fused("fine_fine", fusion="late", attention=False), "20.59", "75.98"),
        _row("late, self-attention", fused("fine_fine", fusion="late"), "21.84", "77.15"),
        _row("multi-stage, no mask", fused("fine_fine", fusion="multi_stage", attention=False), "21.42", "92.69"),
        _row("multi-stage, self-attention", fused("fine_fine", fusion="multi_stage"), "22.65", "94.80"),
    ),
    (
        *above("late, self-attention", "late, no mask"),
        *above("multi-stage, self-attention", "multi-stage, no mask", "late, no mask"),
    ),
    "The Gaussians are as wide as an eighth of the video, several seconds, in which still frames outnumber moving "
    "ones: a mask that leaves those out has its chance here.",
)
CONFIGURATION = Table(
    "3.3d",
    "Grid Pool: frames and alpha (Coarse only)",
    "brief",
    "T, 1/4",
    (
        _row("T, 1/8", coarse(alpha=1 / 8), "11.88", "10.43"),
        _row("T, 1/4", coarse(), "18.12", "16.53"),
        _row("2T, 1/8", coarse(alpha=1 / 8, faster=2), "15.56", "20.63"),
        _row("2T, 1/4", coarse(faster=2), "18.16", "32.82"),
    ),
    (
        *above("T, 1/4", "T, 1/8"),
        *above("2T, 1/4", "2T, 1/8"),
        *above("2T, 1/8", "T, 1/8"),
        *above("T, 1/4", "2T, 1/8"),
    ),
    "2T has twice the frames of the same seconds. The thesis's FLOPs of 1/8 are those of 1/16, so its rows may be, "
    "too; here 1/8 is an eighth. Sources have 12 to 24 frames a second, so 2T repeats some of them.",
)
POOLING = Table(
    "3.3e",
    "Pooling type (Coarse only)",
    "brief",
    "striding",
    (
        _row("max", coarse("max"), "16.21", "15.42"),
        _row("average", coarse("average"), "16.64", "15.42"),
        _row("striding", coarse("stride"), "17.49", "15.42"),
        _row("Grid Pool", coarse(), "18.12", "16.53"),
    ),
    above("Grid Pool", "striding", "average", "max"),
    BRIEF,
)
STREAMS = Table(
    "3.3f",
    "Grid Pool and Multi-stage Fusion combined (two streams)",
    "sparse",
    "SlowFast_det",
    (
        _row("SlowFast_det", fused("slowfast_det"), "20.61", "54.31"),
        _row("SlowFast_det with Grid Pool", fused("slowfast_det", pooling="grid"), "20.82", "55.42"),
        _row(
            "SlowFast_det with fusion",
            fused("slowfast_det", fusion="multi_stage", attention=True, correspondence="gaussian"),
            "22.79",
            "72.16",
        ),
        _row("Coarse-Fine", fused("coarse_fine"), "23.24", "73.37"),
    ),
    (
        *above("Coarse-Fine", "SlowFast_det with fusion", "SlowFast_det"),
        *above("Coarse-Fine", "SlowFast_det with Grid Pool", "SlowFast_det"),
    ),
    "Actions are drawn independently of each other, so that what a Gaussian fusion tells of other seconds of the video "
    "says nothing of this one, where in Charades one action leads to the next; SlowFast_det's frame-by-frame laterals "
    "lose nothing by not looking.",
)
AUXILIARY = Table(
    "3.4",
    "Auxiliary losses of Grid Pool (Coarse only)",
    "brief",
    "Grid Pool",
    (
        _row("Grid Pool", coarse(), "18.12"),
        _row("with reconstruction", coarse(auxiliary="reconstruction"), "15.28"),
        _row("with flow", coarse(auxiliary="flow"), "15.89"),
    ),
    (*above("Grid Pool", "with flow", "with reconstruction"),),
    "Motion is the difference of successive frames, which in rendered videos marks events almost without noise; the "
    "thesis blames the noise of flow between frames far apart. That loss may well help here where it did not there.",
)
TABLES = (LOCATION, MASK, CONFIGURATION, POOLING, STREAMS, AUXILIARY)
