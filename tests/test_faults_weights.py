"""Weights from elsewhere, wherever they are read: evil, cut, flipped, of another model, not finite (131 to 134)."""

import io
import json
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save as to_safetensors

from models import clip
from storage import checkpoints, files, records
from storage.errors import Damaged, InputError
from tasks import extract, scorer, train_rank
from tasks.train_rank import Spec


class Evil:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


def evil_pt(canary) -> bytes:
    """What torch.save makes of an object that does something when it is unpickled."""
    buffer = io.BytesIO()
    torch.save({"optimizer": Evil(canary)}, buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    """A small detector's training that has two steps behind it."""
    root = str(tmp_path_factory.mktemp("root"))
    options = {"size": "TINY"}
    spec = Spec(root=root, parts=[], classes=["run", "walk"], objective="dense", options=options, frames=4)
    model = train_rank.build(spec)
    optimizer = train_rank.optimiser(model, spec)
    state = {"optimizer": optimizer.state_dict()}
    checkpoints.save(root, "run", 2, model.state_dict(), state, train_rank._about(spec), False)
    return spec


def forged(spec, tmp_path, weights: bytes | None = None, state: bytes | None = None) -> str:
    """A copy of the checkpoint with other files, and a manifest that fits them."""
    found = checkpoints.find(spec.root, "run")
    url = str(tmp_path / "checkpoints" / "run" / "step_00000002")
    manifest = files.read_json(f"{found.url}/manifest.json")
    for name, data in ((checkpoints.WEIGHTS, weights), (checkpoints.STATE, state)):
        data = files.read(f"{found.url}/{name}") if data is None else data
        files.replace(data, f"{url}/{name}")
        manifest["digests"][name] = files.digest(data)
    manifest.pop(records.DIGEST)
    files.replace_json(records.seal(manifest), f"{url}/manifest.json")
    return url


def tensors(spec) -> dict[str, torch.Tensor]:
    return checkpoints.load_weights(checkpoints.find(spec.root, "run").url)


def missing(weights):
    weights.pop("fc1.weight")


def extra(weights):
    weights["unheard.of"] = torch.zeros(1)


def other_shape(weights):
    weights["fc1.weight"] = weights["fc1.weight"][:, :1].contiguous()


def nan(weights):
    weights["fc1.weight"].view(-1)[3] = float("nan")


def infinite(weights):
    weights["fc1.weight"].view(-1)[3] = float("inf")


CASES = [
    (missing, "no fc1.weight"),
    (extra, "unknown unheard.of"),
    (other_shape, "another shape of fc1.weight"),
    (nan, "not finite in fc1.weight"),
    (infinite, "not finite in fc1.weight"),
]


def from_start(spec, url):
    train_rank.build(Spec(**{**vars(spec), "start": url}))


def resumed(spec, url):
    train_rank.run(Spec(**{**vars(spec), "root": url.split("/checkpoints/")[0]}), "run")


def predicting(_, url):
    scorer.load(url)


PLACES = [from_start, predicting]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("change", "said"), CASES)
def test_weights_of_another_model_are_refused_by_name(spec, tmp_path, place, change, said):
    """Wherever a checkpoint is loaded: the digest fits, what is in it does not."""
    weights = tensors(spec)
    change(weights)
    url = forged(spec, tmp_path, to_safetensors(weights))
    with pytest.raises(Damaged, match=said) as caught:
        place(spec, url)
    assert url in str(caught.value) and "\n" not in str(caught.value)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def huge_header(data: bytes) -> bytes:
    return struct.pack("<Q", 1 << 40) + data[8:]


def lying_header(data: bytes) -> bytes:
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    name = next(name for name in header if name != "__metadata__")
    header[name]["data_offsets"] = [0, 1 << 50]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("damage", [cut, huge_header, lying_header, lambda _: b"", lambda data: b"\x80\x04" + data])
def test_safetensors_that_are_none_are_refused_by_name(spec, tmp_path, place, damage):
    """With a digest that fits."""
    url = forged(spec, tmp_path, damage(to_safetensors(tensors(spec))))
    with pytest.raises(Damaged, match="is not safetensors") as caught:
        place(spec, url)
    assert url in str(caught.value)


@pytest.mark.parametrize("name", [checkpoints.WEIGHTS, checkpoints.STATE, checkpoints.MANIFEST])
def test_a_flipped_bit_in_any_file_is_found(spec, tmp_path, name):
    """Safetensors and torch accept it; the digests do not."""
    url = forged(spec, tmp_path)
    data = bytearray(files.read(f"{url}/{name}"))
    data[len(data) * 2 // 3] ^= 1
    files.replace(bytes(data), f"{url}/{name}")
    with pytest.raises(Damaged):
        checkpoints.load_weights(url)
        checkpoints.load_state(url)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_in_place_of_an_optimizer_runs_nothing(spec, tmp_path, protocol):
    """What torch.save makes of it, and a bare pickle such as a `.metadata` of DCP is."""
    for number, data in enumerate((evil_pt(tmp_path / "ran"), pickle.dumps(Evil(tmp_path / "ran"), protocol))):
        url = forged(spec, tmp_path / str(number), state=data)
        with pytest.raises(Damaged, match="state.pt holds no plain tensors"):
            checkpoints.load_state(url)
        assert not (tmp_path / "ran").exists()
    pickle.loads(data)
    assert (tmp_path / "ran").exists(), "the pickle is a live one"


def test_a_training_does_not_go_on_from_such_a_state(spec, tmp_path, monkeypatch):
    monkeypatch.setattr(train_rank, "samples_of", lambda _: [])
    url = forged(spec, tmp_path, state=evil_pt(tmp_path / "ran"))
    with pytest.raises(Damaged, match="state.pt holds no plain tensors"):
        resumed(spec, url)
    weights = tensors(spec)
    missing(weights)
    with pytest.raises(Damaged, match="no fc1.weight"):
        resumed(spec, forged(spec, tmp_path, to_safetensors(weights)))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("about", [[], {"schema": 2}, {"schema": 2, "step": 1, "final": True, "about": {}}])
def test_a_manifest_that_is_none_is_refused_by_name(tmp_path, about):
    files.replace_json(about, str(tmp_path / "manifest.json"))
    with pytest.raises((Damaged, InputError), match=str(tmp_path)):
        checkpoints.describe(str(tmp_path))


# Towers: a file that `--pretrained` names


TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    import open_clip

    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny-tower.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder)
    return open_clip.create_model("tiny-tower").state_dict()


def test_sound_towers_are_read(tiny, tmp_path):
    torch.save(tiny, tmp_path / "w.pt")
    assert extract.encoder("tiny-tower", str(tmp_path / "w.pt")).width == 8


@pytest.mark.parametrize(
    "data",
    [
        lambda tiny, canary: evil_pt(canary),
        lambda tiny, canary: pickle.dumps(Evil(canary)),
        lambda tiny, canary: to_safetensors(tiny)[:5000],
        lambda tiny, canary: huge_header(to_safetensors(tiny)),
        lambda tiny, canary: to_safetensors({k: v for k, v in tiny.items() if k != "visual.proj"}),
        lambda tiny, canary: to_safetensors(tiny | {"more": torch.zeros(1)}),
        lambda tiny, canary: to_safetensors(tiny | {"visual.proj": torch.zeros(3, 3)}),
        lambda tiny, canary: to_safetensors(tiny | {"visual.proj": torch.full((64, 8), np.nan)}),
        lambda tiny, canary: b"",
    ],
)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_towers_of_another_kind_are_refused_by_name(tiny, tmp_path, data, suffix):
    """What is given with `--pretrained`."""
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(data(tiny, tmp_path / "ran"))
    with pytest.raises(InputError, match=str(path)) as caught:
        extract.encoder("tiny-tower", str(path))
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()


def test_the_tower_itself_is_fine(tiny):
    assert clip.load("tiny-tower", "random").width == 8
