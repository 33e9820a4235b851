"""States of a frozen text encoder, kept in memory: templates ask the same questions of many images, epoch after epoch.

B questions, L question tokens, E text width.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from rich.progress import track
from transformers.modeling_outputs import BaseModelOutput

from modeling_qca import QCAForVisualQuestionAnswering

MAXIMUM = 100_000  # questions; a few gigabytes
TOGETHER = 64  # questions read at once


@contextmanager
def cache_text_features(
    model: QCAForVisualQuestionAnswering, remember: bool, known: Iterable[Mapping[str, torch.Tensor]] = ()
) -> Iterator[None]:
    """
    While open, the text encoder reads each question once. Its weights must not change meanwhile.

    Args:
        remember: where false nothing is done.
        known: tokens of questions that will be asked, in batches, each `[B, L]` with its `attention_mask`. They are
            read with the first question, at most `MAXIMUM` of them, those of one length together, and so alike in a
            resumed run.
    """
    if not remember:
        yield
        return
    encoder: Any = model.base_model.text_encoder
    read = encoder.forward
    states: dict[tuple[int, ...], torch.Tensor] = {}
    unread = [known]

    def forward(input_ids: torch.Tensor, attention_mask: torch.Tensor, **inputs: Any) -> Any:
        """`[B, L]`, padded on the right -> last hidden state `[B, L, E]`, zero on padding"""
        if encoder.training or inputs.get("output_attentions") or inputs.get("output_hidden_states"):
            return read(input_ids=input_ids, attention_mask=attention_mask, **inputs)
        if unread:
            states.update(_read_together(read, unread.pop(), input_ids.device))
        lengths = attention_mask.sum(dim=1).tolist()
        questions = [tuple(ids[:length]) for ids, length in zip(input_ids.tolist(), lengths, strict=True)]
        new = [index for index, question in enumerate(questions) if question not in states]
        if len(states) + len(new) > MAXIMUM:
            return read(input_ids=input_ids, attention_mask=attention_mask, **inputs)
        for index in new:  # by itself, so that its states do not depend on the questions it came with
            alone = {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}
            alone = {
                name: value[index : index + 1, : lengths[index]] if isinstance(value, torch.Tensor) else value
                for name, value in alone.items()
            }
            with torch.no_grad():
                states[questions[index]] = read(**alone).last_hidden_state[0]
        padded = torch.nn.utils.rnn.pad_sequence([states[question] for question in questions], batch_first=True)
        missing = input_ids.shape[1] - padded.shape[1]  # where every question of the batch is padded
        return BaseModelOutput(last_hidden_state=torch.nn.functional.pad(padded, (0, 0, 0, missing)))

    encoder.forward = forward
    try:
        yield
    finally:
        del encoder.forward


@torch.no_grad()
def _read_together(
    read: Callable[..., Any], known: Iterable[Mapping[str, torch.Tensor]], device: torch.device
) -> dict[tuple[int, ...], torch.Tensor]:
    """The states `[L, E]` of the first `MAXIMUM` questions by their tokens."""
    distinct: dict[tuple[int, ...], dict[str, torch.Tensor]] = {}
    by_length: dict[int, list[tuple[int, ...]]] = {}
    rows = ((batch, row, mask) for batch in known for row, mask in enumerate(batch["attention_mask"].bool()))
    for batch, row, mask in rows:
        if len(distinct) == MAXIMUM:
            break
        question = {name: values[row][mask] for name, values in batch.items()}
        distinct[tuple(question["input_ids"].tolist())] = question
    for tokens in distinct:
        by_length.setdefault(len(tokens), []).append(tokens)
    groups = [of[start : start + TOGETHER] for of in by_length.values() for start in range(0, len(of), TOGETHER)]
    states: dict[tuple[int, ...], torch.Tensor] = {}
    for group in track(groups, "Questions", transient=True):
        questions = [distinct[tokens] for tokens in group]
        together = {name: torch.stack([of[name] for of in questions]).to(device) for name in questions[0]}
        states.update(zip(group, read(**together, return_dict=True).last_hidden_state, strict=True))
    return states
