"""The three objectives of thesis 001 on per-frame logits. All targets are soft labels in [0, 1], background is zero.

Letters: B batch, T frames, K classes.
"""

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as bce


def classification(logits: Tensor, labels: Tensor) -> Tensor:
    """Clip-level BCE of logits `[B, T, K]` averaged over time, as a clip classifier pools: the baseline of 4.3.1.

    The target is the maximum of the labels `[B, T, K]` over time.
    """
    return bce(logits.mean(1), labels.amax(1))


def detection(logits: Tensor, labels: Tensor) -> Tensor:
    """Frame-level BCE of logits against labels, both `[B, T, K]` (section 4.2)."""
    return bce(logits, labels)


def dense(logits: Tensor, labels: Tensor) -> Tensor:
    """What detectors are fine-tuned with (section 3.2.5): the mean of localisation and classification BCE.

    Localisation is `detection`; classification compares the maxima over time of both.
    """
    return (detection(logits, labels) + bce(logits.amax(1), labels.amax(1))) / 2


OBJECTIVES = {"classification": classification, "detection": detection, "dense": dense}
