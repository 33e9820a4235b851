"""What a layer of the vision encoder hears of the question.

B questions, L question tokens, S tokens of the vision encoder, D the hops' width, E the vision encoder's.
"""

import torch
from torch import nn

from .attention_qca import split_heads
from .configuration_qca import QCAConfig


class GatedConditioning(nn.Module):
    r"""
    A layer's access to the question, through a gate that starts closed: adds \\(\tanh(g) a\\), exactly 0 at first.

    `patches_read_question`: cross-attention from every token to the question's tokens (in the manner of Flamingo,
    Alayrac et al. 2022, eq. 1). `question_reads_patches`: the question reads the tokens and its one answer is added to
    all. `shared_projections`: QA-ViT (Ganz et al. 2024, eq. 3-5) reuses the layer's own query, key and value
    projections on a small transform of the question; here the question has its own softmax, so that a closed gate is
    the identity.
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
        question: torch.Tensor,
        question_tokens: torch.Tensor,
        question_mask: torch.Tensor,
        token_mask: torch.Tensor | None,
        layer_norm: nn.Module,
        layer_attention: nn.Module,
    ) -> torch.Tensor:
        """
        Args:
            tokens: `[B, S, E]`.
            question, question_tokens, question_mask: `[B, D]`, `[B, L, D]` and `[B, L]` (boolean).
            token_mask: `[B, S]` boolean, `False` on padding.
            layer_norm, layer_attention: the conditioned layer's own, for `shared_projections`.

        Returns:
            `[B, S, E]`; a question without any token leaves its row unchanged.
        """
        mask: torch.Tensor | None = question_mask
        if self.mode == "patches_read_question":
            words = self.question_norm(question_tokens)
            query, key, value = self.q_proj(self.norm(tokens)), self.k_proj(words), self.v_proj(words)
        elif self.mode == "shared_projections":
            words = self.question_mlp(self.question_norm(question_tokens))
            query = layer_attention.q_proj(layer_norm(tokens))
            key, value = layer_attention.k_proj(words), layer_attention.v_proj(words)
        else:
            normed, mask = self.norm(tokens), token_mask
            query = self.q_proj(self.question_norm(question)[:, None])  # [B, 1, E]
            key, value = self.k_proj(normed), self.v_proj(normed)
        query, key, value = (split_heads(states, self.num_heads) for states in (query, key, value))
        readable = present = None
        if mask is not None:
            present = mask.any(dim=-1, keepdim=True)
            readable = (mask | ~present)[:, None, None].to(query.device)  # [B, 1, 1, K]; an empty row is left open
        read = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=readable)
        update = self.o_proj(read.transpose(1, 2).flatten(2))
        if present is not None:
            update = update * present[..., None]
        return tokens + torch.tanh(self.gate) * update


__all__ = ["GatedConditioning"]
