"""MixUp at a random depth of a network: what is mixed where, with which labels, and that training goes through it."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import models
from models.augment import Manifold, augment, manifold, sample_mixup
from models.losses import detection
from models.volume import mixup_alpha, volume_mixup
from tests.volumes import batch, ints, seeded

torch.set_num_threads(1)
DEPTHS = models.build("x3d", size="TINY", num_classes=2).depths


def drawn_at(depth, B=4, T=8, seed=0):
    """A Manifold at a chosen depth."""
    places = sample_mixup(B, T, seeded(seed))
    partner = torch.arange(B).roll(1)
    return Manifold(depth, partner, places["shift"], mixup_alpha(T, **places)), places


def test_the_maps_of_its_depth_are_mixed_as_pixels_are():
    video, labels = batch()
    mix, places = drawn_at("res3")
    expected = volume_mixup(video, labels, video[mix.partner], labels[mix.partner], **places)
    torch.testing.assert_close(mix("res3", video), expected[0])
    torch.testing.assert_close(mix.mix(labels, 1), expected[1])


def test_all_other_depths_are_left_alone():
    video, _ = batch()
    mix, _ = drawn_at("res3")
    assert all(mix(depth, video) is video for depth in DEPTHS if depth != "res3")


def test_mixing_by_hand():
    """Clip 1 leaves over frames 1 to 3 of 4: weights 1, 1, 2/3, 1/3; the other one begins at frame 1."""
    alpha = mixup_alpha(4, ints(1, 1))
    mix = Manifold("video", ints(1, 0), ints(1, 1), alpha)
    x = torch.tensor([[3.0, 3.0, 3.0, 3.0], [30.0, 60.0, 90.0, 120.0]]).view(2, 1, 4, 1, 1)
    got = mix("video", x)[:, 0, :, 0, 0]
    assert torch.allclose(got[0], torch.tensor([3, 3, 2 + 20, 1 + 60.0]))
    assert torch.allclose(got[1], torch.tensor([30, 60, 60 + 1, 40 + 2.0]))


def test_every_depth_is_drawn_and_all_follows_from_the_generator():
    _, labels = batch()
    found = Counter(manifold(labels, seeded(seed), DEPTHS)[1].depth for seed in range(200))
    assert set(found) == set(DEPTHS) and min(found.values()) > 15
    one, two, other = (manifold(labels, seeded(seed), DEPTHS) for seed in (3, 3, 4))
    assert torch.equal(one[0], two[0]) and one[1].depth == two[1].depth and torch.equal(one[1].alpha, two[1].alpha)
    assert not torch.equal(one[0], other[0])


def test_no_clip_meets_itself_and_labels_keep_their_mass():
    _, labels = batch(B=5)
    for seed in range(20):
        mixed, drawn = manifold(labels, seeded(seed), DEPTHS)
        assert (drawn.partner != torch.arange(5)).all() and sorted(drawn.partner.tolist()) == list(range(5))
        assert torch.allclose(mixed.sum(-1), torch.ones(5, 8))


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_system_goes_on_from_the_mixed_maps_of_a_depth(depth):
    """What x3d returns for the depth is what it went on with: mixing before and after give the same from there."""
    torch.manual_seed(0)
    model = models.build("x3d", size="TINY", num_classes=6).eval()
    video = torch.randn(4, 3, 8, 24, 24)
    mix, _ = drawn_at(depth)
    plain, mixed = model(video), model(video, mix)
    if depth == "video":
        torch.testing.assert_close(mixed["logits"], model(mix("video", video))["logits"])
    else:
        torch.testing.assert_close(mixed[depth], mix(depth, plain[depth]))
    before = DEPTHS[: DEPTHS.index(depth)]
    assert all(torch.equal(mixed[name], plain[name]) for name in before if name != "video")
    assert not torch.allclose(mixed["logits"], plain["logits"])


def test_a_system_names_all_its_depths():
    seen = []
    model = models.build("x3d", size="TINY", num_classes=6).eval()
    model(torch.randn(1, 3, 4, 24, 24), lambda depth, maps: seen.append(depth) or maps)
    assert tuple(seen) == DEPTHS


@pytest.mark.parametrize("depth", DEPTHS)
def test_gradients_reach_every_parameter_through_it(depth):
    torch.manual_seed(0)
    model = models.build("x3d", size="TINY", num_classes=6)
    _, labels = batch()
    mix, _ = drawn_at(depth)
    detection(model(torch.randn(4, 3, 8, 24, 24), mix)["logits"], mix.mix(labels, 1)).backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in model.parameters())


def test_it_goes_through_data_parallel_training():
    model = models.build("x3d", size="TINY", num_classes=6)
    mix, _ = drawn_at("res4")
    torch.manual_seed(0)
    video = torch.randn(4, 3, 8, 24, 24)
    with one_process():
        wrapped = nn.parallel.DistributedDataParallel(model)
        got = wrapped(video, edit=mix)["res4"]
    assert torch.isfinite(got).all() and F.mse_loss(got, model(video)["res4"]) > 0


class one_process:
    """A process group of this process alone."""

    def __enter__(self):
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)

    def __exit__(self, *_):
        torch.distributed.destroy_process_group()


def test_what_cannot_be_mixed_is_refused():
    _, labels = batch()
    with pytest.raises(ValueError, match="names its depths"):
        manifold(labels, seeded(), ())
    with pytest.raises(ValueError, match="mixes inside a network"):
        augment(*batch(), seeded(), "manifold")
    mix, _ = drawn_at("res3")
    with pytest.raises(ValueError, match=r"res3: mixing was drawn for 4 clips of 8 frames, got \[4, 3, 4, 5, 12\]"):
        mix("res3", torch.zeros(4, 3, 4, 5, 12))
