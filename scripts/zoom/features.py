"""Frozen features of pictures and of their windows, computed once and kept on disk.

The encoder is a `Dinov2Model`. A token has the features of three layers side by side, projected to their first
principal components. Arrays are float16, one row a picture; an interrupted run goes on where it stopped.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

from modeling_qca.training.files.progress import track
from modeling_qca.training.files.run_files import write_json

from .windows import window_boxes

LAYERS = (6, 9, 12)  # read side by side
LOW_LAYER = 4  # the cheap encoding of all windows
WIDTH, LOW_WIDTH = 256, 128  # principal components that are kept
SAMPLED_PICTURES = 64  # the components are fitted on
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the encoder's image processor
WHOLE = np.array([[0.0, 0.0, 1.0, 1.0]])


class Crop(NamedTuple):
    """`boxes` [W, 4] of a picture (shares of its sides), each encoded at `pixels` x `pixels`."""

    boxes: NDArray[np.float64]
    pixels: int


CROPS = {
    "whole112": Crop(WHOLE, 112),
    "whole224": Crop(WHOLE, 224),
    "whole448": Crop(WHOLE, 448),
    "half112": Crop(window_boxes("half"), 112),
    "quarter112": Crop(window_boxes("quarter"), 112),
    "half224": Crop(window_boxes("half"), 224),
}
GLANCES = ("whole112", "whole224")
LOW_CROPS = ("half112", "quarter112")


class Encoder:
    """The frozen encoder. Without instructions for bfloat16 a CPU is several times faster in float32."""

    def __init__(self, folder: str, dtype: torch.dtype = torch.bfloat16):
        self.name, self.dtype = Path(folder).name, dtype
        self.model: Any = AutoModel.from_pretrained(folder, dtype=dtype).eval()
        self.patch = self.model.config.patch_size
        self.depth = self.model.config.num_hidden_layers

    @torch.inference_mode()
    def __call__(self, pixels: torch.Tensor, stop: int | None = None) -> dict[int, torch.Tensor]:
        """Normalized patch features [W, N, D] after each of `LOW_LAYER` and `LAYERS` up to `stop`.

        `pixels` is [W, 3, h, w]. Key 0 holds the attention [W, N] from CLS to the patches in the last layer that runs.
        """
        tokens = self.model.embeddings(pixels.to(self.dtype))
        layers = self.model.encoder.layer[:stop]
        found = {}
        for number, layer in enumerate(layers, start=1):
            if number == len(layers):
                found[0] = _cls_attention(layer, tokens)
            tokens = layer(tokens)
            if number == LOW_LAYER or number in LAYERS:
                found[number] = self.model.layernorm(tokens)[:, 1:].float()
        return found

    def flops(self, pixels: int, stop: int | None = None) -> int:
        """Floating point operations of one picture of `pixels` x `pixels`, counted by torch."""
        implementation = self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")  # whose products the counter knows on every device
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            tokens = self.model.embeddings(torch.zeros(1, 3, pixels, pixels, dtype=self.dtype))
            for layer in self.model.encoder.layer[:stop]:
                tokens = layer(tokens)
        self.model.set_attn_implementation(implementation)
        return counter.get_total_flops()


def _cls_attention(layer: Any, tokens: torch.Tensor) -> torch.Tensor:
    attention = layer.attention
    normed = layer.norm1(tokens)
    heads = layer.attention.num_attention_heads
    query, keys = (
        projection(states).float().unflatten(-1, (heads, -1)).transpose(1, 2)
        for projection, states in ((attention.q_proj, normed[:, :1]), (attention.k_proj, normed))
    )
    scores = query @ keys.transpose(2, 3) * query.shape[-1] ** -0.5  # [W, H, 1, 1 + N]
    return scores.softmax(dim=-1)[:, :, 0, 1:].mean(dim=1)


def cut(image: Image.Image, crop: Crop) -> torch.Tensor:
    """The crops of an image, normalized: [W, 3, pixels, pixels]."""
    width, height = image.size
    scaled = crop.boxes * (width, height, width, height)
    side = (crop.pixels, crop.pixels)
    pixels = np.stack([np.asarray(image.resize(side, Image.Resampling.BICUBIC, box=tuple(box))) for box in scaled])
    return torch.from_numpy((pixels / 255.0 - MEAN) / STD).permute(0, 3, 1, 2).float()


def cache_features(
    encoder: Encoder, paths: Sequence[Path], folder: Path, names: Sequence[str] | None = None
) -> dict[str, NDArray[np.float16]]:
    """The features of all pictures, from `folder` as far as they are there.

    Args:
        encoder: computes them.
        paths: of the pictures.
        folder: keeps them.
        names: of the arrays to return; by default all.

    Returns:
        For each of `CROPS` [pictures, W, N, WIDTH]; `<name>_cls` [pictures, N] for each of `GLANCES`, and
        `<name>_low` [pictures, W, N, LOW_WIDTH] for each of `LOW_CROPS`.

    Raises:
        ValueError: `folder` holds other features, or those of other pictures or of another encoder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    progress = folder / "progress.json"
    shapes = _shapes(encoder.patch)
    names = list(shapes if names is None else names)
    made_by = {"encoder": encoder.name, "dtype": str(encoder.dtype)}
    state = made_by | {"pictures": [path.name for path in paths], "arrays": names, "done": 0}
    if progress.exists():
        stored = json.loads(progress.read_text())
        if stored != state | {"done": stored["done"]}:
            raise ValueError(
                f"{folder}: holds other features, or those of other pictures, encoders or number types; "
                "remove it or pass another folder"
            )
        state = stored
    basis = _basis(encoder, paths, folder / "basis.npz")
    arrays = {
        name: _array(folder / f"{name}.npy", (len(paths), *shapes[name]), resumed=state["done"] > 0) for name in names
    }
    for index in track(range(state["done"], len(paths)), "Encoding pictures"):
        _encode(encoder, paths[index], basis, {name: array[index] for name, array in arrays.items()})
        if index % 8 == 7 or index == len(paths) - 1:
            for array in arrays.values():
                array.flush()
            write_json(progress, state | {"done": index + 1})
    return arrays


def _array(path: Path, shape: tuple[int, ...], resumed: bool) -> Any:
    return open_memmap(path, "r+") if resumed else open_memmap(path, "w+", np.float16, shape)


def _shapes(patch: int) -> dict[str, tuple[int, ...]]:
    tokens = {name: (len(crop.boxes), (crop.pixels // patch) ** 2) for name, crop in CROPS.items()}
    return (
        {name: (*shape, WIDTH) for name, shape in tokens.items()}
        | {f"{name}_cls": tokens[name][1:] for name in GLANCES}
        | {f"{name}_low": (*tokens[name], LOW_WIDTH) for name in LOW_CROPS}
    )


def _encode(encoder: Encoder, path: Path, basis: dict[str, torch.Tensor], rows: dict[str, Any]) -> None:
    """Fill `rows`, the features of one picture by name."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    needed = {name.split("_")[0] for name in rows}
    for pixels in sorted({CROPS[name].pixels for name in needed}):
        crops = {name: crop for name, crop in CROPS.items() if name in needed and crop.pixels == pixels}
        found = encoder(torch.cat([cut(image, crop) for crop in crops.values()]))
        start = 0
        for name, crop in crops.items():
            part = slice(start, start := start + len(crop.boxes))
            if name in rows:
                rows[name][:] = _project(_side_by_side(found, part), basis, "high")
            if f"{name}_cls" in rows:
                rows[f"{name}_cls"][:] = found[0][part][0]
            if f"{name}_low" in rows:
                rows[f"{name}_low"][:] = _project(found[LOW_LAYER][part], basis, "low")


def _side_by_side(found: dict[int, torch.Tensor], part: slice) -> torch.Tensor:
    return torch.cat([found[layer][part] for layer in LAYERS], dim=-1)


def _project(tokens: torch.Tensor, basis: dict[str, torch.Tensor], kind: str) -> NDArray[np.float16]:
    return ((tokens - basis[f"{kind}_mean"]) @ basis[f"{kind}_axes"]).numpy().astype(np.float16)


def _basis(encoder: Encoder, paths: Sequence[Path], file: Path) -> dict[str, torch.Tensor]:
    """Means and principal axes of the tokens of some pictures and windows, scaled to a mean variance of 1."""
    if not file.exists():
        rng = np.random.default_rng(0)
        chosen = rng.permutation(len(paths))[:SAMPLED_PICTURES]
        high, low = [], []
        for index in track(sorted(chosen), "Sampling tokens"):
            with Image.open(paths[index]) as opened:
                image = opened.convert("RGB")
            for name in ("whole112", "whole224", "half112", "quarter112"):
                pixels = cut(image, CROPS[name])
                found = encoder(pixels[rng.permutation(len(pixels))[:2]])
                high.append(_side_by_side(found, slice(None)).flatten(0, 1))
                low.append(found[LOW_LAYER].flatten(0, 1))
        parts = {"high": (torch.cat(high), WIDTH), "low": (torch.cat(low), LOW_WIDTH)}
        arrays = {}
        for kind, (tokens, width) in parts.items():
            mean = tokens.mean(dim=0)
            values, axes = torch.linalg.eigh(torch.cov((tokens - mean).T).double())
            kept = axes[:, -width:].flip(1) / values[-width:].mean().sqrt()
            share = values[-width:].sum() / values.sum()
            arrays |= {f"{kind}_mean": mean, f"{kind}_axes": kept.float(), f"{kind}_share": share}
        np.savez(file, **{name: value.numpy() for name, value in arrays.items()})
    with np.load(file) as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}
