"""The model and processor a recipe describes."""

import logging
from importlib.resources import files
from pathlib import Path
from typing import Any

import datasets
import torch
from PIL import Image
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, ViTImageProcessorPil
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD

from modeling_qca import QCAConfig, QCAForVisualQuestionAnswering, QCAProcessor
from modeling_qca.overlay_qca import has_own_rule
from modeling_qca.vision_shape_qca import vision_shape

from ..data.answers import answer_key
from ..data.vocabulary import build_vocabulary
from ..evaluation.checkpoint import load_checkpoint
from ..inspection.estimate import ImageShape
from .recipe import Recipe

logger = logging.getLogger(__name__)
PIXEL_FIELDS = ("resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
CONFIGURATION = Path(str(files("modeling_qca.configuration")))


def build_model(recipe: Recipe, answers: list[str]) -> tuple[QCAForVisualQuestionAnswering, QCAProcessor]:
    """
    Compose two encoders, build a preset from scratch, or load a checkpoint.

    Args:
        recipe: its `model`, or its `vision_encoder` and `text_encoder`, and its `config`.
        answers: classes of the answer head. The answers that a checkpoint knows keep their weights.

    Raises:
        ValueError: the checkpoint is of another kind of model, or the fields do not fit together.
    """
    fields: dict[str, Any] = {**recipe.config, **_classes(answers)}
    if recipe.model is None:
        model: Any = QCAForVisualQuestionAnswering.from_vision_text_pretrained(
            recipe.vision_encoder, recipe.text_encoder, **fields
        )
        processor = QCAProcessor(
            _encoder_images(recipe.vision_encoder),
            AutoTokenizer.from_pretrained(recipe.text_encoder),
        )
    else:
        source = _source(recipe.model)
        processor = QCAProcessor.from_pretrained(source)
        if source == recipe.model and not _is_config_alone(Path(source)):
            model = load_checkpoint(source, **recipe.config)
            model.config.temperature = recipe.config.get("temperature", 1.0)  # that of the checkpoint fits no longer
            _set_answers(model, answers)
        else:
            model = QCAForVisualQuestionAnswering(QCAConfig.from_pretrained(source, **fields))
    if (layers := model.config.vision_feature_layers) is not None:
        depth = model.config.vision_config.num_hidden_layers
        if max(layers) < depth:
            logger.warning(
                "the vision encoder has %d layers, and those after layer %d are not used: `vision_feature_layers` is "
                "%s",
                *(depth, max(layers), layers),
            )
    processor.image_processor = _whole_picture(processor.image_processor, recipe, model.config)
    processor.set_max_question_length(model)
    return model, processor


def image_shape(recipe: Recipe) -> ImageShape:
    """The images of the recipe's model, from its config and its image processor alone.

    Raises:
        OSError: the config is neither a file nor on the Hub.
    """
    if recipe.model is None:
        encoder = AutoConfig.from_pretrained(recipe.vision_encoder)
        vision = encoder.vision_config if "vision_config" in encoder.sub_configs else encoder
        config = QCAConfig(vision_config=vision.to_dict(), **recipe.config)
        images: Any = _encoder_images(recipe.vision_encoder)
    else:
        config = QCAConfig.from_pretrained(_source(recipe.model), **recipe.config)
        images = QCAProcessor.from_pretrained(_source(recipe.model)).image_processor
    images = _whole_picture(images, recipe, config)
    if config.has_native_shapes:
        return ImageShape(*config.image_size, images.max_num_patches, config.vision_width)
    height, width = images.size["height"], images.size["width"]
    (down, across), factor = config.patch_size, config.zoom_factor
    patches = (height // down) * (width // across)
    if factor > 1:  # of the glance and all windows
        patches = patches // factor**2 * (1 + (2 * factor - 1) ** 2)
    layers = len(config.vision_feature_layers or [0])
    return ImageShape(height, width, patches, layers * config.vision_width)


def _classes(answers: list[str]) -> dict[str, dict]:
    return {
        "id2label": dict(enumerate(answers)),
        "label2id": {answer: index for index, answer in enumerate(answers)},
    }


def _set_answers(model: QCAForVisualQuestionAnswering, answers: list[str]) -> None:
    """Give `model` one class for each of `answers`. Warns of new and of dropped answers."""
    known = model.config.label2id
    if [known.get(answer) for answer in answers] == list(range(model.config.num_labels)):
        return
    before: Any = model.classifier[-1]
    after = nn.Linear(before.in_features, len(answers)).to(before.weight)
    model._init_weights(after)
    kept = [index for index, answer in enumerate(answers) if answer in known]
    origin = [known[answers[index]] for index in kept]
    with torch.no_grad():
        after.weight[kept], after.bias[kept] = before.weight[origin], before.bias[origin]
    model.classifier[-1] = after
    model.config.update(_classes(answers))
    new = len(answers) - len(kept)
    if new:
        logger.warning("%d of %d answers start anew: the checkpoint does not know them", new, len(answers))
    if dropped := len(known) - len(kept):
        logger.warning(
            "%d of %d answers of the checkpoint are dropped: `keep_answers: true` keeps them", dropped, len(known)
        )


def training_answers(recipe: Recipe, rows: datasets.Dataset) -> list[str]:
    """The answers of `rows`, those in the config of the recipe's `model`, or both; in the order of their classes.

    Raises:
        ValueError: there are none.
    """
    known = _checkpoint_answers(recipe) if recipe.vocabulary is None or recipe.keep_answers else []
    if recipe.vocabulary is None:
        return known
    rule, normalize = recipe.answer_rule, recipe.normalize_answers
    found = build_vocabulary(rows["answers"], rule=rule, normalize=normalize, **recipe.vocabulary)
    keys = {answer_key(answer, normalize) for answer in known}
    return [*known, *(answer for answer in found if answer_key(answer, normalize) not in keys)]


def _checkpoint_answers(recipe: Recipe) -> list[str]:
    assert recipe.model is not None  # checked by `Recipe`
    answers: dict[int, str] = QCAConfig.from_pretrained(_source(recipe.model)).id2label  # type: ignore[assignment]
    if answers == QCAConfig().id2label:
        raise ValueError(f"{recipe.model}: no answers in its config; `qca vocab` stores them there")
    return [answers[index] for index in range(len(answers))]


def _source(model: str) -> str:
    """The folder of a preset; any other name is returned as it is."""
    preset = CONFIGURATION / model
    return str(preset) if preset.is_dir() and "/" not in model else model


def _is_config_alone(folder: Path) -> bool:
    """Whether a folder has a config without weights, such as a preset to which `qca vocab` added answers."""
    return folder.is_dir() and not any(file.suffix in (".safetensors", ".bin", ".pt") for file in folder.iterdir())


def _encoder_images(vision_encoder: str) -> Any:
    """The image processor of an encoder. That of timm keeps a pipeline of torchvision, so its numbers are taken."""
    config: Any = AutoConfig.from_pretrained(vision_encoder)
    if config.model_type != "timm_wrapper":
        return AutoImageProcessor.from_pretrained(vision_encoder)
    timm = config.to_dict().get("pretrained_cfg") or {}
    height, width = vision_shape(config).image_size
    return ViTImageProcessorPil(
        size={"height": height, "width": width},
        image_mean=timm.get("mean", IMAGENET_STANDARD_MEAN),
        image_std=timm.get("std", IMAGENET_STANDARD_STD),
        resample=Image.Resampling[timm.get("interpolation", "bicubic").upper()],
    )


def _whole_picture(images: Any, recipe: Recipe, config: QCAConfig) -> Any:
    """Resize images instead of cropping them: relevance maps cover the whole picture. With zoom, the glance of a
    model that had none has about the size of its images before.

    Args:
        images: the image processor. It is changed.

    Returns:
        `images`, or a plain processor with its numbers if it crops or pads by a rule of its own.

    Raises:
        ValueError: `image_size` of an image processor that keeps the shape of each picture, or one that does not fit
            zoom.
    """
    image_size, factor = recipe.image_size, config.zoom_factor
    if not images.size:  # SigLIP 2 NaFlex
        if image_size is not None:
            raise ValueError(
                "`image_size` does not fit an encoder that keeps the shape of each picture: leave it out, and set "
                "`max_num_patches` in the encoder's `preprocessor_config.json`"
            )
        return images
    if image_size is None and "height" in images.size:
        height, width = images.size["height"], images.size["width"]
    elif image_size is None:
        height = width = images.size["shortest_edge"] or images.size["longest_edge"]
        if images.do_center_crop:
            height, width = images.crop_size["height"], images.crop_size["width"]
    else:
        height, width = image_size
    if factor > 1:
        down, across = (2 * factor * side for side in config.patch_size)
        zoomed = recipe.model is not None and QCAConfig.from_pretrained(_source(recipe.model)).zoom_factor > 1
        if image_size is None and not zoomed:
            height, width = factor * height // down * down, factor * width // across * across
        if 0 in (height, width) or height % down or width % across:
            raise ValueError(
                f"with `zoom_factor: {factor}`, `image_size` must be multiples of {down} and {across} pixels, not "
                f"{[height, width]}"
            )
    if has_own_rule(images):
        images = ViTImageProcessorPil(**{name: getattr(images, name) for name in PIXEL_FIELDS})
    images.size = {"height": height, "width": width}
    images.do_center_crop = False
    return images
