"""The reference model: the stack of query-conditioned attention from which this project started, as a baseline.

It is kept as it was first written, so that results compare with it. Only what is needed to run it has changed: the
encoders and the tokenized questions are arguments, and the width of the text encoder is read from its config.

Its known faults are kept too. Every patch gets the same attended vector. CLS counts as a patch. The maps are returned
after dropout, so they do not sum to one. The text encoder is never trained.

B questions, N patches (CLS included), C = visual_dim, H heads.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from modeling_qca import QCAConfig, QCAForVisualQuestionAnswering, QCAModel
from modeling_qca.loss_qca import answer_loss
from modeling_qca.modeling_qca import QCAForVisualQuestionAnsweringOutput


class ReferenceQueryEmbedder(nn.Module):
    """The text encoder's CLS state, projected to the query."""

    def __init__(self, text_encoder: PreTrainedModel, output_dim: int = 512):
        super().__init__()
        self.text_encoder = text_encoder
        self.projection = nn.Sequential(
            nn.Linear(text_encoder.config.hidden_size, output_dim), nn.LayerNorm(output_dim), nn.GELU()
        )

    def forward(self, questions: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Tokenized questions -> `[B, output_dim]`"""
        with torch.no_grad():
            text_outputs = self.text_encoder(**questions)
        cls_embed = text_outputs.last_hidden_state[:, 0, :]
        return self.projection(cls_embed)


class ReferenceQueryAttention(nn.Module):
    """One hop: attention from the query to the patches; every patch gets the same result."""

    def __init__(self, visual_dim: int = 512, query_dim: int = 512, num_heads: int = 8, dropout: float = 0.1):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = visual_dim // num_heads
        assert visual_dim % num_heads == 0, "visual_dim must be divisible by num_heads"
        self.q_proj = nn.Linear(query_dim, visual_dim)
        self.k_proj = nn.Linear(visual_dim, visual_dim)
        self.v_proj = nn.Linear(visual_dim, visual_dim)
        self.out_proj = nn.Linear(visual_dim, visual_dim)
        self.dropout = nn.Dropout(dropout)
        self.scale = self.head_dim**-0.5

    def forward(self, visual_features: torch.Tensor, query_embed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`[B, N, C]` and `[B, query_dim]` -> attended features `[B, N, C]` and attention weights `[B, H, N]`"""
        B, N, C = visual_features.shape  # noqa: N806
        Q = self.q_proj(query_embed).unsqueeze(1)  # noqa: N806
        K = self.k_proj(visual_features)  # noqa: N806
        V = self.v_proj(visual_features)  # noqa: N806
        Q = Q.reshape(B, 1, self.num_heads, self.head_dim).transpose(1, 2)  # noqa: N806
        K = K.reshape(B, N, self.num_heads, self.head_dim).transpose(1, 2)  # noqa: N806
        V = V.reshape(B, N, self.num_heads, self.head_dim).transpose(1, 2)  # noqa: N806
        attn_scores = torch.matmul(Q, K.transpose(-2, -1)) * self.scale  # [B, H, 1, N]
        attn_weights = torch.softmax(attn_scores, dim=-1)
        attn_weights = self.dropout(attn_weights)
        attended = torch.matmul(attn_weights, V)  # [B, H, 1, D]
        attended = attended.transpose(1, 2).reshape(B, 1, C)
        output = self.out_proj(attended)
        attended_features = output.expand(B, N, C)
        return attended_features, attn_weights.squeeze(2)


class ReferenceAttentionStack(nn.Module):
    """Several hops. After each but the last the query is updated with the attended patches."""

    def __init__(self, visual_dim: int = 512, query_dim: int = 512, num_layers: int = 2, num_heads: int = 8):
        super().__init__()
        self.num_layers = num_layers
        self.attention_layers = nn.ModuleList(
            [ReferenceQueryAttention(visual_dim, query_dim, num_heads) for _ in range(num_layers)]
        )
        self.layer_norms = nn.ModuleList([nn.LayerNorm(visual_dim) for _ in range(num_layers)])
        self.query_updaters = nn.ModuleList(
            [nn.Linear(visual_dim + query_dim, query_dim) for _ in range(num_layers - 1)]
        )

    def forward(
        self, visual_features: torch.Tensor, query_embed: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """`[B, N, C]` and `[B, query_dim]` -> attended features `[B, N, C]` and each layer's weights `[B, H, N]`"""
        all_attention_weights = []
        current_query = query_embed
        current_visual = visual_features
        for i, (attn_layer, norm) in enumerate(zip(self.attention_layers, self.layer_norms, strict=True)):
            attended, attn_weights = attn_layer(current_visual, current_query)
            all_attention_weights.append(attn_weights)
            current_visual = norm(current_visual + attended)
            if i < self.num_layers - 1:
                pooled_visual = torch.sum(
                    current_visual * attn_weights.mean(dim=1, keepdim=True).transpose(-1, -2), dim=1
                )  # [B, C]
                combined = torch.cat([pooled_visual, current_query], dim=-1)
                current_query = self.query_updaters[i](combined)
        return current_visual, all_attention_weights


class ReferenceVQAModel(nn.Module):
    """Encoders, hops, fusion and answer classifier."""

    def __init__(
        self,
        vision_encoder: PreTrainedModel,
        text_encoder: PreTrainedModel,
        hidden_dim: int = 768,
        num_attention_layers: int = 2,
        num_attention_heads: int = 8,
        num_answer_classes: int = 3000,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.vision_encoder = vision_encoder
        visual_dim = self.vision_encoder.config.hidden_size
        self.query_embedder = ReferenceQueryEmbedder(text_encoder, output_dim=hidden_dim)
        self.query_attention = ReferenceAttentionStack(
            visual_dim=visual_dim,
            query_dim=hidden_dim,
            num_layers=num_attention_layers,
            num_heads=num_attention_heads,
        )
        self.fusion = nn.Sequential(
            nn.Linear(visual_dim + hidden_dim, hidden_dim), nn.LayerNorm(hidden_dim), nn.GELU(), nn.Dropout(dropout)
        )
        self.classifier = nn.Sequential(
            nn.Linear(hidden_dim, hidden_dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, num_answer_classes),
        )

    def forward(
        self, images: torch.Tensor, questions: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """
        Args:
            images: `[B, 3, h, w]`, one for each question.
            questions: tokenized.

        Returns:
            Logits `[B, answers]` and the attention weights of each layer `[B, H, N]`.
        """
        visual_features = self.vision_encoder(pixel_values=images).last_hidden_state
        return self.answer(visual_features, questions)

    def answer(
        self, visual_features: torch.Tensor, questions: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The part of [`forward`] after the vision encoder."""
        query_embed = self.query_embedder(questions)
        attended_visual, attention_maps = self.query_attention(visual_features, query_embed)
        attended_pooled = attended_visual.mean(dim=1)
        combined = torch.cat([attended_pooled, query_embed], dim=-1)
        logits = self.classifier(self.fusion(combined))
        return logits, attention_maps


class ReferenceForVisualQuestionAnswering(ReferenceVQAModel):
    """[`ReferenceVQAModel`] with a loss, the inputs of our collator and the outputs that our metrics read.

    An image is encoded once for each question about it, unless its features are passed in.
    """

    config: QCAConfig
    qca: QCAModel  # the model whose encoders these are; not a submodule, because its hops are not used

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        image_index: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        image_grid: tuple[int, int] | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        target_relevance: torch.Tensor | None = None,
    ) -> QCAForVisualQuestionAnsweringOutput:
        """
        Arguments as of `QCAForVisualQuestionAnswering`. `target_relevance` is not used: the reference model trains
        without attention supervision.

        Returns:
            Logits, loss, and relevance `[B, T, H, N]` without the prefix tokens (it does not sum to one).
        """
        questions = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            questions["token_type_ids"] = token_type_ids
        chosen = slice(None) if image_index is None else image_index
        if image_features is None:
            logits, maps = super().forward(pixel_values[chosen], questions)
            patch = self.vision_encoder.config.patch_size
            image_grid = (pixel_values.shape[-2] // patch, pixel_values.shape[-1] // patch)
        else:
            logits, maps = self.answer(image_features[chosen], questions)
        loss = None if labels is None else answer_loss(logits, labels, None)
        return QCAForVisualQuestionAnsweringOutput(
            loss=loss,
            logits=logits,
            answer_loss=loss,
            relevance=torch.stack(maps, dim=1)[..., -image_grid[0] * image_grid[1] :],
            grid=image_grid,
        )

    @torch.no_grad()
    def explain(self, inputs: Mapping[str, Any], method: str = "relevance") -> QCAForVisualQuestionAnsweringOutput:
        """The maps for `faithfulness`. `relevance` is the only `method`."""
        assert method == "relevance"
        return self(**inputs)


def reference_model(model: QCAForVisualQuestionAnswering) -> ReferenceForVisualQuestionAnswering:
    """The reference model with the encoders, the answers, and as many hops and heads as `model`."""
    config, body = model.config, model.qca
    reference = ReferenceForVisualQuestionAnswering(
        body.vision_encoder.backbone,
        body.text_encoder,
        hidden_dim=config.hidden_size,
        num_attention_layers=config.num_attention_layers,
        num_attention_heads=config.num_attention_heads,
        num_answer_classes=config.num_labels,
        dropout=config.classifier_dropout,
    )
    reference.config = config
    object.__setattr__(reference, "qca", body)  # not registered as a module
    return reference
