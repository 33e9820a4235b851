"""States of a frozen text encoder, kept in memory: templates ask the same questions of many images, epoch after epoch.

B questions, L question tokens, E text width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutput

from modeling_qca import QCAForVisualQuestionAnswering

MAXIMUM = 100_000  # questions; a few gigabytes


@contextmanager
def remembered_questions(model: QCAForVisualQuestionAnswering, remember: bool) -> Iterator[None]:
    """
    While open, the text encoder reads each question once. Its weights must not change meanwhile.

    Args:
        remember: where false nothing is done.
    """
    if not remember:
        yield
        return
    encoder: Any = model.base_model.text_encoder
    read = encoder.forward
    states: dict[tuple[int, ...], torch.Tensor] = {}

    def forward(input_ids: torch.Tensor, attention_mask: torch.Tensor, **inputs: Any) -> Any:
        """`[B, L]`, padded on the right -> last hidden state `[B, L, E]`, zero on padding"""
        if encoder.training or inputs.get("output_attentions") or inputs.get("output_hidden_states"):
            return read(input_ids=input_ids, attention_mask=attention_mask, **inputs)
        lengths = attention_mask.sum(dim=1).tolist()
        questions = [tuple(ids[:length]) for ids, length in zip(input_ids.tolist(), lengths, strict=True)]
        new = [index for index, question in enumerate(questions) if question not in states]
        if len(states) + len(new) > MAXIMUM:
            return read(input_ids=input_ids, attention_mask=attention_mask, **inputs)
        for length in {lengths[index] for index in new}:  # together, those that need no padding
            alike = [index for index in new if lengths[index] == length]
            given = {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}
            given = {
                name: value[alike, :length] if isinstance(value, torch.Tensor) else value
                for name, value in given.items()
            }
            with torch.no_grad():
                read_states = read(**given).last_hidden_state
            states.update((questions[index], state) for index, state in zip(alike, read_states, strict=True))
        padded = torch.nn.utils.rnn.pad_sequence([states[question] for question in questions], batch_first=True)
        missing = input_ids.shape[1] - padded.shape[1]  # where every question of the batch is padded
        return BaseModelOutput(last_hidden_state=torch.nn.functional.pad(padded, (0, 0, 0, missing)))

    encoder.forward = forward
    try:
        yield
    finally:
        del encoder.forward
