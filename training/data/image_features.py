"""Features of a frozen vision encoder, computed once per image and kept on disk, memory-mapped.

I images, P prefix tokens, N patches, E vision width.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from modeling_qca import QCAConfig, QCAForVisualQuestionAnswering, QCAProcessor

from ..files.atomic_write import atomic_write
from ..files.progress import track
from .images import read_image

BATCH_SIZE = 16
# fields of an encoder's config that do not change its features
_UNRELATED = ("_name_or_path", "architectures", "dtype", "transformers_version")


class ImageFeatureCache:
    """
    `QCAModel.get_image_features` of every image of a data set.

    The name of the folder is a fingerprint of the encoder's weights, of the number of layers before the question is
    used, of the zoom, and of the image processor. Each row of the file has a fingerprint of its image. Changed images
    are encoded again, and an interrupted run encodes the missing ones. Processes that need the same features wait for
    the first.

    Args:
        folder: of all caches.
        model: its vision encoder must not train.
        processor: of the model.
        rows: a row of each image by image id (its image not decoded).
        half: encode in bfloat16 and store float16, as a run in bfloat16 does; otherwise float32.

    Raises:
        ValueError: an image cannot be read, or the vision encoder trains.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        model: QCAForVisualQuestionAnswering,
        processor: QCAProcessor,
        rows: Mapping[str, Mapping[str, Any]],
        half: bool = False,
    ):
        self.half = half
        encoder = model.base_model.vision_encoder
        if any(parameter.requires_grad for parameter in encoder.backbone.parameters()):
            raise ValueError("`cache_image_features` needs a frozen vision encoder: add `vision` to `freeze`.")
        check_one_grid(model.config, "`cache_image_features`")
        self.folder = Path(folder) / encoder_fingerprint(model, processor, half)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.position = {image_id: index for index, image_id in enumerate(sorted(rows))}
        images = track(self.position, "Image fingerprints")
        keys = {image_id: image_fingerprint(image_id, rows[image_id]) for image_id in images}
        with FileLock(self.folder.with_suffix(".lock")):
            self._open(model, processor, rows)
            self.computed = self._compute(model, processor, rows, keys)

    def _compute(self, model, processor, rows, keys) -> int:
        """Encode the images whose fingerprint differs from that of their row; returns their number."""
        missing = [image_id for image_id, index in self.position.items() if self._keys[index] != keys[image_id]]
        for start in track(range(0, len(missing), BATCH_SIZE), "Image features", disable=not missing):
            chunk = missing[start : start + BATCH_SIZE]
            where = [self.position[image_id] for image_id in chunk]
            pixel_values = processor(images=[read_image(rows[image_id]) for image_id in chunk])["pixel_values"]
            self._features[where] = encode_images(model, pixel_values, self.half)[0]
            self._features.flush()
            self._keys[where] = [
                keys[image_id] for image_id in chunk
            ]  # last, so that an interrupted row stays missing
            self._keys.flush()
        return len(missing)

    def read(self, image_ids: list[str]) -> torch.Tensor:
        """`[I, P + N, E]`

        Raises:
            KeyError: an image was not in `rows`.
        """
        return torch.from_numpy(self._features[[self.position[image_id] for image_id in image_ids]])

    def _open(self, model, processor, rows):
        """Open the files of this set of images, and make them if they are missing."""
        images = hashlib.sha256("\0".join(self.position).encode()).hexdigest()[:16]
        shape_file = self.folder / f"{images}.json"
        features_file, keys_file = self.folder / f"{images}.features.npy", self.folder / f"{images}.keys.npy"
        if not shape_file.exists():
            first = next(iter(self.position))
            pixel_values = processor(images=[read_image(rows[first])])["pixel_values"]
            features, grid = encode_images(model, pixel_values, self.half)
            shape = (len(self.position), *features.shape[1:])
            np.lib.format.open_memmap(features_file, mode="w+", dtype=features.dtype, shape=shape)
            np.lib.format.open_memmap(keys_file, mode="w+", dtype="S32", shape=shape[:1])
            with atomic_write(shape_file) as unfinished:
                unfinished.write_text(json.dumps({"grid": grid, "shape": shape}))
        self.grid: tuple[int, int] = tuple(json.loads(shape_file.read_text())["grid"])
        self._features = np.load(features_file, mmap_mode="r+")
        self._keys = np.load(keys_file, mmap_mode="r+")


def check_one_grid(config: QCAConfig, purpose: str):
    """
    Raises:
        ValueError: each picture of the model has a grid of its own, which `purpose` does not read.
    """
    if config.has_native_shapes:
        raise ValueError(
            f"{purpose} needs pictures of one shape, but a `{config.vision_config.model_type}` encoder gives each "
            "picture a grid of its own. Use an encoder such as `siglip_vision_model` or `dinov3_vit`, or leave it out."
        )


def encoder_fingerprint(model: QCAForVisualQuestionAnswering, processor: QCAProcessor, half: bool) -> str:
    """Hex digest of everything that determines the features of an image, except the image."""
    digest = hashlib.sha256()
    prepared = processor.image_processor.to_dict()
    prepared.pop("auto_map", None)  # the place of its code does not change features
    digest.update(json.dumps(prepared, sort_keys=True, default=str).encode())
    vision = {name: value for name, value in model.config.vision_config.to_dict().items() if name not in _UNRELATED}
    digest.update(json.dumps(vision, sort_keys=True, default=str).encode())
    config = model.config
    zoom = (config.zoom_factor,) if config.zoom_factor > 1 else ()
    digest.update(repr((config.first_question_layer, config.vision_feature_layers, half, *zoom)).encode())
    for name, tensor in model.base_model.vision_encoder.backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def image_fingerprint(image_id: str, row: Mapping[str, Any]) -> bytes:
    """Digest of a stored image's content."""
    stored = row["image"]
    content = Path(stored["path"]).read_bytes() if stored["bytes"] is None else stored["bytes"]
    return hashlib.sha256(image_id.encode() + content).hexdigest()[:32].encode()


@torch.no_grad()
def encode_images(
    model: QCAForVisualQuestionAnswering, pixel_values: torch.Tensor, half: bool
) -> tuple[np.ndarray, tuple[int, int]]:
    was_training = model.training
    model.eval()
    with torch.autocast(model.device.type, torch.bfloat16, enabled=half):
        features = model.get_image_features(pixel_values.to(model.device))
    model.train(was_training)
    return features.last_hidden_state.to(torch.float16 if half else torch.float32).cpu().numpy(), features.grid
