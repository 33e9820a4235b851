"""Conditioning: cross-attention from a vision layer to the question.

B questions, L question tokens, S tokens of the vision encoder, D the hops' width, E the vision encoder's.
"""

import torch
from torch import nn

from .attention_qca import split_heads
from .configuration_qca import QCAConfig
from .states_qca import LayerProjections, QuestionStates


class GatedConditioning(nn.Module):
    r"""
    Cross-attention between vision tokens and question behind a gate: adds \\(\tanh(g) a\\), at first exactly 0.

    `patches_read_question`: every vision token attends to the question tokens (as in Flamingo, Alayrac et al. 2022,
    eq. 1). `question_reads_patches`: the pooled question attends to the vision tokens, and the result is added to all
    of them. `shared_projections`: QA-ViT (Ganz et al. 2024, eq. 3-5) applies the layer's own query, key and value
    projections to a transform of the question. Unlike in QA-ViT, the question has its own softmax, so that a closed
    gate is the identity.
    """

    def __init__(self, config: QCAConfig):
        super().__init__()
        vision_size = config.vision_config.hidden_size
        self.mode = config.vision_conditioning
        self.num_heads = config.vision_config.num_attention_heads
        self.question_norm = nn.LayerNorm(config.hidden_size)
        if self.mode == "shared_projections":
            self.question_mlp = nn.Sequential(
                nn.Linear(config.hidden_size, vision_size), nn.GELU(), nn.Linear(vision_size, vision_size)
            )
        else:
            query_size, key_size = vision_size, config.hidden_size
            if self.mode == "question_reads_patches":
                query_size, key_size = key_size, query_size
            self.norm = nn.LayerNorm(vision_size)
            self.q_proj = nn.Linear(query_size, vision_size)
            self.k_proj = nn.Linear(key_size, vision_size)
            self.v_proj = nn.Linear(key_size, vision_size)
        self.o_proj = nn.Linear(vision_size, vision_size)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(
        self,
        tokens: torch.Tensor,
        question: QuestionStates,
        token_mask: torch.Tensor | None,
        layer: LayerProjections,
    ) -> torch.Tensor:
        """
        Args:
            tokens: `[B, S, E]`.
            token_mask: `[B, S]` boolean, `False` on padding.
            layer: the conditioned one, for `shared_projections`.

        Returns:
            `[B, S, E]`; a row whose question is all padding is unchanged.
        """
        mask: torch.Tensor | None = question.mask
        if self.mode == "patches_read_question":
            words = self.question_norm(question.tokens)
            query, key, value = self.q_proj(self.norm(tokens)), self.k_proj(words), self.v_proj(words)
        elif self.mode == "shared_projections":
            words = self.question_mlp(self.question_norm(question.tokens))
            query, key, value = layer.query(layer.norm(tokens)), layer.key(words), layer.value(words)
        else:
            normed, mask = self.norm(tokens), token_mask
            query = self.q_proj(self.question_norm(question.query)[:, None])  # [B, 1, E]
            key, value = self.k_proj(normed), self.v_proj(normed)
        query, key, value = (split_heads(states, self.num_heads) for states in (query, key, value))
        readable = present = None
        if mask is not None:
            present = mask.any(dim=-1, keepdim=True)
            readable = (mask | ~present)[:, None, None].to(query.device)  # [B, 1, 1, K]; an empty row attends to all
        read = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=readable)
        update = self.o_proj(read.transpose(1, 2).flatten(2))
        if present is not None:
            update = update * present[..., None]
        return tokens + torch.tanh(self.gate) * update


__all__ = ["GatedConditioning"]
