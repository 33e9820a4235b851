"""Gradient-weighted attention for two modalities (Chefer et al. 2021, arXiv:2103.15679).

B questions, L question tokens, P prefix tokens, N patches, S = P + N image tokens, K patches the token budget kept, S'
image tokens of a layer (P + K + 1 from the budget on, else S), H heads.

Relevancy is written as in the paper: `text` R_tt, `image` R_ii, `image_text` R_it, `query_image` R_qi, ...
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedConfig, PreTrainedModel

from .attention_qca import masked_softmax
from .rollout_qca import ImageTokens


@dataclass
class WeightedAttention:
    r"""Attention weighted by its gradient, \\(\bar A = E_h((\nabla A \odot A)^+)\\) (eq. 5)."""

    text: list[torch.Tensor]  # [B, L, L] a layer
    vision: list[torch.Tensor]  # [B, S', S'] a layer
    conditioning: dict[int, torch.Tensor]  # [B, S', L], or [B, 1, S'] where the question reads the patches
    pooling: torch.Tensor  # [B, 1, L]
    words: list[torch.Tensor]  # [B, 1, L] a hop, with `query_tokens="attended"`
    hops: list[torch.Tensor]  # [B, 1, N or K] a hop; without hops, the mean of the patches


def gradient_relevance(
    config: PreTrainedConfig, attention: WeightedAttention, tokens: ImageTokens, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Relevancy of patches `[B, N]` and of question tokens `[B, L]` for the answer (eq. 6-11).

    The pooled question counts as one more token that attends to the tokens it is pooled of. Without hops, the mean of
    the patches counts as a hop: its map is Grad-CAM (Selvaraju et al. 2017) of the pooled patches, and is followed
    back through the encoder. Text reads no image before the hops, so R_ti is zero until then. Only attention is
    followed, not the amount of evidence and not the patch update of a hop.

    Args:
        mask: `[B, L]` boolean.
    """
    text = identity = torch.eye(mask.shape[1], device=mask.device).expand(len(mask), -1, -1)
    for weights in attention.text:
        text = text + weights @ text  # eq. 6
    text_normed = _normalized(text, identity)
    patches, patches_text = _patch_relevancy(config, attention, tokens, text_normed)
    query_text = attention.pooling @ text_normed  # [B, 1, L], eq. 10
    query_image = patches.new_zeros(len(mask), 1, patches.shape[-1])
    for hop, weights in enumerate(attention.hops):
        if attention.words:
            query_text = query_text + attention.words[hop] @ text_normed  # eq. 10
        query_image = query_image + weights @ patches  # eq. 10
        query_text = query_text + weights @ patches_text  # eq. 11
    return query_image[:, 0, tokens.prefix :], query_text[:, 0] * mask


def _patch_relevancy(
    config: PreTrainedConfig, attention: WeightedAttention, tokens: ImageTokens, text: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Relevancy of the patches that the hops read.

    Args:
        text: the normalized R_tt.

    Returns:
        The normalized R_ii `[B, N or K, S]`, with several feature layers in equal shares, and R_it `[B, N or K, L]`.
    """
    image = tokens.identity
    image_text = image.new_zeros(*image.shape[:2], text.shape[-1])
    read_after = config.vision_feature_layers or [len(attention.vision)]
    read: list[torch.Tensor] = []
    for index, weights in enumerate(attention.vision):
        image, image_text = tokens.at_layer(index, image), tokens.at_layer(index, image_text)
        if index in attention.conditioning:
            question = attention.conditioning[index]
            if config.vision_conditioning == "question_reads_patches":  # one update for all tokens
                image, image_text = image + question @ image, image_text + question @ image_text
            else:
                residual = tokens.residual(index)
                own = _normalized(image, residual) @ residual.transpose(1, 2)  # [B, S', S']
                image_text = image_text + own.transpose(1, 2) @ question @ text  # eq. 10
        image, image_text = image + weights @ image, image_text + weights @ image_text  # eq. 6 and 7
        read += [_normalized(image, tokens.residual(index))] * read_after.count(index + 1)
    return tokens.patches(torch.stack(read).mean(dim=0)), tokens.patches(image_text)


def _normalized(relevancy: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """Scale the rows of what attention added to one, and add the token itself (eq. 8-9)."""
    added = relevancy - residual
    total = added.sum(dim=-1, keepdim=True)
    return added / total.clamp(min=torch.finfo(total.dtype).tiny) + residual


class AttentionRecorder(TorchFunctionMode):
    """
    Record the attention maps of a forward pass that the model does not return with a gradient.

    Args:
        model: an [`evaluation_copy`], because its hooks stay. Run it once inside of `with AttentionRecorder(model)`.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.config = model.config
        body: Any = model.base_model
        self.embedder = body.query_embedder
        self.question: dict[str, torch.Tensor] = {}
        self.patches: dict[str, torch.Tensor] = {}  # "pooled" [B, D] and "states" [B, N or K, D], without hops
        self.conditioning: list[torch.Tensor] = []  # [B, heads, S', L] in the order of the layers
        self.hops: list[torch.Tensor] = []  # [B, H, 1, N or K]
        self.words: list[torch.Tensor] = []  # [B, 1, 1, L]
        for module, hook in [*self._hooks(model, body.hops.layers), *self._mean_hooks(body)]:
            module.register_forward_hook(hook)

    def _mean_hooks(self, body: Any) -> Iterator[tuple[nn.Module, Any]]:
        if len(body.hops.layers) == 0:
            yield body.patch_embedder, lambda module, inputs, output: self.patches.update(states=output)
            yield body.hops.mean_dropout, lambda module, inputs, output: self.patches.update(pooled=inputs[0])

    def _hooks(self, model: PreTrainedModel, hops: Any) -> Iterator[tuple[nn.Module, Any]]:
        def keep_question(module: nn.Module, inputs: tuple, output: torch.Tensor):
            self.question["pooled" if inputs[0].dim() == 2 else "states"] = inputs[0]

        # A frozen encoder needs a gradient as well.
        yield model.get_input_embeddings(), lambda module, inputs, output: output.requires_grad_()
        yield self.embedder.projection, keep_question
        for layer in hops:
            yield layer.attention.softmax, lambda module, inputs, output: self.hops.append(output)
            if layer.question_attention is not None:
                yield layer.question_attention.softmax, lambda module, inputs, output: self.words.append(output)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        mask = (kwargs or {}).get("attn_mask")
        of_an_encoder = mask is not None and mask.dtype != torch.bool  # ours is boolean
        if function is not nn.functional.scaled_dot_product_attention or of_an_encoder:
            return function(*args, **(kwargs or {}))
        query, key, value = args
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        self.conditioning.append(masked_softmax(scores, mask))
        return self.conditioning[-1].to(value.dtype) @ value

    def weighted(
        self, score: torch.Tensor, outputs: Any, mask: torch.Tensor, patch_mask: torch.Tensor | None = None
    ) -> WeightedAttention:
        """
        Args:
            score: of the answers, summed over the questions. Each question has an image of its own.
            outputs: of the recorded pass, with `output_attentions=True`.
            mask: `[B, L]` boolean, of the question tokens.
            patch_mask: `[B, N or K]` boolean, of the patches that a model without hops averages.
        """
        parts = {
            "text": outputs.text_attentions,
            "vision": outputs.vision_attentions,
            "conditioning": self.conditioning,
            "words": self.words,
            "hops": self.hops,
        }
        maps = [weights for part in parts.values() for weights in part]
        ends = [self.question["pooled"], *([self.patches["pooled"]] if self.patches else [])]
        gradients = torch.autograd.grad(score, [*maps, *ends], allow_unused=True, materialize_grads=True)
        pooled, *mean = gradients[len(maps) :]
        weighted = iter([_weighted(*pair) for pair in zip(maps, gradients, strict=False)])
        text, vision, conditioning, words, hops = (list(islice(weighted, len(part))) for part in parts.values())
        by_layer = dict(zip(self.config.conditioned_layers, conditioning, strict=True))
        hops = [_weighted_mean(self.patches["states"], mean[0], patch_mask)] if mean else hops
        return WeightedAttention(text, vision, by_layer, self._pooling(pooled, mask), words, hops)

    def _pooling(self, pooled_gradient: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        weights = pooling_weights(self.embedder, mask)[:, None, None]  # [B, 1, 1, L]: one head, one query
        if self.config.question_pooling != "mean":
            return weights[:, 0]  # the query is a single token
        gradient = pooled_gradient[:, None] @ self.question["states"].transpose(1, 2)  # pooled = weights @ states
        return _weighted(weights, gradient[:, None])


def _weighted_mean(states: torch.Tensor, gradient: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The mean of patches `[B, N, D]` as attention with equal weights, weighted as in eq. 5: `[B, 1, N]`."""
    present = torch.ones_like(states[..., 0]) if mask is None else mask.to(states.dtype)
    weights = present / present.sum(dim=-1, keepdim=True).clamp(min=1)
    effect = torch.einsum("bnd,bd->bn", states, gradient)
    return _weighted(weights[:, None, None], effect[:, None, None])


def pooling_weights(query_embedder: Any, mask: torch.Tensor) -> torch.Tensor:
    """The share of each question token in the pooled question, `[B, L]`. Pooling is linear in the token states."""
    tokens = torch.eye(mask.shape[1], device=mask.device).expand(len(mask), -1, -1)
    return query_embedder.pool(tokens, mask)


def _weighted(weights: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Eq. 5: `[B, H, Q, K] -> [B, Q, K]`"""
    return (weights * gradient).detach().float().clamp(min=0).mean(dim=1)


__all__ = ["AttentionRecorder", "WeightedAttention", "gradient_relevance", "pooling_weights"]
