"""What an encoder of the compatibility table must do. Each check names the fault that it finds, or returns `None`.

B questions, L tokens.
"""

from collections.abc import Callable
from typing import Any

import torch
from compatibility_encoders import LONGEST, VOCABULARY
from torch import nn
from transformers import PreTrainedConfig, ViTConfig

from modeling_qca import QCAConfig, QCAForVisualQuestionAnswering

FIRST_WORD = 5  # token ids below are special
TOLERANCE = 1e-5


def text_model(config: PreTrainedConfig, **fields: Any) -> QCAForVisualQuestionAnswering:
    """A model of the text encoder with random weights, in evaluation mode, behind a ViT of 16 patches.

    Raises:
        ValueError: if the encoder is refused.
    """
    torch.manual_seed(0)
    vision = ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32, image_size=32, patch_size=8
    )
    composed = QCAConfig.from_vision_text_configs(vision, config, num_attention_heads=4, num_labels=3, **fields)
    model = QCAForVisualQuestionAnswering(composed).eval()
    for module in model.qca.text_encoder.modules():  # a token's own embedding is most of its state
        std = 0.5 if isinstance(module, nn.Embedding) else 0.05
        for weight in module.parameters(recurse=False):
            if weight.dim() > 1:
                weight.data.normal_(0, std)
    return model


def words(length: int, seed: int = 0) -> torch.Tensor:
    """A question of random token ids, `[1, L]`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(FIRST_WORD, VOCABULARY, (1, length), generator=generator)


@torch.no_grad()
def states(model: Any, input_ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """States of the tokens, `[B, L, width]`, padding behind them."""
    mask = torch.ones_like(input_ids) if mask is None else mask
    return model.get_text_features(input_ids, mask).last_hidden_state


def padded(model: Any, question: torch.Tensor, count: int, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """`question` with `count` tokens of padding, and its mask."""
    padding = model.config.text_config.pad_token_id or 0
    parts = [torch.full((1, count), padding), question]
    masks = [torch.zeros(1, count, dtype=torch.long), torch.ones_like(question)]
    if not left:
        parts.reverse()
        masks.reverse()
    return torch.cat(parts, dim=1), torch.cat(masks, dim=1)


def padding_fault(model: Any) -> str | None:
    """Padding on either side changes no state."""
    question = words(6)
    alone = states(model, question)
    for left in (False, True):
        for count in (1, 5):
            difference = (states(model, *padded(model, question, count, left))[:, :6] - alone).abs().max()
            if not difference < TOLERANCE:
                return f"{count} tokens of padding change a state by {difference:.0e}"
    return None


def batch_fault(model: Any) -> str | None:
    """The other questions of a batch change no state."""
    question, other = words(6), words(11, seed=1)
    alone, (tokens, mask) = states(model, question), padded(model, question, 5, left=False)
    together = states(model, torch.cat([tokens, other]), torch.cat([mask, torch.ones_like(other)]))
    difference = (together[:1, :6] - alone).abs().max()
    return None if difference < TOLERANCE else f"another question changes a state by {difference:.0e}"


def words_fault(model: Any) -> str | None:
    """The state of a token is the one that changes most with the token."""
    question = words(6)
    alone = states(model, question)
    for place in range(6):
        changed = question.clone()
        changed[0, place] = FIRST_WORD + (changed[0, place] - FIRST_WORD + 7) % (VOCABULARY - FIRST_WORD)
        moved = int((states(model, changed) - alone)[0].norm(dim=-1).argmax())
        if moved != place:
            return f"a change of token {place} changes the state of token {moved} most"
    return None


def length_fault(model: Any) -> str | None:
    """A question beyond the encoder's positions is refused by our message, others are read."""
    longest = model.qca.max_question_length
    states(model, words(longest or 4 * LONGEST))
    if longest is None:
        return None
    try:
        states(model, words(longest + 1))
    except ValueError as error:
        return None if "the text encoder reads at most" in str(error) else f"an unclear error: {error}"
    return f"a question of {longest + 1} tokens is read, but `max_question_length` is {longest}"


def gradient_fault(model: Any) -> str | None:
    """Exactly the parameters that are named as unread get no gradient."""
    unread = set(model._ddp_params_and_buffers_to_ignore)
    model(input_ids=words(4), pixel_values=torch.randn(1, 3, 32, 32)).logits.sum().backward()
    without = {name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None}
    model.zero_grad(set_to_none=True)
    difference = sorted(unread ^ without)
    return f"wrong about {difference[0]}" if difference else None


TEXT_CHECKS: dict[str, Callable[[Any], str | None]] = {
    "padding": padding_fault,
    "batch": batch_fault,
    "words": words_fault,
    "length": length_fault,
    "gradients": gradient_fault,
}
