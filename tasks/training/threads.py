"""How threads beside a training leave it the cores."""

import torch
from threadpoolctl import threadpool_limits


def beside() -> None:
    """Has torch use one core in the calling thread, whatever it uses in others.

    A thread that computes has a team of OpenMP's threads of its own. With more of them than cores libgomp lets all wait
    asleep, also those of the training, which then wakes them for every layer. `torch.set_num_threads` would be heard by
    threads that have not begun to compute, the training's among them.
    """
    torch.get_num_threads()  # torch gives a thread its number on first use, and would do so later
    threadpool_limits(1, "openmp")
