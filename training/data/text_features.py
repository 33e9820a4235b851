"""Features of a frozen text encoder, computed once for each distinct question and kept in memory.

Many data sets ask the same questions about many images, epoch after epoch.

U distinct questions, B questions, L question tokens, E text width.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from modeling_qca import QCAForVisualQuestionAnswering

from ..files.progress import track

MAXIMUM_QUESTIONS = 100_000
MAXIMUM_BYTES = 4 * 2**30
BATCH_SIZE = 64
Tokens = tuple[int, ...]


class TextFeatureCache:
    """
    `QCAModel.get_text_features` of the distinct questions that training will ask.

    Questions of one length are encoded together, so that they need no padding. Their features therefore do not depend
    on the batch in which they are asked later, and a resumed run finds the same features.

    Args:
        model: its text encoder must not train.
        questions: tokens of the questions in batches, each `[B, L]` with its `attention_mask`. The first
            `MAXIMUM_QUESTIONS` distinct ones are encoded, fewer where `MAXIMUM_BYTES` are reached.
        autocast: the dtype that the run computes in; None for that of the weights.

    Raises:
        ValueError: the text encoder trains.
    """

    def __init__(
        self,
        model: QCAForVisualQuestionAnswering,
        questions: Iterable[Mapping[str, torch.Tensor]],
        autocast: torch.dtype | None = None,
    ):
        if any(parameter.requires_grad for parameter in model.base_model.text_encoder.parameters()):
            raise ValueError("Cached text features need a frozen text encoder: add `text` to `freeze`.")
        self._features: dict[Tokens, torch.Tensor] = {}
        self._encode(model, _distinct(questions), autocast)

    def __len__(self) -> int:
        return len(self._features)

    def read(self, questions: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
        """
        Inputs of the model in place of the tokens; None if a question of the batch is not in the cache.

        Args:
            questions: tokens `[B, L]` with their `attention_mask`.

        Returns:
            `question_index` `[B]` where questions repeat, `text_features` `[U, L, E]` padded behind the tokens, and
            their `attention_mask` `[U, L]`. The first has one entry for each pair, as `Trainer` expects of a batch.
        """
        tokens = _tokens(questions)
        if any(question not in self._features for question in tokens):
            return None
        position = {question: index for index, question in enumerate(dict.fromkeys(tokens))}
        states = [self._features[question] for question in position]
        mask = [torch.ones(len(question), dtype=torch.long) for question in position]
        index = [position[question] for question in tokens]
        needed = {"question_index": torch.tensor(index)} if index != list(range(len(position))) else {}
        return {
            **needed,
            "text_features": torch.nn.utils.rnn.pad_sequence(states, batch_first=True),
            "attention_mask": torch.nn.utils.rnn.pad_sequence(mask, batch_first=True),
        }

    @torch.no_grad()
    def _encode(self, model: Any, questions: dict[Tokens, dict[str, torch.Tensor]], autocast: torch.dtype | None):
        by_length: dict[int, list[Tokens]] = {}
        for tokens in questions:
            by_length.setdefault(len(tokens), []).append(tokens)
        groups = [
            same_length[start : start + BATCH_SIZE]
            for same_length in by_length.values()
            for start in range(0, len(same_length), BATCH_SIZE)
        ]
        was_training = model.training
        model.eval()
        size = 0
        for group in track(groups, "Question features", disable=not groups):
            batch = [questions[tokens] for tokens in group]
            inputs = {name: torch.stack([of[name] for of in batch]).to(model.device) for name in batch[0]}
            with torch.autocast(model.device.type, autocast, enabled=autocast is not None):
                states = model.get_text_features(**inputs).last_hidden_state.cpu()
            size += states.nbytes
            if size > MAXIMUM_BYTES:
                break
            self._features.update(zip(group, states, strict=True))
        model.train(was_training)


def _tokens(questions: Mapping[str, torch.Tensor]) -> list[Tokens]:
    """The token ids of each question without padding."""
    rows = zip(questions["input_ids"], questions["attention_mask"].bool(), strict=True)
    return [tuple(ids[mask].tolist()) for ids, mask in rows]


def _distinct(batches: Iterable[Mapping[str, torch.Tensor]]) -> dict[Tokens, dict[str, torch.Tensor]]:
    """The inputs `[L]` of the first `MAXIMUM_QUESTIONS` distinct questions, without padding."""
    distinct: dict[Tokens, dict[str, torch.Tensor]] = {}
    for batch in batches:
        for row, tokens in enumerate(_tokens(batch)):
            if len(distinct) == MAXIMUM_QUESTIONS and tokens not in distinct:
                return distinct
            mask = batch["attention_mask"][row].bool()
            distinct.setdefault(tokens, {name: values[row][mask] for name, values in batch.items()})
    return distinct
