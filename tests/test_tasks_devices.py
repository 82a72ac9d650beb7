"""Inference where the model is on a GPU: what reaches it is there too, and what comes back is not.

No GPU is needed: torch's fake tensors carry a device and no numbers, and refuse to meet on two of them as real ones do.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import models
from models import coarse_fine, multi_stage_fusion
from tasks import scorer
from tasks.training.videos import Whole

TINY = {"size": "TINY"}
SYSTEMS = {
    "x3d": TINY,
    "slowfast_det": TINY,
    "ensemble": {"members": [("x3d", TINY), ("slowfast_det", TINY)]},
    "coarse_fine": TINY,
    "fine_fine": TINY,
    "pdan": {"width": 12},
    "tgm": {"width": 12},
    "super_events": {"width": 12},
}
L, S = 16, 32


def given(system):
    """Windows as inference has them, on the CPU, with their whole video where the system takes it."""
    kind = models.inputs(system, SYSTEMS[system])
    if kind == "features":
        return torch.zeros(1, L, 12), None
    video = Whole(torch.zeros(2 * L, 3, S, S, dtype=torch.uint8), 1, {})
    return torch.zeros(2, 3, L, S, S, dtype=torch.uint8), None if kind == "clip" else scorer.Context(video)


def sent(x, where):
    """`x.to(where)` of a fake tensor, without the number that it remembers, which torch would send to a real device."""
    x.constant = None
    return x.to(where)


def move(model, where):
    """`model.to(where)`, which torch does not do to fake tensors."""
    for module in model.modules():
        for name, x in module.named_parameters(recurse=False):
            module._parameters[name] = torch.nn.Parameter(sent(x, where), requires_grad=False)
        for name, x in module.named_buffers(recurse=False):
            module._buffers[name] = sent(x, where)
    return model


@pytest.fixture
def no_driver(monkeypatch):
    """`torch.tensor` asks for a driver even of a fake device; and checks of numbers find none in fake tensors."""
    make = torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda data, device="cpu", **how: sent(make(data, **how), device))
    monkeypatch.setattr(coarse_fine, "holds", lambda condition: True)
    monkeypatch.setattr(multi_stage_fusion, "check_valid", lambda *_: None)


@pytest.mark.parametrize("system", SYSTEMS)
def test_all_that_reaches_a_model_is_where_it_is(system, no_driver):
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        model = move(models.build(system, num_classes=3, **SYSTEMS[system]).eval(), "cuda")
        clips, context = given(system)
        found = scorer.answer(model, clips, [0, 4][: len(clips)], context)
        with pytest.raises(RuntimeError, match="different devices|same device"):
            model(scorer.pixels(clips, model) if clips.dtype == torch.uint8 else clips)
    assert {x.device.type for x in (*model.parameters(), *model.buffers())} == {"cuda"}
    assert isinstance(found, FakeTensor) and found.device.type == "cpu" and found.shape == (len(clips), L, 3)


def test_a_gpu_is_used_where_there_is_one(monkeypatch):
    for there, name in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert scorer.device() == torch.device(name)
