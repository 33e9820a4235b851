"""A model that asks fixed questions about every image, so that an exported program takes images alone.

I images, Q fixed questions, L question tokens, E text width, C answers, T hops, H heads, N patches.
"""

from collections.abc import Sequence
from typing import Any

import torch

from modeling_qca import QCAForVisualQuestionAnswering, QCAProcessor
from modeling_qca.modeling_qca import QCAPreTrainedModel
from modeling_qca.outputs_qca import QCAForVisualQuestionAnsweringOutput


class FixedQuestionModel(QCAPreTrainedModel):
    """
    Args:
        model: answers the questions.
        questions: asked about every image. Their text features are stored; the text encoder is not needed again.

    Raises:
        ValueError: a question is empty or too long.
    """

    main_input_name = "pixel_values"

    text_features: torch.Tensor  # [Q, L, E]
    text_mask: torch.Tensor  # [Q, L]

    def __init__(self, model: QCAForVisualQuestionAnswering, processor: QCAProcessor, questions: Sequence[str]):
        super().__init__(model.config)
        self.model: Any = model
        with torch.inference_mode():
            text = model.get_text_features(**processor(text=list(questions)))
        self.register_buffer("text_features", text.last_hidden_state.clone())
        self.register_buffer("text_mask", text.attention_mask.clone())

    def forward(self, pixel_values: torch.Tensor) -> QCAForVisualQuestionAnsweringOutput:
        """
        Args:
            pixel_values: `[I, 3, h, w]`.

        Returns:
            `logits` `[I, Q, C]` and `relevance` `[I, Q, T, H, N]`.
        """
        num_images, num_questions = pixel_values.shape[0], self.text_features.shape[0]
        pairs = torch.arange(num_images * num_questions, device=pixel_values.device)
        outputs = self.model(
            pixel_values=pixel_values,
            image_index=pairs // num_questions,
            text_features=self.text_features,
            attention_mask=self.text_mask,
            question_index=pairs % num_questions,
        )
        relevance = outputs.relevance
        if self.config.num_attention_layers:
            relevance = relevance.unflatten(0, (num_images, num_questions))
        else:  # ONNX cannot reshape an empty tensor of unknown size
            relevance = relevance.new_zeros(num_images, num_questions, *relevance.shape[1:])
        return QCAForVisualQuestionAnsweringOutput(
            logits=outputs.logits.unflatten(0, (num_images, num_questions)),
            relevance=relevance,
            grid=outputs.grid,
        )
