"""Vision encoders of any architecture: their tokens stand for their patches, or one error says what to use instead."""

import inspect

import pytest
import torch
from compatibility_encoders import FIELDS, PATCH, compose, found_by_occlusion, vision_encoders
from helpers.tiny import tiny_batch, tiny_config, tiny_model, tiny_tokenizer
from PIL import Image
from transformers import AutoModel, Siglip2ImageProcessorPil
from transformers.models.idefics2.configuration_idefics2 import Idefics2VisionConfig
from transformers.utils import is_timm_available

from modeling_qca import (
    QCAConfig,
    QCAForVisualQuestionAnswering,
    QCAProcessor,
    QCAVisualQuestionAnsweringPipeline,
    layouts_qca,
)
from modeling_qca.boxes_qca import grid_boxes, on_grid, shape_boxes
from modeling_qca.vision_shape_qca import vision_shape

ENCODERS = dict(vision_encoders())
REFUSED = {
    "vit_mae": "use `vit`",
    "yolos": "use `vit` or `deit`",
    "mobilevitv2": "use `mobilevit`",
    "pixtral": "packs all pictures",
    "glm_image_vision": "packs all pictures",
    "dinat": "use `swin`",
    "groupvit_vision_model": "merges its patches into groups",
    "hgnet_v2": "gives no grid",
    "mgp-str": "gives no grid",
    "seggpt": "gives no grid",
    "timesformer": "gives no grid",
    "videomae": "gives no grid",
    "vivit": "gives no grid",
}
QUICK = ("beit", "convnext", "dinov3_convnext", "hiera", "pvt", "radio", "siglip2_vision_model", "swin")
TIMM = [name for name in ENCODERS if name.startswith("timm_wrapper ")]
needs_timm = pytest.mark.skipif(not is_timm_available(), reason="needs timm and torchvision")
ALL = [
    pytest.param(name, marks=needs_timm if name in TIMM else () if name in QUICK else pytest.mark.slow)
    for name in ENCODERS
    if name not in REFUSED
]


@pytest.mark.parametrize("model_type", ALL)
def test_a_changed_patch_moves_its_own_token_most(model_type):
    assert all(found_by_occlusion(compose(ENCODERS[model_type]())).values())


@pytest.mark.parametrize("model_type", [name for name in REFUSED if name in ENCODERS])
def test_refuses_an_encoder_without_a_grid_and_names_others(model_type):
    with pytest.raises(ValueError, match=REFUSED[model_type]) as refused:
        compose(ENCODERS[model_type]())
    assert "`siglip_vision_model`" in str(refused.value)


@needs_timm
def test_a_timm_encoder_is_read_by_its_output(tmp_path):
    model = compose(ENCODERS["timm_wrapper vit_tiny_patch16_224"]())
    assert (model.config.vision_width, model.config.image_grid, model.config.hidden_size) == (32, (8, 8), 32)
    model.save_pretrained(tmp_path)
    loaded = QCAForVisualQuestionAnswering.from_pretrained(tmp_path)
    batch = {"input_ids": torch.ones(1, 3, dtype=torch.long), "pixel_values": torch.rand(1, 3, 64, 64)}
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_a_timm_encoder_without_its_packages_says_what_to_install(monkeypatch):
    monkeypatch.setattr(layouts_qca, "is_timm_available", lambda: False)
    with pytest.raises(ImportError, match=r"`pip install timm torchvision`\. Encoders such as `dinov2`"):
        compose(ENCODERS[TIMM[0]]())


def test_an_encoder_that_automodel_lacks_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match="`AutoModel` has no `idefics2_vision` model, which `vision_config` names;"):
        compose(Idefics2VisionConfig())


def test_a_feature_map_gives_its_cells_in_raster_order():
    model = compose(ENCODERS["convnext"]())
    pixels = torch.rand(2, 3, 96, 160)
    with torch.no_grad():
        features = model.get_image_features(pixels)
        own = model.qca.vision_encoder.backbone(pixels).last_hidden_state  # [2, 32, 3, 5]
    assert features.grid == (3, 5)
    for row in range(3):
        for column in range(5):
            assert torch.equal(features.last_hidden_state[:, 5 * row + column], own[:, :, row, column])


def test_width_defaults_to_that_of_the_output():
    config = ENCODERS["resnet"]()
    assert not hasattr(config, "hidden_size")
    assert QCAConfig(vision_config=config.to_dict()).hidden_size == 32


def test_an_image_size_that_the_encoder_cannot_read_is_named():
    shape = vision_shape(ENCODERS["beit"]())
    with pytest.raises(ValueError, match=r"For images of 24 x 40 pixels.*Resize the images to 64 x 64 pixels"):
        shape.patches(torch.zeros(1, 20, 32), 24, 40)


def test_interpolation_is_asked_of_encoders_whose_signature_has_it():
    for model_type in ("beit", "swin", "dinov2", "convnext"):
        encoder = compose(ENCODERS[model_type]()).qca.vision_encoder
        takes_it = "interpolate_pos_encoding" in inspect.signature(encoder.backbone.forward).parameters
        assert encoder._interpolation(64, 64) == {}
        assert encoder._interpolation(24, 40) == ({"interpolate_pos_encoding": True} if takes_it else {})


@pytest.mark.parametrize("model_type", ["beit", "data2vec-vision"])
def test_measuring_an_encoder_on_the_meta_device_leaves_no_cached_positions_there(model_type):
    vision = ENCODERS[model_type](use_relative_position_bias=True, image_size=48)  # a grid that no other test has
    model = compose(vision)
    biases = [module for module in model.modules() if hasattr(module, "generate_relative_position_index")]
    assert biases
    side = 48 // PATCH
    assert biases[0].generate_relative_position_index((side, side)).device.type == "cpu"


@pytest.mark.parametrize("method", ["rollout", "gradient"])
def test_explains_data2vec_whose_attention_has_a_bias_by_position(method):
    model = compose(ENCODERS["data2vec-vision"](use_relative_position_bias=True))
    batch = tiny_batch(2, 1, size=(64, 64))
    batch["input_ids"] %= 50
    relevance = model.explain(batch, method).relevance
    assert relevance.shape[-1] == 64 and relevance.isfinite().all()
    assert relevance.sum(-1).allclose(torch.ones(relevance.shape[:-1]), atol=1e-5)


def test_rollout_of_a_convolutional_encoder_says_to_use_the_relevance_of_the_hops():
    batch = tiny_batch(1, 1, size=(64, 64))
    batch["input_ids"] %= 50
    with pytest.raises(ValueError, match=r'no attention.*Use `method="relevance"`'):
        compose(ENCODERS["convnext"]()).explain(batch, "rollout")


# SigLIP 2 NaFlex: each picture has a grid of its own.


def naflex() -> tuple[QCAForVisualQuestionAnswering, QCAProcessor]:
    torch.manual_seed(0)
    plain = tiny_config(initializer_range=0.2)
    names = ("num_attention_heads", "relevance_scorer", "id2label", "initializer_range", "question_pooling")
    vision, text = ENCODERS["siglip2_vision_model"]().to_dict(), plain.text_config.to_dict()
    config = QCAConfig(vision_config=vision, text_config=text, **{name: getattr(plain, name) for name in names})
    processor = QCAProcessor(Siglip2ImageProcessorPil(patch_size=PATCH, max_num_patches=40), tiny_tokenizer())
    return QCAForVisualQuestionAnswering(config).eval(), processor


def pictures() -> list[Image.Image]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((40, 80), (90, 30), (64, 64))
    arrays = [torch.randint(256, (*shape, 3), generator=generator, dtype=torch.uint8).numpy() for shape in shapes]
    return [Image.fromarray(array) for array in arrays]


QUESTIONS = ["what is red", "where is it ?", "is there a ball"]


def test_naflex_pictures_of_mixed_shapes_answer_as_each_alone():
    model, processor = naflex()
    with torch.no_grad():
        together = model(**processor(images=pictures(), text=QUESTIONS))
        assert together.grid is None and together.relevance.shape[-1] == 40
        maps = processor.post_process_relevance(together)
        for row, picture in enumerate(pictures()):
            alone = model(**processor(images=picture, text=QUESTIONS[row]))
            torch.testing.assert_close(alone.logits[0], together.logits[row], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(processor.post_process_relevance(alone)[0], maps[row], atol=1e-6, rtol=1e-5)
    assert [tuple(grid.shape) for grid in maps] == [(2, 4, 8), (2, 10, 4), (2, 6, 6)]
    padding = together.patch_boxes[..., 2] == 0
    assert padding.sum(-1).tolist() == [8, 0, 4]
    assert not together.relevance.mean(dim=(1, 2))[padding].any()


def test_naflex_cached_features_equal_fresh_ones():
    model, processor = naflex()
    inputs = processor(images=pictures()[:2], text=QUESTIONS, image_index=[0, 1, 1])
    words = {name: inputs[name] for name in ("input_ids", "attention_mask", "image_index")}
    with torch.no_grad():
        features = model.get_image_features(inputs["pixel_values"], spatial_shapes=inputs["spatial_shapes"])
        cached = model(**words, image_features=features.last_hidden_state, spatial_shapes=features.spatial_shapes)
        fresh = model(**inputs)
    assert torch.equal(cached.logits, fresh.logits) and torch.equal(cached.relevance, fresh.relevance)


@pytest.mark.parametrize("method", ["relevance", "rollout", "gradient"])
def test_naflex_explanations_are_maps_on_the_grid_of_the_picture(method):
    model, processor = naflex()
    pipeline = QCAVisualQuestionAnsweringPipeline(model=model, processor=processor)
    for picture, grid in zip(pictures(), ((4, 8), (10, 4), (6, 6)), strict=True):
        explanation = pipeline.look(picture, QUESTIONS[0], method)
        assert explanation.relevance.shape[1:] == grid
        assert explanation.overlay().size[0] == picture.width


def test_naflex_inputs_that_contradict_each_other_are_refused():
    model, processor = naflex()
    inputs = processor(images=pictures(), text=QUESTIONS)
    for changes, message in (
        ({"spatial_shapes": None}, "must be \\[3, 2\\]"),
        ({"spatial_shapes": torch.full((3, 2), 9)}, "1 to 40 patches"),
        ({"pixel_attention_mask": torch.ones(3, 40)}, "`pixel_attention_mask` must be 1 for"),
    ):
        with pytest.raises(ValueError, match=message):
            model(**inputs | changes)
    with pytest.raises(ValueError, match="leave out `spatial_shapes`"):
        tiny_model()(**tiny_batch(2, 2), spatial_shapes=torch.ones(2, 2))


def test_boxes_tile_the_picture_and_padding_has_none():
    boxes = shape_boxes(torch.tensor([[2, 3], [1, 2]]), 6)
    assert torch.allclose(boxes[0], grid_boxes((2, 3), "cpu"), atol=1e-6)
    assert boxes[0, 4].tolist() == pytest.approx([1 / 3, 1 / 2, 2 / 3, 1])
    assert boxes[1].tolist() == [[0, 0, 0.5, 1], [0.5, 0, 1, 1]] + [[0, 0, 0, 0]] * 4
    assert on_grid(torch.arange(6.0), boxes[0]).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert on_grid(torch.tensor([5.0, 7.0]), boxes[0][[4, 1]]).tolist() == [[0, 7, 0], [0, 5, 0]]


def test_outputs_carry_the_boxes_of_plain_grids():
    outputs = tiny_model()(**tiny_batch(3, 2, size=(24, 40)))
    assert outputs.patch_boxes.shape == (3, 15, 4)
    assert torch.equal(outputs.patch_boxes[2], grid_boxes((3, 5), "cpu"))


def test_towers_that_automodel_lacks_are_registered():
    for model_type in ("metaclip_2_vision_model", "blip_vision_model", "altclip_vision_model"):
        if model_type in FIELDS and model_type in ENCODERS:
            backbone = compose(ENCODERS[model_type]()).qca.vision_encoder.backbone
            assert type(AutoModel.from_config(backbone.config)) is type(backbone)


class ProcessorWithSizes(Siglip2ImageProcessorPil):
    """An image processor that returns more than a vision encoder takes, as LLaVA's or Pixtral's."""

    def preprocess(self, images, **kwargs):
        made = super().preprocess(images, **kwargs)
        return type(made)({**made, "image_sizes": [[1, 1]], "num_patches": [1], "original_sizes": [[1, 1]]})


def test_what_else_an_image_processor_returns_is_dropped():
    processor = QCAProcessor(ProcessorWithSizes(patch_size=PATCH, max_num_patches=40), tiny_tokenizer())
    made = processor(images=pictures()[0])
    assert set(made) == {"pixel_values", "pixel_attention_mask", "spatial_shapes"}
