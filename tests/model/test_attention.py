"""Relevance scorers, evidence, patch updates and hops against loops written from their formulas."""

import math

import numpy as np
import pytest
import torch
from helpers.tiny import called_operators, tiny_batch, tiny_config, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from modeling_qca.attention_qca import (
    SCORERS,
    AttentionHop,
    AttentionHops,
    PatchUpdate,
    QueryConditionedAttention,
    masked_mean,
    masked_softmax,
)
from modeling_qca.embedding_qca import PatchEmbedder, grid_coordinates
from modeling_qca.pairs_qca import ImageIndex, image_matmul
from modeling_qca.states_qca import PatchPlaces, QuestionStates

SCORER_NAMES = sorted(SCORERS)


def numpy_of(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy().astype(np.float64)


def linear(layer: nn.Linear, vector: np.ndarray) -> np.ndarray:
    bias = 0.0 if layer.bias is None else numpy_of(layer.bias)
    return numpy_of(layer.weight) @ vector + bias


def head(vector: np.ndarray, index: int, heads: int) -> np.ndarray:
    size = len(vector) // heads
    return vector[index * size : (index + 1) * size]


def score(scorer: nn.Module, name: str, query: np.ndarray, patch: np.ndarray, h: int) -> float:
    """One head's score of one patch, as its paper writes it."""
    heads = scorer.num_heads
    if name == "bilinear":
        matrix = numpy_of(scorer.q_proj.weight)[h * len(patch) : (h + 1) * len(patch)].T  # W_h [query, patch]
        return float(query @ matrix @ patch) / math.sqrt(len(patch))
    key = linear(scorer.k_proj, patch) if name == "additive" else numpy_of(scorer.key_proj.weight).T @ patch
    q, k = head(linear(scorer.q_proj, query), h, heads), head(key, h, heads)
    if name == "additive":
        return float(numpy_of(scorer.score_weight)[h] @ np.tanh(q + k))
    return float(q @ k) / math.sqrt(len(q))


def softmax(scores: list[float], mask: list[bool]) -> np.ndarray:
    present = [s for s, kept in zip(scores, mask, strict=True) if kept]
    if not present:
        return np.zeros(len(scores))
    exponentials = [math.exp(s - max(present)) if kept else 0.0 for s, kept in zip(scores, mask, strict=True)]
    return np.array(exponentials) / sum(exponentials)


def attention_by_loop(
    attention: QueryConditionedAttention, name: str, query: torch.Tensor, patches: torch.Tensor, mask: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Evidence `[B, Q, D]` and relevance `[B, H, Q, N]` at [`places`], one query and one head at a time."""
    heads, (questions, queries, size), count = attention.num_heads, query.shape, patches.shape[1]
    query_states, patch_states, where = numpy_of(query), numpy_of(patches), numpy_of(places(count).coordinates)
    evidence, relevance = np.zeros((questions, queries, size)), np.zeros((questions, heads, queries, count))
    for b in range(questions):
        kept = mask[b].tolist()
        for q in range(queries):
            found = []
            for h in range(heads):
                scores = [score(attention.scorer, name, query_states[b, q], patch, h) for patch in patch_states[b]]
                relevance[b, h, q] = shares = softmax(scores, kept)
                values = [head(linear(attention.v_proj, patch), h, heads) for patch in patch_states[b]]
                found += list(sum(share * value for share, value in zip(shares, values, strict=True)))
                found.append(np.log(np.mean(np.exp(np.array(scores)[kept]))) if any(kept) else 0.0)
                found += list(sum(share * place for share, place in zip(shares, where, strict=True)))
            evidence[b, q] = linear(attention.o_proj, np.array(found)) if any(kept) else 0.0
    return evidence, relevance


def places(patches: int, index: ImageIndex | None = None, mask: torch.Tensor | None = None) -> PatchPlaces:
    """Patches along a diagonal."""
    return PatchPlaces(torch.linspace(-0.8, 0.6, patches)[:, None] * torch.tensor([1.0, -0.5]), index, mask)


def questions_of(query: torch.Tensor) -> QuestionStates:
    """Questions of one token, whose query is `query` `[B, D]`."""
    return QuestionStates(query, query[:, None], torch.ones(len(query), 1, dtype=torch.bool))


def run_hop(hop: AttentionHop, query: torch.Tensor, patches: torch.Tensor, **where: object) -> tuple:
    """A hop of the questions `query` `[B, 1, D]`."""
    return hop(query, patches, query, torch.ones(query.shape[:2], dtype=torch.bool), places(patches.shape[1], **where))


def build(module: type[nn.Module], *arguments: object, **fields: object) -> nn.Module:
    config = tiny_config(hidden_size=16, **fields)
    built = module(config, *arguments).eval()
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.5)
    return built


@pytest.mark.parametrize("name", SCORER_NAMES)
@settings(max_examples=8, deadline=None)
@given(
    heads=st.sampled_from([1, 2, 4]),
    patches=st.integers(1, 6),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_attention_equals_a_loop_over_its_formula(name, heads, patches, seed, data):
    torch.manual_seed(seed)
    attention = build(QueryConditionedAttention, relevance_scorer=name, num_attention_heads=heads)
    query, states = torch.randn(2, 1, 16), torch.randn(2, patches, 16)
    mask = torch.tensor(
        data.draw(st.lists(st.lists(st.booleans(), min_size=patches, max_size=patches), min_size=2, max_size=2))
    )
    evidence, relevance = attention(query, states, places(patches, mask=mask))
    expected_evidence, expected_relevance = attention_by_loop(attention, name, query, states, mask)
    np.testing.assert_allclose(relevance.detach(), expected_relevance[:, :, 0], atol=1e-5)
    np.testing.assert_allclose(evidence.detach(), expected_evidence, atol=1e-4)


def test_each_question_may_have_its_own_coordinates():
    attention = build(QueryConditionedAttention)
    query, patches, coordinates = torch.randn(2, 1, 16), torch.randn(2, 5, 16), torch.rand(2, 5, 2)
    together, _ = attention(query, patches, PatchPlaces(coordinates))
    for b in range(2):
        alone, _ = attention(query[b : b + 1], patches[b : b + 1], PatchPlaces(coordinates[b]))
        assert together[b].allclose(alone[0], atol=1e-5)


@pytest.mark.parametrize("name", SCORER_NAMES)
def test_fully_masked_row_gives_zeros_and_finite_gradients(name):
    attention = build(QueryConditionedAttention, relevance_scorer=name)
    query = torch.randn(2, 1, 16, requires_grad=True)
    mask = torch.tensor([[False] * 4, [True] * 4])
    evidence, relevance = attention(query, torch.randn(2, 4, 16), places(4, mask=mask))
    assert torch.equal(relevance[0], torch.zeros(4, 4))
    assert torch.equal(evidence[0], torch.zeros(1, 16))
    assert relevance[1].sum(-1).allclose(torch.ones(4))
    (evidence.sum() + relevance.square().sum()).backward()
    assert query.grad.isfinite().all()
    assert torch.equal(query.grad[0], torch.zeros(1, 16))


def test_fully_masked_row_of_large_scores_gives_zeros_in_half_precision():
    attention = build(QueryConditionedAttention).half()
    query, patches = 30 * torch.randn(1, 1, 16).half(), 30 * torch.randn(1, 4, 16).half()
    evidence, relevance = attention(query, patches, places(4, mask=torch.zeros(1, 4, dtype=torch.bool)))
    assert not evidence.any()
    assert not relevance.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_masked_softmax_is_exactly_zero_on_masked_entries(dtype):
    scores = torch.tensor([[6e4, -6e4, 0.0], [1.0, 2.0, 3.0]]).to(dtype)
    mask = torch.tensor([[False, True, True], [False, False, False]])
    assert torch.equal(masked_softmax(scores, mask), torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))


def test_masked_mean_ignores_masked_entries():
    states = torch.tensor([[[1.0], [3.0], [1e30]], [[5.0], [7.0], [9.0]]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert masked_mean(states, mask, dim=1).tolist() == [[2.0], [0.0]]
    assert masked_mean(states[1:], None, dim=1).tolist() == [[7.0]]


@pytest.mark.parametrize("name", SCORER_NAMES)
def test_dropout_in_training_changes_the_evidence_and_not_the_relevance(name):
    attention = build(QueryConditionedAttention, relevance_scorer=name, evidence_dropout=0.5)
    query, patches = torch.randn(4, 1, 16), torch.randn(4, 12, 16)
    evidence, relevance = attention(query, patches, places(12))
    training_evidence, training_relevance = attention.train()(query, patches, places(12))
    assert torch.equal(training_relevance, relevance)
    assert relevance.sum(-1).allclose(torch.ones(4, 4), atol=1e-6)
    assert not training_evidence.allclose(evidence, atol=1e-2)


@pytest.mark.parametrize(("name", "scale"), [("bilinear", 0.02 * math.sqrt(384)), ("dot_product", 0.02**2 * 384)])
def test_initial_scores_of_normalized_states_are_small(name, scale):
    """Var(q W v / sqrt(D)) = D r^2 for weights of standard deviation r; N(0, 1) weights would give sqrt(D) = 20."""
    model = tiny_model(relevance_scorer=name, hidden_size=384, num_attention_heads=2, initializer_range=0.02)
    scorer = model.qca.hops.layers[0].attention.scorer
    query, patches = torch.randn(16, 1, 384), torch.randn(16, 64, 384)
    scores = scorer(query, patches)
    assert scores.std().item() == pytest.approx(scale, rel=0.15)
    entropy = torch.special.entr(scores.softmax(-1)).sum(-1)
    assert entropy.min() > 0.9 * math.log(64), "the softmax starts soft"


def test_bilinear_heads_differ():
    attention = build(QueryConditionedAttention, relevance_scorer="bilinear", num_attention_heads=2)
    _, relevance = attention(torch.randn(1, 1, 16), torch.randn(1, 6, 16), places(6))
    assert not relevance[0, 0].allclose(relevance[0, 1], atol=1e-3)


def test_eager_and_sdpa_agree():
    batch = tiny_batch()
    eager, sdpa = (tiny_model() for _ in range(2))
    eager.set_attn_implementation("eager")
    assert eager.config._attn_implementation == "eager"
    assert sdpa.config._attn_implementation == "sdpa"
    first, second = eager(**batch), sdpa(**batch)
    assert first.logits.allclose(second.logits, atol=1e-5)
    assert first.relevance.allclose(second.relevance, atol=1e-6)


@pytest.mark.slow  # compiles a kernel
def test_flex_attention_agrees_where_torch_has_it_on_the_cpu():
    model, batch = tiny_model(), tiny_batch()
    expected = model(**batch)
    model.set_attn_implementation("flex_attention")
    with torch.no_grad():
        outputs = model(**batch)
    assert outputs.logits.allclose(expected.logits, atol=1e-5)
    assert outputs.relevance.allclose(expected.relevance, atol=1e-6)


def test_broadcast_update_adds_the_same_vector_to_every_patch():
    update = build(PatchUpdate, patch_update="broadcast")
    patches, evidence = torch.randn(2, 3, 16), torch.randn(2, 16)
    updated = update(patches, evidence)
    for n in range(3):
        assert updated[:, n].allclose(update.norm(patches[:, n] + evidence), atol=1e-6)


def test_hop_is_a_pre_norm_residual_update_of_the_query():
    hop = build(AttentionHop, False, patch_update="broadcast", classifier_dropout=0.0)
    query, patches = torch.randn(2, 1, 16), torch.randn(2, 5, 16)
    new_query, new_patches, evidence, _ = run_hop(hop, query, patches)
    mask = torch.ones(2, 5, dtype=torch.bool)
    expected, _ = attention_by_loop(hop.attention, "dot_product", hop.query_norm(query), hop.patch_norm(patches), mask)
    np.testing.assert_allclose(evidence.detach(), expected[:, 0], atol=1e-4)
    looked = query + evidence[:, None]
    widen, narrow = hop.update[0], hop.update[2]
    expected_query = looked + narrow(nn.functional.gelu(widen(hop.update_norm(looked))))
    assert new_query.allclose(expected_query, atol=1e-5)
    assert new_patches.allclose(hop.patch_update(patches, evidence))


@pytest.mark.parametrize("patch_update", ["none", "broadcast"])
def test_each_hop_starts_from_the_query_and_patches_of_the_last(patch_update):
    hops = build(AttentionHops, patch_update=patch_update, num_attention_layers=3)
    query, patches = torch.randn(3, 16), torch.randn(2, 5, 16)
    image_index = torch.tensor([0, 1, 1])
    last, evidence, relevance = hops(questions_of(query), patches, places(5, ImageIndex.of(image_index, 2)))
    query, states, found, maps = query[:, None], patches[image_index], [], []
    for layer in hops.layers:
        query, states, gathered, seen = run_hop(layer, query, states)
        found.append(gathered)
        maps.append(seen)
    assert last.allclose(query[:, 0], atol=1e-5)
    assert evidence.allclose(torch.stack(found, 1), atol=1e-5)
    assert relevance.allclose(torch.stack(maps, 1), atol=1e-5)
    changed = patch_update != "none"
    assert [layer.patch_update is not None for layer in hops.layers] == [changed, changed, False]
    assert changed != torch.equal(states, patches[image_index])


def test_without_hops_the_evidence_is_the_mean_of_the_patches():
    hops = build(AttentionHops, num_attention_layers=0)
    patches, mask = torch.randn(2, 3, 16), torch.tensor([[True, True, False], [True, True, True], [False] * 3])
    index = ImageIndex.of(torch.tensor([0, 1, 1]), 2)
    query, evidence, relevance = hops(questions_of(torch.randn(3, 16)), patches, places(3, index, mask))
    assert query.shape == (3, 16)
    assert evidence[:, 0].allclose(torch.stack([patches[0, :2].mean(0), patches[1].mean(0), torch.zeros(16)]))
    assert relevance.shape == (3, 0, 4, 3)


def test_hops_and_mean_adds_the_mean_of_the_patches_before_any_update():
    plain = build(AttentionHops)
    hops = build(AttentionHops, answer_evidence="hops_and_mean", patch_update="broadcast")
    plain.load_state_dict(hops.state_dict(), strict=False)
    question, patches = questions_of(torch.randn(3, 16)), torch.randn(2, 5, 16)
    where = places(5, ImageIndex.of(torch.tensor([0, 1, 1]), 2))
    _, evidence, relevance = hops(question, patches, where)
    assert evidence.shape == (3, hops.num_evidence, 16) == (3, 3, 16) and relevance.shape[1] == 2
    assert evidence[:, 2].allclose(patches.mean(1)[where.image_index.rows])
    assert evidence[:, 0].allclose(plain(question, patches, where)[1][:, 0])


@pytest.mark.parametrize("hops", [0, 1])
def test_evidence_dropout_acts_in_training_only_and_keeps_the_mean(hops):
    stack = build(AttentionHops, num_attention_layers=hops, evidence_dropout=0.4, classifier_dropout=0.0)
    query, patches = torch.randn(1, 16), torch.randn(1, 3, 16)
    once = stack.eval()(questions_of(query), patches, places(3))[1]
    index = ImageIndex(torch.zeros(20000).long())
    many = stack.train()(questions_of(query.expand(20000, 16)), patches, places(3, index))
    spread = many[1].std(dim=0, keepdim=True)
    assert spread.amin() > 1e-3 and ((many[1].mean(dim=0, keepdim=True) - once).abs() < 5 * spread / 20000**0.5).all()
    assert (many[2] == many[2][0]).all(), "where it looked is not touched"
    zeros = (many[1] == 0).float().mean().item()
    assert zeros == (pytest.approx(0.4, abs=0.01) if hops == 0 else 0), "of a hop, before its output projection"


def test_coordinates_are_patch_centers_in_raster_order():
    expected = [(y, x) for y in (-0.5, 0.5) for x in (-0.75, -0.25, 0.25, 0.75)]
    assert grid_coordinates((2, 4), torch.device("cpu")).tolist() == [list(place) for place in expected]


def test_image_index_groups_questions_where_it_saves_work_and_is_none_for_pairs():
    index = ImageIndex.of(torch.tensor([1, 0, 1, 1]), images=2)
    assert index.max_questions_per_image == 3 and index.group_positions.tolist() == [3, 0, 4, 5]
    assert ImageIndex.of(torch.tensor([0, 1, 2]), images=3) is None
    assert ImageIndex.of(torch.tensor([0, 1, 2]), images=4).group_positions is not None
    assert ImageIndex.of(torch.tensor([0] * 9 + [1]), images=5).group_positions is None  # 45 places for 10 questions
    with pytest.raises(ValueError, match="`image_index` of question 1 is -1, but there are 2 images"):
        ImageIndex.of(torch.tensor([0, -1]), images=2)


@settings(deadline=None)
@given(
    image_index=st.lists(st.integers(0, 5), min_size=1, max_size=20),
    rows=st.integers(1, 3),
    transposed=st.booleans(),
)
def test_image_matmul_equals_one_product_a_question(image_index, rows, transposed):
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(len(image_index), rows, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    right = torch.randn(6, *((7, 4) if transposed else (4, 7)), generator=generator, dtype=torch.float64)
    right = (right.transpose(1, 2) if transposed else right).requires_grad_()
    shared = image_matmul(left, right, ImageIndex.of(torch.tensor(image_index), images=6))
    one_by_one = torch.stack([left[b] @ right[image] for b, image in enumerate(image_index)])
    assert shared.allclose(one_by_one, atol=1e-12)
    weights = torch.randn(shared.shape, generator=generator, dtype=torch.float64)
    for ours, theirs in zip(
        torch.autograd.grad((shared * weights).sum(), (left, right)),
        torch.autograd.grad((one_by_one * weights).sum(), (left, right)),
        strict=True,
    ):
        assert ours.allclose(theirs, atol=1e-12)


def test_norm_folded_into_the_projection_gives_equal_patches():
    torch.manual_seed(0)
    embedder = PatchEmbedder(tiny_config())
    for parameter in embedder.parameters():
        nn.init.normal_(parameter)
    patches, coordinates = torch.randn(2, 16, embedder.norm.normalized_shape[0]), grid_coordinates((4, 4), "cpu")
    states = embedder.projection(embedder.norm(patches)) + embedder.position(coordinates)
    torch.testing.assert_close(embedder(patches, coordinates), states + embedder.update(states), atol=1e-4, rtol=1e-4)
    called = called_operators(lambda: embedder(patches, coordinates).sum().backward())
    assert called["aten::native_layer_norm_backward"] == 1  # of the update alone: the features get no gradient
    assert all(parameter.grad.abs().sum() > 0 for parameter in embedder.parameters())
