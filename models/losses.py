"""The three objectives of thesis 001 on per-frame logits. All targets are soft labels in [0, 1], background is zero.

Letters: B batch, T frames, K classes.
"""

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as bce


def classification(logits: Tensor, labels: Tensor) -> Tensor:
    """Video-level BCE: logits and labels `[B, T, K]` are each reduced by their maximum over time (section 3.2.5)."""
    return bce(logits.amax(1), labels.amax(1))


def detection(logits: Tensor, labels: Tensor) -> Tensor:
    """Frame-level BCE of logits against labels, both `[B, T, K]` (section 4.2)."""
    return bce(logits, labels)


def dense(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean of `classification` and `detection`, with which detectors are fine-tuned (section 3.2.5)."""
    return (classification(logits, labels) + detection(logits, labels)) / 2


OBJECTIVES = {"classification": classification, "detection": detection, "dense": dense}
