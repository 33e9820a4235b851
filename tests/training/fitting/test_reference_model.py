"""The reference model against a loop over its published formulas, and with the batches of our collator."""

import math

import pytest
import torch
from helpers.tiny import tiny_batch, tiny_text_config, tiny_vision_config
from torch import nn
from transformers import AutoModel

from modeling_qca.training.fitting.reference_model import ReferenceForVisualQuestionAnswering, ReferenceVQAModel

QUESTION = ("input_ids", "attention_mask", "token_type_ids")


def linear(weights, name, values):
    return weights[f"{name}.weight"] @ values + weights[f"{name}.bias"]


def norm(weights, name, values):
    centered = values - values.mean()
    return weights[f"{name}.weight"] * centered / (centered.square().mean() + 1e-5).sqrt() + weights[f"{name}.bias"]


def gelu(values):
    return values / 2 * (1 + torch.erf(values / math.sqrt(2)))


def hop(weights, patches, query, heads):
    """The attended vector [C], and the share of each patch for each head."""
    q = linear(weights, "q_proj", query).chunk(heads)
    keys = [linear(weights, "k_proj", patch).chunk(heads) for patch in patches]
    values = [linear(weights, "v_proj", patch).chunk(heads) for patch in patches]
    shares, attended = [], []
    for head in range(heads):
        scores = [math.exp(float(q[head] @ key[head]) / math.sqrt(len(q[head]))) for key in keys]
        shares.append([score / sum(scores) for score in scores])
        attended.append(sum(share * value[head] for share, value in zip(shares[head], values, strict=True)))
    return linear(weights, "out_proj", torch.cat(attended)), shares


def part(weights, name):
    return {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}


def answer(weights, patches, cls, heads, hops):
    """Logits [answers] and each hop's shares, from the patches [N, C] and the CLS state of the question."""
    projection = part(weights, "query_embedder.projection")
    asked = query = gelu(norm(projection, "1", linear(projection, "0", cls)))
    stack, maps = part(weights, "query_attention"), []
    for number in range(hops):
        attended, shares = hop(part(stack, f"attention_layers.{number}"), patches, query, heads)
        maps.append(shares)
        patches = [norm(stack, f"layer_norms.{number}", patch + attended) for patch in patches]
        if number < hops - 1:
            mean = [sum(of_head[patch] for of_head in shares) / heads for patch in range(len(patches))]
            pooled = sum(share * patch for share, patch in zip(mean, patches, strict=True))
            query = linear(stack, f"query_updaters.{number}", torch.cat([pooled, query]))
    fusion, classifier = part(weights, "fusion"), part(weights, "classifier")
    fused = torch.cat([sum(patches) / len(patches), asked])
    fused = gelu(norm(fusion, "1", linear(fusion, "0", fused)))
    return linear(classifier, "3", gelu(linear(classifier, "0", fused))), maps


@pytest.mark.parametrize("hops", [1, 3])
def test_equals_a_loop_over_its_formulas(hops):
    vision, text = AutoModel.from_config(tiny_vision_config()), AutoModel.from_config(tiny_text_config())
    model = ReferenceVQAModel(
        vision, text, hidden_dim=24, num_attention_layers=hops, num_attention_heads=4, num_answer_classes=5
    ).eval()
    for parameter in model.parameters():  # biases and norms too
        nn.init.normal_(parameter, std=0.3)
    batch = tiny_batch(questions=3, images=3)
    questions = {name: batch[name] for name in QUESTION}
    with torch.no_grad():
        logits, maps = model(batch["pixel_values"], questions)
        patches = vision(batch["pixel_values"]).last_hidden_state
        states = text(**questions).last_hidden_state
        weights = model.state_dict()
        for question in range(3):
            expected, shares = answer(weights, list(patches[question]), states[question, 0], 4, hops)
            torch.testing.assert_close(logits[question], expected, atol=1e-4, rtol=1e-4)
            found = torch.stack([of_hop[question] for of_hop in maps])
            torch.testing.assert_close(found, torch.tensor(shares), atol=1e-4, rtol=1e-4)


def test_takes_batches_of_our_collator_and_cached_features():
    encoders = AutoModel.from_config(tiny_vision_config()), AutoModel.from_config(tiny_text_config())
    model = ReferenceForVisualQuestionAnswering(*encoders, hidden_dim=32, num_answer_classes=5).eval()
    batch, labels = tiny_batch(questions=4, images=2), torch.tensor([0, 4, -100, 2])
    output = model(**batch, labels=labels)
    assert output.grid == (4, 4) and output.relevance.shape == (4, 2, 8, 16)
    known = torch.tensor([0, 1, 3])
    torch.testing.assert_close(output.loss, nn.functional.cross_entropy(output.logits[known], labels[known]))
    features = encoders[0](batch.pop("pixel_values")).last_hidden_state
    cached = model(**batch, image_features=features, image_grid=(4, 4))
    torch.testing.assert_close(cached.logits, output.logits, atol=1e-5, rtol=1e-5)
    output.loss.backward()
    assert all(p.grad is None for p in encoders[1].parameters())
    assert any(p.grad is not None for p in encoders[0].parameters())


def test_questions_and_images_pair_up_without_an_index():
    encoders = AutoModel.from_config(tiny_vision_config()), AutoModel.from_config(tiny_text_config())
    model = ReferenceForVisualQuestionAnswering(*encoders, hidden_dim=32, num_answer_classes=5).eval()
    batch = tiny_batch(questions=3, images=3)
    expected = model(**batch).logits
    del batch["image_index"]
    torch.testing.assert_close(model(**batch).logits, expected)
