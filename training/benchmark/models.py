"""The models the benchmark times side by side, at their published sizes and with random weights.

I images, B questions (B >= I), L question tokens.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch._inductor.config
from torch import nn
from transformers import (
    AutoModel,
    BlipConfig,
    BlipForQuestionAnswering,
    PreTrainedModel,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    ViltConfig,
    ViltForQuestionAnswering,
)

from modeling_qca import QCAConfig, QCAForVisualQuestionAnswering

from ..fitting.model_factory import CONFIGURATION
from ..fitting.reference_model import ReferenceVQAModel

ANSWERS = 3129  # of VQA v2
QUESTION_TOKENS = 12  # a VQA v2 question in word pieces, [CLS] and [SEP] included
ANSWER_TOKENS = 3  # that BLIP and SmolVLM write: an answer of one word piece or two, and its end
EAGER_ONLY = ("vilt", "blip")  # transformers has no other attention for them
SMALL = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4, "num_hidden_layers": 4}


@contextmanager
def packed_products() -> Iterator[None]:
    """Compile a model for a CPU with weights that are laid out for its matrix products once, not at each call.

    Queries, keys and values share one product.

    Freezing is set here because an option of `torch.compile` comes too late: the weights are inputs by then. Allowing
    TF32 chooses oneDNN's products over MKL's; both compute in float32 on a processor without TF32.
    """
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with torch._inductor.config.patch({"freezing": True, "cpp.enable_concat_linear": True}):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


@dataclass(frozen=True)
class Workload:
    """One batch: `questions` questions about `images` images, in turn."""

    images: int = 1
    questions: int = 1
    resolution: int | None = None
    """Pixels of a side of the image; `None` is the model's own."""
    mode: str = "answer"
    """`answer`; `train`: a training step; `cached`: `answer` with image features that are computed before;
    `fixed_questions`: `answer` the same questions about every image, with text features that are computed before;
    `encode`: the vision encoder of our models alone."""


@dataclass(frozen=True)
class Contender:
    """A model and how it is run."""

    model: str
    """`qca`, `qca-98` and `qca-49` (with that token budget), `qca-small`, `reference`, `vilt`, `blip` or `smolvlm`."""
    dtype: str = "float32"
    attention: str = "sdpa"
    compiled: bool = False
    hops: int = 2
    zoom: int = 1
    """How many times finer a window is than the glance."""

    @property
    def label(self) -> str:
        hops = [] if self.hops == 2 else [f"{self.hops} hops"]
        zoom = [] if self.zoom == 1 else [f"zoom {self.zoom}"]
        return " ".join(
            [self.model, *hops, *zoom, self.dtype, self.attention, *(["compiled"] if self.compiled else [])]
        )


class Model:
    """One of the models, with random inputs for it."""

    def __init__(self, module: nn.Module, image_size: int, vocabulary: int):
        self.module = self.callable = module
        self.image_size, self.vocabulary = image_size, vocabulary
        parameter = next(module.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype

    def inputs(self, workload: Workload) -> dict[str, torch.Tensor]:
        """Random inputs; an image for each question, as most models need them."""
        inputs = self._shared_inputs(workload)
        image_index = inputs.pop("image_index")
        return inputs | {"pixel_values": inputs["pixel_values"][image_index]}

    def answer(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.callable(**inputs).logits

    def loss(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return nn.functional.cross_entropy(self.answer(inputs).float(), inputs["input_ids"][:, 0] % ANSWERS)

    def train_step(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Forward, backward and plain gradient descent: six models with Adam's states would not fit side by side."""
        loss = self.loss(inputs)
        loss.backward()
        with torch.no_grad():
            for parameter in self.module.parameters():
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=1e-6)
                    parameter.grad = None
        return loss.detach()

    def run(self, inputs: dict[str, torch.Tensor], mode: str) -> torch.Tensor:
        """The call that is timed."""
        if mode == "train":
            return self.train_step(inputs)
        with torch.inference_mode():
            return self.answer(inputs)

    def _shared_inputs(self, workload: Workload) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        size = workload.resolution or self.image_size
        shape = (workload.questions, QUESTION_TOKENS)
        inputs = {
            "input_ids": torch.randint(1, self.vocabulary, shape, generator=generator),
            "attention_mask": torch.ones(shape, dtype=torch.long),
            "pixel_values": torch.randn(workload.images, 3, size, size, generator=generator).to(self.dtype),
            "image_index": torch.arange(workload.questions) % workload.images,
        }
        return {name: value.to(self.device) for name, value in inputs.items()}


class QCA(Model):
    """Our model: an image is passed in once, whatever the number of questions about it."""

    def inputs(self, workload: Workload) -> dict[str, Any]:
        inputs: dict[str, Any] = self._shared_inputs(workload)
        if workload.mode == "encode":
            return {"pixel_values": inputs["pixel_values"]}
        if workload.mode == "cached":
            with torch.inference_mode():
                features = self.module.get_image_features(inputs.pop("pixel_values"))
            inputs |= {"image_features": features.last_hidden_state, "image_grid": features.grid}
        if workload.mode == "fixed_questions":
            fixed = workload.questions // workload.images
            with torch.inference_mode():
                text = self.module.get_text_features(inputs.pop("input_ids")[:fixed], inputs["attention_mask"][:fixed])
            inputs |= {"text_features": text.last_hidden_state, "attention_mask": text.attention_mask}
            inputs["question_index"] = torch.arange(workload.questions, device=self.device) // workload.images
        return inputs

    def run(self, inputs: dict[str, torch.Tensor], mode: str) -> torch.Tensor:
        if mode != "encode":
            return super().run(inputs, mode)
        with torch.inference_mode():
            return self.module.get_image_features(**inputs).last_hidden_state


class Reference(Model):
    """The reference model: takes the tokenized questions in one argument."""

    def answer(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        questions = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        return self.callable(inputs["pixel_values"], questions)[0]


class Blip(Model):
    """BLIP writes its answer token by token."""

    def answer(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        lengths = {"min_new_tokens": ANSWER_TOKENS, "max_new_tokens": ANSWER_TOKENS}
        return self.module.generate(**inputs, **lengths, do_sample=False, num_beams=1)

    def loss(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.callable(**inputs, labels=inputs["input_ids"][:, :ANSWER_TOKENS]).loss


class SmolVLM(Model):
    """SmolVLM reads the patches of one tile as tokens before the question, and writes its answer token by token."""

    def inputs(self, workload: Workload) -> dict[str, torch.Tensor]:
        inputs, module = super().inputs(workload), cast(SmolVLMForConditionalGeneration, self.module)
        tokens = {"input_ids": module.config.image_token_id, "attention_mask": 1}
        for name, value in tokens.items():
            tile = inputs[name].new_full((workload.questions, module.model.image_seq_len), value)
            inputs[name] = torch.cat([tile, inputs[name]], dim=1)
        return inputs | {"pixel_values": inputs["pixel_values"][:, None]}  # [B, 1, 3, h, w]

    def answer(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        lengths = {"min_new_tokens": ANSWER_TOKENS, "max_new_tokens": ANSWER_TOKENS}
        return self.module.generate(**inputs, **lengths, do_sample=False)

    def loss(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """That of the last tokens, as if they were the answer."""
        labels = inputs["input_ids"].clone()
        labels[:, :-ANSWER_TOKENS] = -100
        return self.callable(**inputs, labels=labels).loss


class Models:
    """Builds each model once for each dtype. Our models share their encoders.

    Args:
        device: of the models.
        quick: a few narrow layers instead of the published sizes.
    """

    def __init__(self, device: torch.device, quick: bool):
        self.device, self.quick = device, quick
        self._built: dict[tuple[str, str, int, int], Model] = {}
        self._compiled: dict[Contender, Any] = {}

    def get(self, contender: Contender) -> Model:
        """The model of `contender`, with its attention implementation and compilation set."""
        key = (contender.model, contender.dtype, contender.hops, contender.zoom)
        if key not in self._built:
            torch.manual_seed(0)
            others = {"reference": self._reference, "vilt": self._vilt, "blip": self._blip, "smolvlm": self._smolvlm}
            self._built[key] = others.get(contender.model, self._qca)(contender)
        model = self._built[key]
        if contender.model not in EAGER_ONLY:
            for module in model.module.modules():
                if isinstance(module, PreTrainedModel):
                    module.set_attn_implementation(contender.attention)
        model.callable = self._compile(contender, model.module) if contender.compiled else model.module
        return model

    def clear(self) -> None:
        """Free the memory of the models."""
        self._built.clear()
        self._compiled.clear()
        torch._dynamo.reset()

    def _compile(self, contender: Contender, module: nn.Module) -> Any:
        """Compile with CUDA graphs on a GPU, with [`packed_products`] on a CPU.

        Each model is compiled in isolation if PyTorch can do it. Models of transformers share the compiled function:
        otherwise each call checks the guards of all of them, and the ninth is not compiled at all.
        """
        if contender not in self._compiled:
            can_isolate = "isolate_recompiles" in inspect.signature(torch.compile).parameters
            apart: dict[str, Any] = {"isolate_recompiles": True} if can_isolate else {}
            if self.device.type == "cuda":
                self._compiled[contender] = torch.compile(module, mode="reduce-overhead", **apart)
            else:
                self._compiled[contender] = packed_products()(torch.compile(module, **apart))
        return self._compiled[contender]

    def _place(self, module: nn.Module, contender: Contender) -> nn.Module:
        return module.to(device=self.device, dtype=getattr(torch, contender.dtype))

    def _qca_config(self, preset: str = "qca-base") -> QCAConfig:
        config = QCAConfig.from_pretrained(CONFIGURATION / preset)
        if not self.quick:
            return config
        fields = {name: value for name, value in config.to_dict().items() if name.endswith("_config")}
        shrunk = {name: value | SMALL for name, value in fields.items()}
        return QCAConfig(**shrunk, num_attention_heads=4, query_tokens=config.query_tokens)

    def _qca(self, contender: Contender) -> Model:
        small = contender.model == "qca-small"
        config = self._qca_config("qca-small" if small else "qca-base")
        config.num_labels, config.num_attention_layers = ANSWERS, contender.hops
        config.zoom_factor = contender.zoom
        budget = "" if small else contender.model.partition("-")[2]
        config.token_budget, config.token_budget_layer = (int(budget) if budget else None), 3
        built = [model for (name, *_), model in self._built.items() if (name == "qca-small") == small]
        built = [model for model in built if isinstance(model, QCA)]
        shared: Any = next((m.module.qca for m in built if m.dtype == getattr(torch, contender.dtype)), None)
        if shared is not None:
            config.vision_config, config.text_config = shared.config.vision_config, shared.config.text_config
        module = QCAForVisualQuestionAnswering(config)
        if shared is not None:
            module.qca.vision_encoder.backbone = shared.vision_encoder.backbone
            module.qca.text_encoder = shared.text_encoder
        return QCA(self._place(module, contender), config.vision_config.image_size, config.text_config.vocab_size)

    def _reference(self, contender: Contender) -> Model:
        config = self._qca_config()
        encoders: list[Any] = [AutoModel.from_config(part) for part in (config.vision_config, config.text_config)]
        module = ReferenceVQAModel(
            encoders[0], encoders[1], hidden_dim=config.vision_config.hidden_size, num_answer_classes=ANSWERS
        )
        return Reference(
            self._place(module, contender), config.vision_config.image_size, config.text_config.vocab_size
        )

    def _vilt(self, contender: Contender) -> Model:
        fields: dict[str, Any] = {"num_labels": ANSWERS} | (SMALL if self.quick else {})
        config = ViltConfig(**fields)
        module = ViltForQuestionAnswering(config)
        return Model(self._place(module, contender), int(config.image_size), config.vocab_size)  # type: ignore[arg-type]

    def _blip(self, contender: Contender) -> Model:
        text = {"num_attention_heads": 12} | (SMALL | {"encoder_hidden_size": 48} if self.quick else {})
        # The default range, 1e-10, gives denormal gradients, which are slow on processors.
        vision = {"image_size": 384, "initializer_range": 0.02} | (SMALL if self.quick else {})
        config = BlipConfig(text_config=text, vision_config=vision)
        module = BlipForQuestionAnswering(config)
        return Blip(self._place(module, contender), config.vision_config.image_size, config.text_config.bos_token_id)

    def _smolvlm(self, contender: Contender) -> Model:
        """The published sizes of SmolVLM-256M: a SigLIP encoder of tiles of 512 pixels, and SmolLM2-135M."""
        text = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
        text |= {"num_key_value_heads": 3, "vocab_size": 49280, "pad_token_id": 2}
        vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
        vision |= {"image_size": 512, "patch_size": 16}
        if self.quick:
            text, vision = text | SMALL | {"num_key_value_heads": 2}, vision | SMALL | {"image_size": 128}
        parts: dict[str, Any] = {"text_config": {"model_type": "llama", **text}, "vision_config": vision}
        config = SmolVLMConfig(**parts, scale_factor=4, image_token_id=49190)
        module = SmolVLMForConditionalGeneration(config)
        return SmolVLM(self._place(module, contender), vision["image_size"], config.image_token_id)
