"""Features of a frozen vision encoder, computed once per image and kept on disk, memory-mapped.

I images, P prefix tokens, N patches, E vision width.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
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
    used, of the zoom, and of the image processor. The name of a file is a fingerprint of its images, so a run with
    other images never changes it. Each row of the file has a fingerprint of its image. If images change, the new file
    takes the other rows from the file before, which is then removed. An interrupted run encodes the missing images.
    Processes that need the same features wait for the first.

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
        keys = np.array([image_fingerprint(image_id, rows[image_id]) for image_id in images], dtype="S32")
        with FileLock(self.folder.with_suffix(".lock")):
            others = self._open(model, processor, rows, keys)
            for name in others:
                self._reuse(name, keys)
            self.computed = self._compute(model, processor, rows, keys)
            for file in (file for name in others for file in self._files(name)):
                with suppress(PermissionError):  # on Windows, while another run reads it
                    file.unlink(missing_ok=True)

    def _files(self, name: str) -> list[Path]:
        """The files of grid and shape, of fingerprints and of features. The first is written last."""
        return [self.folder / f"{name}{end}" for end in (".json", ".keys.npy", ".features.npy")]

    def _reuse(self, name, keys):
        """Copy the rows whose image is the same from the files `name`."""
        shape_file, keys_file, features_file = self._files(name)
        if shape_file.exists():
            features = np.load(features_file, mmap_mode="r")
            known = np.flatnonzero((self._keys != keys) & (np.load(keys_file) == keys))
            for start in range(0, len(known), BATCH_SIZE):
                where = known[start : start + BATCH_SIZE]
                self._features[where] = features[where]
            self._mark(known, keys)

    def _compute(self, model, processor, rows, keys) -> int:
        """Encode the images whose fingerprint differs from that of their row; returns their number."""
        image_ids, missing = list(self.position), np.flatnonzero(self._keys != keys)
        for start in track(range(0, len(missing), BATCH_SIZE), "Image features", disable=not len(missing)):
            where = missing[start : start + BATCH_SIZE]
            pictures = [read_image(rows[image_ids[index]]) for index in where]
            self._features[where] = encode_images(model, processor(images=pictures)["pixel_values"], self.half)[0]
            self._mark(where, keys)
        return len(missing)

    def _mark(self, where, keys):
        """Store the fingerprints of rows last, so that an interrupted row stays missing."""
        self._features.flush()
        self._keys[where] = keys[where]
        self._keys.flush()

    def read(self, image_ids: list[str]) -> torch.Tensor:
        """`[I, P + N, E]`

        Raises:
            KeyError: an image was not in `rows`.
        """
        return torch.from_numpy(self._features[[self.position[image_id] for image_id in image_ids]])

    def _open(self, model, processor, rows, keys) -> list[str]:
        """Open the files of these images, and make them if they are missing.

        Returns:
            The names of the files of other images with the same ids.
        """
        ids = hashlib.sha256("\0".join(self.position).encode()).hexdigest()[:16]
        own = f"{ids}-{hashlib.sha256(keys.tobytes()).hexdigest()[:16]}"
        shape_file, keys_file, features_file = self._files(own)
        if not shape_file.exists():
            first = next(iter(self.position))
            pixel_values = processor(images=[read_image(rows[first])])["pixel_values"]
            features, grid = encode_images(model, pixel_values, self.half)
            shape = (len(self.position), *features.shape[1:])
            np.lib.format.open_memmap(features_file, mode="w+", dtype=features.dtype, shape=shape)
            np.lib.format.open_memmap(keys_file, mode="w+", dtype=keys.dtype, shape=shape[:1])
            with atomic_write(shape_file) as unfinished:
                unfinished.write_text(json.dumps({"grid": grid, "shape": shape}))
        self.grid: tuple[int, int] = tuple(json.loads(shape_file.read_text())["grid"])
        self._features = np.load(features_file, mmap_mode="r+")
        self._keys = np.load(keys_file, mmap_mode="r+")
        return sorted({file.name.partition(".")[0] for file in self.folder.glob(f"{ids}*.npy")} - {own})


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
