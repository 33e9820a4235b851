"""Query-conditioned visual attention (QCA): the question selects which image patches the model reads.

B pairs of image and question, I images, U questions, L question tokens, N patches, D width, H heads, T hops, C
answers.

Unusual here: a batch has fewer images and questions than pairs. Each is encoded once; `image_index` and
`question_index` say which of them a pair has.
"""

from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple, logging

from .attention_qca import AdditiveScorer, AttentionHops
from .boxes_qca import centers, grid_boxes, is_token, shape_boxes
from .cached_qca import cached_images, cached_text, cached_windows
from .composition_qca import HUB_OPTIONS, EncoderSource, common_dtype, place
from .conditioning_qca import GatedConditioning
from .configuration_qca import QCAConfig
from .embedding_qca import PatchEmbedder, QueryEmbedder, grid_coordinates
from .loss_qca import answer_loss, keep_problem_type, relevance_loss
from .outputs_qca import QCAForVisualQuestionAnsweringOutput, QCAModelOutput
from .pairs_qca import expand_to_questions, pair_images, pair_questions
from .pipeline_qca import QCAVisualQuestionAnsweringPipeline  # noqa: F401  imported so that saving copies it
from .relevance_qca import RelevanceOutput, explain
from .spatial_qca import SpatialFusion, UnitLinear
from .states_qca import PatchPlaces
from .text_qca import (
    QCATextFeatures,
    build_text_encoder,
    check_questions,
    encode_questions,
    max_question_length,
    question_inputs,
)
from .unread_qca import unread_parameters
from .vision_qca import QCAImageFeatures, QCAVisionOutput, QuestionAwareVisionEncoder
from .zoom_qca import WindowReader, Zoom, encode_all_windows, encode_glance

logger = logging.get_logger(__name__)
KEYWORDS = ("output_attentions", "output_hidden_states", "num_items_in_batch")  # `Trainer` may pass the last
NO_LABELS = (
    "`target_relevance` came without `labels`. `Trainer` takes the labels away if `label_smoothing_factor` or "
    "`compute_loss_func` is set, and its own loss would leave the relevance loss out: remove that argument, or "
    "override `Trainer.compute_loss`. To train on relevance alone, pass `labels` of -100."
)
GENERATION = ("prepare_inputs_for_generation", "_prepare_encoder_decoder_kwargs_for_generation")  # PEFT asks for them
NO_GENERATION = (
    "{} generates no text, so PEFT cannot adapt it with `task_type` CAUSAL_LM or SEQ_2_SEQ_LM. Leave `task_type` out, "
    "or set it to SEQ_CLS."
)
NO_PREFIX = (
    "{} takes no `past_key_values`, so PEFT cannot adapt it by prefix tuning. Use LoRA, or prompt tuning with "
    "`task_type` SEQ_CLS."
)


OWN_CLASS = (
    "The checkpoint is a `{0}`, which its own code defines: import that class and call its `from_pretrained`, or load "
    "it by an Auto class with `trust_remote_code=True` in a process that has not imported modeling_qca."
)
# Release 0.1 stored the last hop's update of the query also if the answer head did not read it.
UNREAD_UPDATE = r"hops\.layers\.\d+\.update(_norm)?\."


class QCAPreTrainedModel(PreTrainedModel):
    config: QCAConfig
    config_class = QCAConfig
    base_model_prefix = "qca"
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    # A subclass may name a scorer of its own, in place of `config.relevance_scorer`. See "Write your own scorer".
    scorer_class: type[nn.Module] | None = None
    accepts_loss_kwargs = False
    _keys_to_ignore_on_load_unexpected = [UNREAD_UPDATE]  # noqa: RUF012
    _no_split_modules = ["AttentionHops", "GatedConditioning", "PatchEmbedder", "QueryEmbedder"]  # noqa: RUF012
    _no_split_modules += ["SpatialFusion", "TokenBudget"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __getattr__(self, name: str) -> Any:
        if name in GENERATION:
            raise AttributeError(NO_GENERATION.format(type(self).__name__))
        return super().__getattr__(name)

    def post_init(self):
        """Same as `PreTrainedModel.post_init`, except that every layer of an encoder is named in `_no_split_modules`,
        and nothing that the model lacks: FSDP would end in an error."""
        super().post_init()
        layers = {type(module).__name__ for module in self.modules() if isinstance(module, GradientCheckpointingLayer)}
        present = {type(module).__name__ for module in self.modules()}
        self._no_split_modules = (self._no_split_modules | layers) & present

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, GatedConditioning):
            init.zeros_(module.gate)
        elif isinstance(module, AdditiveScorer):
            init.normal_(module.score_weight, mean=0.0, std=module.score_weight.shape[-1] ** -0.5)
        elif isinstance(module, UnitLinear):
            init.normal_(module.weight, mean=0.0, std=module.in_features**-0.5)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Same as `PreTrainedModel.from_pretrained`, except that weights are read from safetensors only, because a
        pickle may hold a program.

        Raises:
            ValueError: if the checkpoint was saved from a class of its own code, such as one with its own scorer.
        """
        model: Any = super().from_pretrained(*args, **{"use_safetensors": True} | kwargs)
        config = model[0].config if isinstance(model, tuple) else model.config
        auto_map = config.auto_map if isinstance(config.auto_map, dict) else {}
        written = str(auto_map.get("AutoModelForVisualQuestionAnswering", cls.__name__))
        if cls.__name__ == "QCAForVisualQuestionAnswering" != written.split(".")[-1]:
            raise ValueError(OWN_CLASS.format(written))
        return model

    def save_pretrained(
        self,
        save_directory: str | PathLike,
        is_main_process: bool = True,
        state_dict: dict | None = None,
        **kwargs: Any,
    ):
        """Same as `PreTrainedModel.save_pretrained`, except that weights keep their names, because `Trainer` reads its
        checkpoints by name, and that `state_dict` is left as it is."""
        state_dict = None if state_dict is None else dict(state_dict)  # saving removes what it has written
        super().save_pretrained(
            save_directory, is_main_process, state_dict, **{"save_original_format": False} | kwargs
        )

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """Parameters that no output depends on. DistributedDataParallel must not wait for their gradients."""
        return unread_parameters(self)

    @classmethod
    def from_vision_text_pretrained(cls, vision_model: str, text_model: str, **kwargs: Any) -> "QCAPreTrainedModel":
        """
        Compose two pretrained encoders; hops and head are initialized with `initializer_range`.

        Args:
            vision_model, text_model: Hub ids or folders. A two-tower checkpoint (CLIP, SigLIP) gives the tower of that
                name, a T5 its encoder.
            kwargs: fields of [`QCAConfig`], such as `num_attention_layers=2` or `id2label={0: "no", 1: "yes"}`. The
                pooling of a sentence-transformers folder replaces the default of `question_pooling`. Further:
                `attn_implementation`, `dtype` (`"auto"` takes that of the encoders) and `device_map` of the whole
                model; `revision` of both encoders or a pair, one for each; `trust_remote_code`, for encoders that
                bring their code; `cache_dir`, `force_download`, `local_files_only` and `token`.

        Raises:
            ValueError: if the encoders and fields do not fit together, or weights of an encoder are missing.
        """
        options = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        options["trust_remote_code"] = kwargs.pop("trust_remote_code", None)
        loading = {name: kwargs.pop(name) for name in ("attn_implementation", "dtype") if name in kwargs}
        device_map, revision = kwargs.pop("device_map", None), kwargs.pop("revision", None)
        revisions = [revision] * 2 if isinstance(revision, str | None) else revision
        vision = EncoderSource.open(vision_model, "vision_config", revision=revisions[0], **options)
        text = EncoderSource.open(text_model, "text_config", revision=revisions[1], **options)
        if loading.get("dtype") == "auto":
            loading["dtype"] = common_dtype([vision, text])
        if "question_pooling" not in kwargs and (pooling := text.question_pooling) is not None:
            kwargs["question_pooling"] = pooling
        model = cls._from_config(QCAConfig.from_vision_text_configs(vision.config, text.config, **kwargs), **loading)
        body = model.base_model
        for part, source in (("vision_encoder.backbone", vision), ("text_encoder", text)):
            missing = {f"{part}.{name}" for name in source.load_into(body.get_submodule(part))}
            if missing and (absent := sorted(missing - set(unread_parameters(body)))):
                raise ValueError(
                    f"{source.name_or_path} lacks {len(absent)} weights of a `{source.config.model_type}` encoder, "
                    f"such as {absent[0].removeprefix(part)[1:]}. Save the encoder by itself and pass its folder."
                )
        if device_map is not None:
            place(model, device_map)
        return model


class QCAModel(QCAPreTrainedModel):
    """A vision encoder, a text encoder and the hops between them, without an answer head."""

    _keys_to_ignore_on_load_unexpected = [UNREAD_UPDATE, r"^(spatial_)?fusion\.", r"^classifier\."]  # noqa: RUF012  of a head

    def __init__(self, config: QCAConfig, scorer_class: type[nn.Module] | None = None):
        super().__init__(config)
        self.vision_encoder = QuestionAwareVisionEncoder(config)
        self.text_encoder = build_text_encoder(config)
        self.max_question_length = max_question_length(self.text_encoder)
        self.query_embedder = QueryEmbedder(config)
        self.patch_embedder = PatchEmbedder(config)
        self.hops = AttentionHops(config, scorer_class or self.scorer_class)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.text_encoder.set_input_embeddings(value)

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        image_index: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> QCAImageFeatures:
        """
        Features of images before any question is asked. Pass them to `forward(image_features=..., image_grid=...)`.

        Args:
            pixel_values: `[I, 3, h, w]`, or the patches `[I, N, 3 * patch area]` of SigLIP 2 NaFlex.
            image_index: not read. Accepted so that all image inputs of a batch can be passed.
            spatial_shapes: `[I, 2]` (rows, columns) of each picture, for SigLIP 2 NaFlex.
            pixel_attention_mask: `[I, N]` for SigLIP 2 NaFlex, 0 for padding.
            kwargs: `output_hidden_states`, `output_attentions` and `return_dict`.

        Returns:
            [`QCAImageFeatures`]: `last_hidden_state` `[I, prefix + N, vision width]` after the last layer that no
            question changes (all `vision_feature_layers` side by side, if given), and the `grid` or `spatial_shapes`.
            For a model that zooms, the tokens of the glance are followed by those of every window: to ask few
            questions, pass `pixel_values` to the model instead, which encodes the chosen windows alone.
        """
        options: dict[str, Any] = {"spatial_shapes": spatial_shapes, "pixel_attention_mask": pixel_attention_mask}
        options |= self._requested(kwargs)
        if self.config.zoom_factor > 1:
            return encode_all_windows(self.vision_encoder, pixel_values, options)
        return self.vision_encoder.encode_images(pixel_values, **options)

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> QCATextFeatures:
        """
        Features of questions before any image is seen. Pass them to `forward(text_features=..., attention_mask=...)`.

        Args:
            input_ids, attention_mask, token_type_ids: `[U, L]`, padded on either side.
            inputs_embeds: `[U, L, E]` token embeddings, in place of `input_ids`.
            kwargs: `output_hidden_states`, `output_attentions` and `return_dict`.

        Returns:
            [`QCATextFeatures`]: `last_hidden_state` `[U, L, text width]` with padding behind the tokens, and the
            `attention_mask` `[U, L]` that belongs to it.

        Raises:
            ValueError: if a question is too long, or has a token that the text encoder does not know.
        """
        requested = self._requested(kwargs)
        words = question_inputs(input_ids, inputs_embeds, attention_mask, token_type_ids)
        words = check_questions(words, self.max_question_length, getattr(self.config.text_config, "vocab_size", None))
        separately = torch.is_grad_enabled() and not self.training
        text = encode_questions(self.text_encoder, words, requested, separately)
        return QCATextFeatures(
            last_hidden_state=text.last_hidden_state,
            pooler_output=self.query_embedder.pool(text.last_hidden_state, words["attention_mask"].bool()),
            attention_mask=words["attention_mask"],
            hidden_states=text.hidden_states,
            attentions=text.attentions,
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        image_grid: tuple[int, int] | None = None,
        image_index: torch.Tensor | None = None,
        text_features: torch.Tensor | None = None,
        question_index: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> QCAModelOutput:
        r"""
        Args:
            input_ids, attention_mask, token_type_ids: `[U, L]`, padded on either side.
            pixel_values: `[I, 3, h, w]`, or else
            image_features: `last_hidden_state` of [`get_image_features`], and
            image_grid: their `(rows, columns)`, if not those of the config's image size.
            image_index: `[B]` image of each pair; may be left out if pair b is about image b.
            text_features: `last_hidden_state` `[U, L, E]` of [`get_text_features`] with its `attention_mask`, in place
                of `input_ids`.
            question_index: `[B]` question of each pair; may be left out if pair b has question b.
            inputs_embeds: `[U, L, E]` token embeddings, in place of `input_ids`.
            spatial_shapes, pixel_attention_mask: of the processor, for SigLIP 2 NaFlex: `pixel_values` is `[I, N, 3 *
                patch area]`, and each picture has a grid of its own, `[I, 2]` (rows, columns).
            kwargs: `output_hidden_states`, `output_attentions` and `return_dict`.

        Raises:
            ValueError: if images and questions do not fit together.
        """
        requested = self._requested(kwargs)
        num_images = _count("images", pixel_values=pixel_values, image_features=image_features)
        num_questions = _count(
            "questions", input_ids=input_ids, inputs_embeds=inputs_embeds, text_features=text_features
        )
        num_pairs = num_questions if question_index is None else question_index.shape[0]
        questions = pair_questions(question_index, num_questions)
        images = pair_images(image_index, num_images, num_pairs, self.training, cached=pixel_values is None)
        if text_features is None:
            words = (input_ids, attention_mask, token_type_ids, inputs_embeds)
            text = self.get_text_features(*words, return_dict=True, **requested)
        else:
            text = cached_text(self.config, text_features, attention_mask, self.dtype)
        shapes = {"spatial_shapes": spatial_shapes, "pixel_attention_mask": pixel_attention_mask}
        features, read_windows = self._images(pixel_values, image_features, image_grid, shapes, requested)
        question = self.query_embedder(text.last_hidden_state, text.attention_mask.bool()).select(questions)
        vision = self.vision_encoder(features, images, question, **requested)
        coordinates, boxes = _whereabouts(features, vision)
        patches = self.patch_embedder(vision.patches, coordinates)
        boxes = expand_to_questions(boxes, images) if boxes.dim() == 3 else boxes.expand(num_pairs, -1, -1)
        coordinates, mask = (coordinates, vision.patch_mask) if features.grid else (centers(boxes), is_token(boxes))
        shared = images if self.config.first_question_layer is None else None  # the patches have one row an image
        places = PatchPlaces(coordinates, shared, mask)
        zoom = None if read_windows is None else Zoom(self.config, features, images, read_windows, self.patch_embedder)
        query, evidence, relevance = self.hops(question, patches, places, zoom if self.config.zoom_regions else None)
        # The parts of a model may lie on several devices.
        query = question.query.to(evidence.device) if self.config.answer_query == "initial" else query
        relevance, patch_mask = self._on_full_grid(relevance, vision, features.grid)
        if zoom is not None:
            relevance, boxes = zoom.on_fine_grid(relevance), zoom.fine_boxes.expand(num_pairs, -1, -1)
        return QCAModelOutput(
            query=query,
            evidence=evidence,
            relevance=relevance,
            grid=features.grid if zoom is None else zoom.windows.fine_grid,
            patch_boxes=boxes,
            budget_relevance=vision.budget_relevance,
            patch_mask=patch_mask,
            zoom_boxes=None if zoom is None else zoom.boxes,
            vision_hidden_states=vision.hidden_states,
            vision_attentions=vision.attentions,
            text_hidden_states=text.hidden_states,
            text_attentions=text.attentions,
        )

    def _requested(self, options: Mapping[str, Any]) -> dict[str, bool]:
        """Which outputs of the encoders are wanted, by the arguments or else by the config."""
        unknown = [name for name, value in options.items() if name not in KEYWORDS and value is not None]
        if "past_key_values" in unknown:
            raise TypeError(NO_PREFIX.format(type(self).__name__))
        if unknown:
            raise TypeError(f"{type(self).__name__} takes no argument {', '.join(sorted(unknown))}.")
        names = ("output_attentions", "output_hidden_states")
        return {name: getattr(self.config, name) if options.get(name) is None else options[name] for name in names}

    def _images(
        self,
        pixel_values: Any,
        image_features: Any,
        image_grid: tuple[int, int] | None,
        shapes: dict[str, Any],
        requested: dict[str, bool],
    ) -> tuple[QCAImageFeatures, WindowReader | None]:
        """The features that the first hop reads and, with zoom, a function that gives those of windows."""
        if self.config.zoom_factor > 1 and image_features is None:
            return encode_glance(self.vision_encoder, pixel_values, {**shapes, **requested})
        if self.config.zoom_factor > 1:
            return cached_windows(self.config, image_features, image_grid, self.dtype)
        if image_features is None:
            return self.get_image_features(pixel_values, return_dict=True, **shapes, **requested), None
        return cached_images(self.config, image_features, image_grid, shapes["spatial_shapes"], self.dtype), None

    @staticmethod
    def _on_full_grid(
        relevance: torch.Tensor, vision: QCAVisionOutput, grid: tuple[int, int] | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if vision.positions is None or grid is None:
            return relevance, vision.patch_mask
        relevance = relevance.to(vision.positions.device)
        shape = (*relevance.shape[:3], grid[0] * grid[1])
        positions = vision.positions[:, None, None].expand(relevance.shape)
        present = vision.patch_mask if vision.patch_mask is not None else torch.ones_like(vision.positions).bool()
        patch_mask = present.new_zeros(shape[0], shape[-1]).scatter(1, vision.positions, present)
        return relevance.new_zeros(shape).scatter(-1, positions, relevance), patch_mask


class QCAForVisualQuestionAnswering(QCAPreTrainedModel):
    """[`QCAModel`] with a classifier over the answers of `config.id2label`."""

    def __init__(self, config: QCAConfig):
        super().__init__(config)
        size = config.hidden_size
        self.qca = QCAModel(config, self.scorer_class)
        width = (self.qca.hops.num_evidence + 1) * size  # evidence and query
        self.fusion = nn.Sequential(
            nn.Linear(width, size), nn.LayerNorm(size), nn.GELU(), nn.Dropout(config.classifier_dropout)
        )
        reads_places = config.spatial_fusion and config.num_attention_layers > 0
        self.spatial_fusion = SpatialFusion(config) if reads_places else None
        layers: list[nn.Module] = []
        for _ in range(config.num_classifier_layers - 1):
            layers += [nn.Linear(size, size), nn.GELU(), nn.Dropout(config.classifier_dropout)]
        self.classifier = nn.Sequential(*layers, nn.Linear(size, config.num_labels))
        self.post_init()

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> QCAImageFeatures:
        """See [`QCAModel.get_image_features`]."""
        return self.qca.get_image_features(pixel_values, **kwargs)

    def get_text_features(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> QCATextFeatures:
        """See [`QCAModel.get_text_features`]."""
        return self.qca.get_text_features(input_ids, attention_mask, token_type_ids, inputs_embeds, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        image_grid: tuple[int, int] | None = None,
        image_index: torch.Tensor | None = None,
        text_features: torch.Tensor | None = None,
        question_index: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        target_relevance: torch.Tensor | None = None,
        past_key_values: None = None,
        spatial_shapes: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> QCAForVisualQuestionAnsweringOutput:
        r"""
        Args, besides those of [`QCAModel.forward`]:
            labels: `[B]` answer indices (-100: not in the vocabulary) or `[B, C]` soft scores, see `problem_type`.
            past_key_values: refused. Named here because PEFT looks for the name before it passes prefixes.
            target_relevance: `[B, N]` target of the last hop's relevance map, or `[B, T, N]` of each hop's. Rows
                without a target are zero. The union of the targets also supervises a learned token budget.
        """
        options: dict[str, Any] = {**kwargs, "past_key_values": past_key_values}
        if (renamed := options.pop("relevance_labels", None)) is not None:
            logger.warning_once("`relevance_labels` is now called `target_relevance`; please rename it.")
            target_relevance = renamed if target_relevance is None else target_relevance
        outputs = self.qca(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            pixel_values=pixel_values,
            image_features=image_features,
            image_grid=image_grid,
            image_index=image_index,
            text_features=text_features,
            question_index=question_index,
            inputs_embeds=inputs_embeds,
            spatial_shapes=spatial_shapes,
            pixel_attention_mask=pixel_attention_mask,
            return_dict=True,
            **options,
        )
        fused = self.fusion(torch.cat([outputs.evidence.flatten(1), outputs.query], dim=-1))
        if self.spatial_fusion is not None:
            fused = fused + self.spatial_fusion(outputs.query, outputs.relevance, outputs.patch_boxes).to(fused)
        logits = self.classifier(fused)
        parts: dict[str, Any] = self._losses(logits, outputs, labels, target_relevance)
        shared = {name: value for name, value in outputs.items() if name not in ("query", "evidence")}
        return QCAForVisualQuestionAnsweringOutput(logits=logits, **parts, **shared)

    def explain(
        self,
        inputs: Mapping[str, Any],
        method: str = "relevance",
        answers: torch.Tensor | None = None,
    ) -> RelevanceOutput:
        """Relevance of patches and words: `method` is `"relevance"`, `"rollout"` or `"gradient"`, see [`explain`]."""
        return explain(self, inputs, method, answers)

    def _losses(
        self,
        logits: torch.Tensor,
        outputs: QCAModelOutput,
        labels: torch.Tensor | None,
        target_relevance: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        parts = {}
        if labels is not None:
            parts["answer_loss"] = parts["loss"] = answer_loss(logits, labels, self.config.problem_type)
            if self.training and labels.is_floating_point():
                keep_problem_type(self)
        if target_relevance is not None:
            if labels is None and self.training:
                raise ValueError(NO_LABELS)
            supervision = relevance_loss(outputs.relevance.mean(dim=2), target_relevance, outputs.patch_mask)
            if outputs.budget_relevance is not None and self.config.token_budget_scorer == "learned":
                union = target_relevance if target_relevance.dim() == 2 else target_relevance.sum(dim=1)
                supervision = supervision + relevance_loss(outputs.budget_relevance[:, None], union)
            parts["relevance_loss"] = supervision
            parts["loss"] = parts.get("loss", 0.0) + self.config.relevance_loss_weight * supervision
        return parts


def _whereabouts(features: QCAImageFeatures, vision: QCAVisionOutput) -> tuple[torch.Tensor, torch.Tensor]:
    """(y, x) of the patches that the hops read (`[N, 2]`, `[I, N, 2]` or `[B, K, 2]`), and the boxes of all patches
    (`[N, 4]` or `[I, N, 4]`)."""
    device = vision.patches.device
    if features.grid is None:
        boxes = shape_boxes(features.spatial_shapes.to(device), features.last_hidden_state.shape[1])
        return centers(boxes), boxes
    coordinates = grid_coordinates(features.grid, device)
    if vision.positions is not None:
        coordinates = coordinates[vision.positions.to(device)]
    return coordinates, grid_boxes(features.grid, device)


def _count(kind: str, **inputs: torch.Tensor | None) -> int:
    """Number of rows of the one input that is given."""
    given = [value for value in inputs.values() if value is not None]
    if len(given) != 1:
        *others, last = (f"`{name}`" for name in inputs)
        raise ValueError(f"Pass the {kind} as exactly one of {', '.join(others)} and {last}.")
    return given[0].shape[0]


__all__ = ["QCAForVisualQuestionAnswering", "QCAModel", "QCAPreTrainedModel"]
