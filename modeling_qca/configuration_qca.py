"""Configuration of query-conditioned attention (QCA) models: two encoders, the hops between them, the answer head."""

from dataclasses import fields
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .labels_qca import complete_labels
from .layouts_qca import LAYOUTS, NATIVE_SHAPES, check_text_encoder, check_vision_encoder
from .legacy_qca import DEFAULTS_OF_0_1, REMOVED_FIELDS, upgrade_fields
from .validation_qca import check_fields, check_parameter_count, check_stored
from .vision_shape_qca import vision_shape

MAXIMUM_ZOOM = 16
FORMAT_VERSION = "0.2"  # of stored configs; see `QCAConfig.from_dict`

# A saved checkpoint carries the code; these entries name the class for each Auto class and pipeline.
AUTO_MAP = {
    "AutoConfig": "configuration_qca.QCAConfig",
    "AutoModel": "modeling_qca.QCAModel",
    "AutoModelForVisualQuestionAnswering": "modeling_qca.QCAForVisualQuestionAnswering",
    "AutoProcessor": "processing_qca.QCAProcessor",
}
CUSTOM_PIPELINES = {
    "visual-question-answering": {
        "impl": "pipeline_qca.QCAVisualQuestionAnsweringPipeline",
        "pt": ["AutoModelForVisualQuestionAnswering"],
        "type": "multimodal",
    }
}


@strict
class QCAConfig(PreTrainedConfig):
    r"""
    Configuration of [`QCAModel`] and [`QCAForVisualQuestionAnswering`].

    Args:
        vision_config (`PreTrainedConfig` or `dict`, *optional*, defaults to a ViT):
            Any vision encoder that returns a feature map, or a prefix (CLS, registers) followed by a grid of patches.
        text_config (`PreTrainedConfig` or `dict`, *optional*, defaults to a BERT):
            Any text encoder that returns one state per token.
        hidden_size (`int`, *optional*, defaults to the vision encoder's width):
            Width of the query, of the hops and of the answer head.
        question_pooling (`str`, *optional*, defaults to `"mean"`):
            How the states of the question tokens become one query: `"mean"`, `"cls"` (the first token, not for a
            causal encoder) or `"last"` (the last token).
        query_tokens (`str`, *optional*, defaults to `"pooled"`):
            The query of a hop: `"pooled"` question, or the pooled question plus the question tokens that the hop
            attends to (`"attended"`).
        vision_feature_layers (`list[int]`, *optional*):
            Vision layers whose patch features the hops read, concatenated: `[6, 9, 12]` counts from 1. Defaults to the
            output of the vision encoder.
        relevance_scorer (`str`, *optional*, defaults to `"bilinear"`):
            Score of a patch given a query: `"dot_product"` (scaled, Vaswani et al. 2017), `"additive"` (Bahdanau et
            al. 2015) or `"bilinear"` (Luong et al. 2015).
        num_attention_layers (`int`, *optional*, defaults to 2):
            Number of hops. `0` gives a model without attention that averages the patches.
        num_attention_heads (`int`, *optional*, defaults to 4):
            Heads of each hop.
        patch_update (`str`, *optional*, defaults to `"none"`):
            How a hop changes the patches that the next hop reads: `"none"`, or `"broadcast"`, which adds the evidence
            to every patch.
        answer_evidence (`str`, *optional*, defaults to `"hops"`):
            Image features that the answer head reads: the evidence of the `"hops"`, or also the mean of the patches
            (`"hops_and_mean"`).
        answer_query (`str`, *optional*, defaults to `"initial"`):
            The query that the answer head reads beside the evidence: the `"initial"` one, before the first hop, or the
            one that the hops `"updated"`. `"asked"` is the name of `"initial"` in release 0.1.
        spatial_fusion (`bool`, *optional*, defaults to `False`):
            Whether the answer head also reads the product of the query and of where the hops looked: the centers of
            their maps and the steps between them. It answers "is the car to the left of the door" from few questions.
        vision_conditioning_layers (`list[int]`, `int` or `str`, *optional*):
            Vision layers that read the question: a list of indices, the last `k`, or `"early"` (first half), `"late"`
            (second half), `"sparse"` (every second layer, the last one included) or `"all"`.
        vision_conditioning (`str`, *optional*, defaults to `"patches_read_question"`):
            Gated cross-attention from patches to question tokens; its reverse, which adds one vector to every patch
            (`"question_reads_patches"`); or QA-ViT's form, which reuses the projections of the layer
            (`"shared_projections"`, Ganz et al. 2024).
        token_budget (`int` or `list[int]`, *optional*):
            Number of patches kept from layer `token_budget_layer` on. `[min, max]` keeps the fewest patches whose
            relevance adds up to `token_budget_mass`, within these bounds.
        token_budget_layer (`int`, *optional*, defaults to 3):
            Number of vision layers that see every patch.
        token_budget_mass (`float`, *optional*, defaults to 0.9):
            Relevance mass that an adaptive budget keeps, in (0, 1].
        token_budget_scorer (`str`, *optional*, defaults to `"learned"`):
            Ranking of the patches: `"learned"` relevance to the question, `"random"`, or `"cls_attention"`, the
            attention of the CLS token.
        token_budget_selection (`str`, *optional*, defaults to `"top"`):
            Patches kept: those of highest rank (`"top"`), or as many that are `"spread"` over the image, densest where
            the rank is high.
        zoom_factor (`int`, *optional*, defaults to 1):
            Above 1, the image processor gives pictures with `zoom_factor` times the encoder's height and width. The
            first hop reads the whole picture made smaller (the glance). Its map chooses windows. The later hops read
            the glance and these windows at full detail. A window shows `1 / zoom_factor` of each side.
        zoom_regions (`int`, *optional*, defaults to 1):
            Number of windows that each question chooses, if `zoom_factor` is above 1.
        relevance_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of the attention-supervision loss where `target_relevance` is given.
        evidence_dropout (`float`, *optional*, defaults to 0.3):
            Dropout of the evidence before its output projection, and of the mean patch. It keeps a model from
            memorizing images where there are few.
        num_classifier_layers (`int`, *optional*, defaults to 1):
            Linear layers from the fused evidence and query to the answers.
        classifier_dropout (`float`, *optional*, defaults to 0.2):
            Dropout of the hops' updates and of the answer head.
        temperature (`float`, *optional*, defaults to 1.0):
            Temperature of the answers' probabilities: logits are divided by it. `qca calibrate` sets it. It changes
            neither logits nor loss.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of new weights, those that do not come from an encoder's checkpoint.

    Raises:
        StrictDataclassError (of `huggingface_hub.errors`): if a field has a wrong type, or two contradict each other;
            the message names them.
        ValueError: if a number exceeds its limit, fields are nested too deeply, `id2label` and `label2id` contradict
            each other, or the vision encoder has no grid of patches.
    """

    model_type = "qca"
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "answer_loss",
        "relevance_loss",
        "relevance",
        "grid",
        "patch_boxes",
        "budget_relevance",
        "patch_mask",
        "zoom_boxes",
        "vision_hidden_states",
        "vision_attentions",
        "text_hidden_states",
        "text_attentions",
    ]
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="vit"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="bert"),
    }

    vision_config: PreTrainedConfig | dict | None = None
    text_config: PreTrainedConfig | dict | None = None
    hidden_size: int | None = None
    question_pooling: Literal["cls", "mean", "last"] = "mean"
    query_tokens: Literal["pooled", "attended"] = "pooled"
    vision_feature_layers: list[int] | None = None
    relevance_scorer: Literal["dot_product", "additive", "bilinear"] = "bilinear"
    num_attention_layers: int = 2
    num_attention_heads: int = 4
    patch_update: Literal["none", "broadcast"] = "none"
    answer_evidence: Literal["hops", "hops_and_mean"] = "hops"
    answer_query: Literal["initial", "updated", "asked"] = "initial"
    spatial_fusion: bool = False
    vision_conditioning_layers: list[int] | int | Literal["early", "late", "sparse", "all"] | None = None
    vision_conditioning: Literal["patches_read_question", "question_reads_patches", "shared_projections"] = (
        "patches_read_question"
    )
    token_budget: int | list[int] | None = None
    token_budget_layer: int = 3
    token_budget_mass: float = 0.9
    token_budget_scorer: Literal["learned", "random", "cls_attention"] = "learned"
    token_budget_selection: Literal["top", "spread"] = "top"
    zoom_factor: int = 1
    zoom_regions: int = 1
    relevance_loss_weight: float | int = 1.0
    evidence_dropout: float | int = 0.3
    num_classifier_layers: int = 1
    classifier_dropout: float | int = 0.2
    temperature: float | int = 1.0
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        fields = upgrade_fields(vars(self) | kwargs)
        check_fields(fields)  # before transformers acts on them
        self.answer_query = fields["answer_query"]
        kwargs = {name: value for name, value in kwargs.items() if name in fields}
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        kwargs.setdefault("custom_pipelines", dict(CUSTOM_PIPELINES))
        kwargs.setdefault("qca_version", FORMAT_VERSION)
        self.id2label, self.label2id = complete_labels(self.id2label, self.label2id)
        if self.id2label is not None and kwargs.get("num_labels", len(self.id2label)) != len(self.id2label):
            raise ValueError(
                f"`num_labels` is {kwargs['num_labels']}, but `id2label` has {len(self.id2label)} answers; pass one."
            )
        try:
            super().__post_init__(**kwargs)
        except (ArithmeticError, AttributeError, LookupError, TypeError) as error:  # it expects another type
            raise ValueError(f"A field of the config has a wrong type: {error}") from error
        check_vision_encoder(self.vision_config.model_type)
        check_text_encoder(self.text_config)
        width = vision_shape(self.vision_config).width  # it refuses encoders that give no grid of patches
        if self.hidden_size is None:
            self.hidden_size = width

    @classmethod
    def from_vision_text_configs(
        cls, vision_config: PreTrainedConfig, text_config: PreTrainedConfig, **kwargs
    ) -> "QCAConfig":
        """Compose the configs of two encoders; `kwargs` are fields of [`QCAConfig`]. Unknown ones raise an error."""
        kwargs = upgrade_fields(kwargs)
        unknown = kwargs.keys() - {field.name for field in fields(cls)} - {"num_labels"}
        if unknown:
            raise ValueError(f"QCAConfig has no field {', '.join(sorted(unknown))}.")
        encoders = [vision_config.to_dict(), text_config.to_dict()]
        for encoder in encoders:
            encoder.pop("_name_or_path", None)  # a local folder would travel with every checkpoint
            encoder.pop("dtype", None)  # the whole model has one dtype, whatever the encoders were stored in
        return cls(vision_config=encoders[0], text_config=encoders[1], **kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        try:
            config, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        except (AttributeError, RecursionError, TypeError) as error:
            raise ValueError(f"{pretrained_model_name_or_path} holds no config of a model: {error}") from error
        if not isinstance(config, dict):
            raise ValueError(f"{pretrained_model_name_or_path} holds no config of a model, but {str(config)[:100]!r}.")
        if config.get("model_type") != cls.model_type:
            raise ValueError(
                f"{pretrained_model_name_or_path} holds a `{config.get('model_type')}` model, not a "
                f"`{cls.model_type}` one. Pretrained encoders are composed with `from_vision_text_pretrained`."
            )
        return config, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs) -> "QCAConfig":
        """
        Same as `PreTrainedConfig.from_dict`, except that `kwargs` are checked like stored fields.

        A stored config without `qca_version` comes from release 0.1. Fields it leaves out get the defaults of 0.1.

        Raises:
            ValueError: if the fields, those of `kwargs` included, do not fit each other and the encoders.
        """
        check_stored(config_dict)
        if kwargs.get("dtype") == "auto":
            del kwargs["dtype"]  # keep the stored one; the pipeline passes this
        stored = config_dict if "qca_version" in config_dict else DEFAULTS_OF_0_1 | config_dict
        changes = upgrade_fields({name: kwargs.pop(name) for name in _field_names(cls) & kwargs.keys()})
        check_fields(changes)
        if {"id2label", "label2id"} & changes.keys():
            changes = {"id2label": None, "label2id": None} | changes  # the stored answers go, in both directions
        elif kwargs.get("num_labels") is not None:
            labels: Any = stored.get("id2label") or {}
            if kwargs["num_labels"] != len(labels):
                changes |= {"id2label": None, "label2id": None}
        for name in cls.sub_configs_defaults:
            if isinstance(changes.get(name), dict):
                changes[name] = (stored.get(name) or {}) | changes[name]
        return super().from_dict(upgrade_fields(stored) | changes, **kwargs)

    @property
    def conditioned_layers(self) -> list[int]:
        """Indices of the vision layers that read the question, ascending."""
        layers = self.vision_conditioning_layers
        if layers is None:
            return []
        if isinstance(layers, list):
            return sorted(set(layers))
        depth = self.vision_config.num_hidden_layers
        if isinstance(layers, int):
            return list(range(depth - layers, depth))
        named = {
            "early": range(depth // 2),
            "late": range(depth // 2, depth),
            "sparse": range(1 - depth % 2, depth, 2),
            "all": range(depth),
        }
        return list(named[layers])

    @property
    def first_question_layer(self) -> int | None:
        """Number of vision layers shared by all questions about an image; `None` if the question enters none."""
        budget_layer = [] if self.token_budget is None else [self.token_budget_layer]
        return min(self.conditioned_layers[:1] + budget_layer, default=None)

    @property
    def has_native_shapes(self) -> bool:
        """Whether each picture has a grid of its own (SigLIP 2 NaFlex)."""
        return self.vision_config.model_type in NATIVE_SHAPES

    @property
    def image_grid(self) -> tuple[int, int]:
        """(rows, columns) of patches of an image of `image_size`."""
        (rows, columns), factor = vision_shape(self.vision_config).grid, self.zoom_factor
        if factor == 1:
            return rows, columns
        return max(rows // 2, 1) * 2 * factor, max(columns // 2, 1) * 2 * factor

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the vision encoder's own images. With zoom, `zoom_factor` times that, rounded
        down to an even number of patches."""
        if self.zoom_factor == 1:
            return vision_shape(self.vision_config).image_size
        (rows, columns), (down, across) = self.image_grid, self.patch_size
        return rows * down, columns * across

    @property
    def patch_size(self) -> tuple[int, int]:
        """(height, width) of a patch in pixels."""
        if self.vision_config.model_type in LAYOUTS:
            size = self.vision_config.patch_size
            return tuple(size) if isinstance(size, (list, tuple)) else (size, size)
        shape = vision_shape(self.vision_config)
        (height, width), (rows, columns) = shape.image_size, shape.grid
        return height // rows, width // columns

    @property
    def vision_width(self) -> int:
        """Width of the vision encoder's tokens."""
        return vision_shape(self.vision_config).width

    def validate_architecture(self):
        """Part of `@strict` validation: the fields must fit each other and the encoders."""
        if self.hidden_size is not None and self.hidden_size % max(self.num_attention_heads, 1):
            raise ValueError(
                f"`hidden_size` ({self.hidden_size}) is not a multiple of `num_attention_heads` "
                f"({self.num_attention_heads})."
            )
        at_least_one = ("num_attention_heads", "num_classifier_layers", "hidden_size")
        for name, minimum in (("num_attention_layers", 0), *((name, 1) for name in at_least_one)):
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise ValueError(f"`{name}` must be at least {minimum}, got {value}.")
        for name in ("evidence_dropout", "classifier_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be in [0, 1), got {getattr(self, name)}.")
        for name in ("relevance_loss_weight", "initializer_range"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")
        if self.temperature <= 0:
            raise ValueError(f"`temperature` must be positive, got {self.temperature}.")
        self._validate_zoom()
        if min(self.vision_width, *self.patch_size, *vision_shape(self.vision_config).grid) < 1:
            raise ValueError(
                f"`vision_config` has no patches of at least 1 x 1 pixels and 1 channel: `image_size` "
                f"{self.image_size}, `patch_size` {self.patch_size}, `hidden_size` {self.vision_width}."
            )
        if self.problem_type == "regression":
            raise ValueError("`problem_type` must be a single- or multi-label classification, got 'regression'.")
        complete_labels(self.id2label, self.label2id)  # set again since
        if self.vision_feature_layers is not None:
            self._validate_feature_layers()
        conditioned = self.vision_conditioning_layers
        if isinstance(conditioned, int) and conditioned < 1:
            raise ValueError(f"`vision_conditioning_layers` must be a positive number of layers, got {conditioned}.")
        question_inside = conditioned is not None or self.token_budget is not None
        if question_inside and self.vision_config.model_type not in LAYOUTS:
            raise ValueError(
                "`vision_conditioning_layers` and `token_budget` work inside the vision encoders "
                f"{', '.join(LAYOUTS)}; a `{self.vision_config.model_type}` encoder takes neither."
            )
        if self.first_question_layer is not None:
            self._validate_question_in_vision_encoder()
        check_parameter_count(self._num_own_parameters)

    def _validate_zoom(self):
        factor, regions = self.zoom_factor, self.zoom_regions
        if not 1 <= factor <= MAXIMUM_ZOOM:
            raise ValueError(f"`zoom_factor` must be from 1 to {MAXIMUM_ZOOM}, got {factor}.")
        if factor == 1:
            return
        if not 0 <= regions <= (2 * factor - 1) ** 2:
            raise ValueError(
                f"`zoom_regions` must be from 0 to {(2 * factor - 1) ** 2}, the number of windows with "
                f"`zoom_factor={factor}`, got {regions}."
            )
        if regions > 0 and self.num_attention_layers < 2:
            raise ValueError(
                f"`zoom_factor` needs a hop that chooses windows and one that reads them: set `num_attention_layers` "
                f"to 2 or more, got {self.num_attention_layers}."
            )
        if self.has_native_shapes:
            kind = self.vision_config.model_type
            raise ValueError(f"`zoom_factor` needs pictures of one shape, and a `{kind}` encoder keeps that of each.")
        for name, unused in (("vision_conditioning_layers", None), ("token_budget", None), ("patch_update", "none")):
            if getattr(self, name) != unused:
                raise ValueError(f"`zoom_factor` does not go together with `{name}`: leave one of them out.")

    @property
    def _num_own_parameters(self) -> int:
        """Parameters of the matrices outside of the encoders, or a few more."""
        vision_size = self.vision_width
        size = self.hidden_size or vision_size
        embedders = (
            len(self.vision_feature_layers or [0]) * vision_size + self.text_config.hidden_size + 6 * size
        ) * size
        hops = self.num_attention_layers * (self.num_attention_heads + 8) * size**2
        conditioning = (len(self.conditioned_layers) + 1) * 4 * max(size, vision_size) ** 2
        head = (self.num_attention_layers + self.num_classifier_layers + 3) * size**2 + size * (self.num_labels or 0)
        return embedders + hops + conditioning + head

    def _validate_feature_layers(self):
        if self.vision_config.model_type not in LAYOUTS:
            raise ValueError(
                f"`vision_feature_layers` works with the vision encoders {', '.join(LAYOUTS)}, "
                f"not with `{self.vision_config.model_type}`."
            )
        if self.first_question_layer is not None:
            raise ValueError(
                "`vision_feature_layers` reads an encoder without a question in it: drop `vision_conditioning_layers` "
                "and `token_budget`, or it."
            )
        depth = self.vision_config.num_hidden_layers
        if not self.vision_feature_layers or not all(0 < layer <= depth for layer in self.vision_feature_layers):
            raise ValueError(
                f"`vision_feature_layers` must name layers 1 to {depth}, got {self.vision_feature_layers}."
            )

    def _validate_question_in_vision_encoder(self):
        model_type, depth = self.vision_config.model_type, self.vision_config.num_hidden_layers
        outside = [layer for layer in self.conditioned_layers if not 0 <= layer < depth]
        if outside:
            raise ValueError(f"`vision_conditioning_layers` {outside} outside the encoder's {depth} layers.")
        if self.token_budget is None:
            return
        if not 0 <= self.token_budget_layer < depth:
            raise ValueError(f"`token_budget_layer` must be in [0, {depth}), got {self.token_budget_layer}.")
        if not 0 < self.token_budget_mass <= 1:
            raise ValueError(f"`token_budget_mass` must be in (0, 1], got {self.token_budget_mass}.")
        bounds = self.token_budget if isinstance(self.token_budget, list) else [self.token_budget] * 2
        if len(bounds) != 2 or not 1 <= bounds[0] <= bounds[1]:
            raise ValueError(f"`token_budget` must be a positive count or [min, max], got {self.token_budget}.")
        if self.token_budget_scorer == "cls_attention" and LAYOUTS[model_type].prefix == 0:
            raise ValueError(f"`token_budget_scorer='cls_attention'` needs a CLS token; {model_type} has none.")


def _field_names(config_class: Any) -> set[str]:
    return {field.name for field in fields(config_class)} | REMOVED_FIELDS.keys()


__all__ = ["QCAConfig"]
