"""The token budget: it keeps exactly K patches, chosen for each question by itself."""

import math
from itertools import product

import pytest
import torch
from helpers.tiny import LAYOUT_CONFIGS, VISION_CONFIGS, tiny_batch, tiny_config, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.masking_utils import create_bidirectional_mask

from modeling_qca import QCAForVisualQuestionAnswering
from modeling_qca.budget_qca import TokenBudget
from modeling_qca.pairs_qca import expand_to_questions
from modeling_qca.vision_qca import QCAVisionOutput

LABELS = torch.tensor([0, 1, 2])
PREFIX_TOKENS = {"vit": 1, "deit": 2, "dinov2": 1, "dinov2_with_registers": 5, "clip_vision_model": 1} | {
    vision: count
    for vision, count in {"dinov3_vit": 3, "pixio": 8, "tipsv2_vision_model": 2, "metaclip_2_vision_model": 1}.items()
    if vision in LAYOUT_CONFIGS
}


def budget_model(
    vision: str = "vit", token_budget: int | list[int] = 5, attention: str = "sdpa", **fields
) -> QCAForVisualQuestionAnswering:
    """A budget after the first of three layers, whose scores are far enough apart to choose by."""
    model = tiny_model(vision, token_budget=token_budget, token_budget_layer=1, **fields)
    model.set_attn_implementation(attention)
    if model.qca.vision_encoder.budget.scorer == "learned":
        model.qca.vision_encoder.budget.q_proj.weight.data *= 3
    return model


def tiny_budget(token_budget: int | list[int], **fields) -> TokenBudget:
    return TokenBudget(tiny_config(token_budget=token_budget, token_budget_layer=1, **fields))


class MaskingEncoder(nn.Module):
    """The reference of the budget, with every patch in place: dropped patches are masked in the later layers, and one
    more token stands for them. Written out with the backbone's own layers, patch by patch."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.backbone, self.budget, self.encode_images = encoder.backbone, encoder.budget, encoder.encode_images
        self.layers = encoder.backbone.get_submodule(encoder.layout.layers)[1:]
        norm = encoder.layout.after_layers
        self.norm = nn.Identity() if norm is None else encoder.backbone.get_submodule(norm)

    def forward(self, features, image_index, question, **requested) -> QCAVisionOutput:
        tokens, budget = expand_to_questions(features.last_hidden_state, image_index), self.budget
        prefix = tokens.shape[1] - features.grid[0] * features.grid[1]
        patches = tokens[:, prefix:]
        scores = (budget.q_proj(question.query)[:, None] * budget.norm(patches)).sum(-1) / patches.shape[-1] ** 0.5
        relevance = scores.softmax(-1)
        kept, merged = torch.zeros_like(relevance, dtype=torch.bool), []
        for row, probabilities in enumerate(relevance):
            mass = 0.0
            for rank, patch in enumerate(probabilities.argsort(descending=True)):
                wanted = mass < budget.mass or rank < budget.fewest if budget.adaptive else True
                kept[row, patch] = wanted and rank < budget.most
                mass += probabilities[patch].item()
            weight = probabilities[~kept[row]]
            merged.append((weight[:, None] * patches[row, ~kept[row]]).sum(0) / weight.sum().clamp(min=1e-30))
        straight_through = 1 + relevance.log() - relevance.detach().log()
        tokens = torch.cat(
            [tokens[:, :prefix], patches * straight_through[..., None], torch.stack(merged)[:, None]], dim=1
        )
        some_dropped = (~kept).any(-1, keepdim=True)
        token_mask = torch.cat([kept.new_ones(len(kept), prefix), kept, some_dropped], dim=1)
        attention_mask = create_bidirectional_mask(self.backbone.config, tokens, token_mask)
        places = {}
        if features.rotary is not None:  # the token of the dropped patches is turned by an angle of zero
            cosine, sine = (nn.functional.pad(angles, (0, 0, 0, 1)) for angles in features.rotary)
            places["position_embeddings"] = (cosine + (torch.arange(len(cosine)) == len(cosine) - 1)[:, None], sine)
        for layer in self.layers:
            tokens = layer(tokens, attention_mask, **places)
        return QCAVisionOutput(patches=self.norm(tokens)[:, prefix:-1], patch_mask=kept)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_fixed_budget_keeps_exactly_k_patches(data: st.DataObject) -> None:
    patches, rows = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 4))
    count = data.draw(st.integers(1, 45))
    levels = st.lists(st.integers(0, 5), min_size=patches, max_size=patches)  # many ties
    scores = torch.tensor(data.draw(st.lists(levels, min_size=rows, max_size=rows))).float()
    relevance = scores.softmax(-1)
    budget = tiny_budget(count)
    kept = budget.keep(relevance)
    assert (kept.sum(-1) == min(count, patches)).all()
    for row in range(rows):
        expected = sorted(range(patches), key=lambda patch: (-relevance[row, patch].item(), patch))[:count]
        assert kept[row].nonzero().flatten().tolist() == sorted(expected)
    if count < patches:
        tokens, mask, positions = budget.drop(torch.randn(rows, 2 + patches, 32), 2, relevance)
        assert tokens.shape == (rows, 2 + count + 1, 32) and mask is None
        assert torch.equal(torch.zeros_like(kept).scatter(1, positions, True), kept)
        assert (positions.diff() > 0).all()


def spread_by_hand(relevance: list[float], count: int) -> list[int]:
    """Shares min(1, s sqrt(r)) that add up to `count`, s found by halving; walked along, one patch at each half."""
    weights = [r**0.5 for r in relevance]
    low, high = 0.0, 1e30
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(min(1.0, middle * w) for w in weights) < count else (low, middle)
    total, taken = 0.0, []
    for patch, weight in enumerate(weights):
        before, total = total, total + min(1.0, high * weight)
        if math.floor(total + 0.5) > math.floor(before + 0.5):
            taken.append(patch)
    return taken


@given(st.integers(0, 2**20), st.integers(1, 40), st.integers(1, 45), st.sampled_from([0.0, 1.0, 4.0, 40.0]))
@settings(max_examples=200, deadline=None)
def test_spread_density_is_proportional_to_the_square_root_of_relevance(seed, patches, count, contrast) -> None:
    scores = torch.randn(3, patches, generator=torch.Generator().manual_seed(seed))
    relevance = (contrast * scores).softmax(-1)
    kept = tiny_budget(count, token_budget_selection="spread").keep(relevance)
    assert (kept.sum(-1) == min(count, patches)).all()
    if count < patches and 0 < contrast < 40:  # without contrast, and where relevance underflows, sums hit halves
        for row in range(3):
            assert kept[row].nonzero().flatten().tolist() == spread_by_hand(relevance[row].tolist(), count)


def test_spread_keeps_the_only_relevant_patches_first() -> None:
    relevance = torch.zeros(1, 16)
    relevance[0, [4, 9, 12]] = torch.tensor([0.5, 0.3, 0.2])
    kept = tiny_budget(8, token_budget_selection="spread").keep(relevance)[0]
    assert kept[[4, 9, 12]].all() and kept.sum() == 8


def test_spread_keeps_equal_patches_at_equal_distances() -> None:
    kept = tiny_budget(16, token_budget_selection="spread").keep(torch.full((1, 64), 1 / 64))[0]
    assert (kept.nonzero().flatten().diff() == 4).all()


def test_adaptive_spread_keeps_as_many_patches_as_reach_the_mass() -> None:
    relevance = (3 * torch.randn(50, 30)).softmax(-1)
    top, spread = (
        tiny_budget([2, 20], token_budget_mass=0.8, token_budget_selection=selection).keep(relevance)
        for selection in ("top", "spread")
    )
    assert torch.equal(top.sum(-1), spread.sum(-1)) and not torch.equal(top, spread)
    assert top.sum(-1).unique().numel() > 3
    assert (relevance * spread).sum() > 1.5 * (relevance * ~spread).sum()


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_adaptive_budget_keeps_the_fewest_patches_that_reach_the_mass(data: st.DataObject) -> None:
    patches = data.draw(st.integers(2, 30))
    fewest = data.draw(st.integers(1, patches))
    most = data.draw(st.integers(fewest, 40))
    mass = data.draw(st.sampled_from([0.3, 0.55, 0.9]))
    scores = data.draw(st.lists(st.integers(0, 30), min_size=patches, max_size=patches))
    relevance = (torch.tensor([scores]).float() / 7).softmax(-1)
    kept = tiny_budget([fewest, most], token_budget_mass=mass).keep(relevance)[0]
    total, count = 0.0, 0
    for probability in sorted(relevance[0].tolist(), reverse=True):
        if total >= mass - 1e-6:
            break
        total, count = total + probability, count + 1
    assert abs(int(kept.sum()) - min(max(count, fewest), most, patches)) <= (1 if abs(total - mass) < 1e-5 else 0)
    assert relevance[0][kept].min() >= (relevance[0][~kept].max() if (~kept).any() else 0)


@pytest.mark.parametrize("vision", PREFIX_TOKENS)
def test_prefix_and_kept_patches_pass_unchanged_in_raster_order(vision: str) -> None:
    model, seen = budget_model(vision), []
    budget = model.qca.vision_encoder.budget
    drop = budget.drop
    budget.drop = lambda *args: seen.append((args, drop(*args))) or seen[-1][1]
    output = model(**tiny_batch(questions=3, images=2))
    (tokens, prefix, relevance), (short, mask, positions) = seen[0]
    assert prefix == PREFIX_TOKENS[vision] and mask is None and short.shape[1] == prefix + 5 + 1
    assert torch.equal(short[:, :prefix], tokens[:, :prefix])
    for row in range(3):
        best = sorted(relevance[row].argsort(descending=True)[:5].tolist())
        assert positions[row].tolist() == best == output.patch_mask[row].nonzero().flatten().tolist()
        assert torch.equal(short[row, prefix:-1], tokens[row, prefix:][best])


def test_one_token_is_the_relevance_weighted_mean_of_the_dropped_patches() -> None:
    tokens, relevance = torch.randn(2, 1 + 6, 32), torch.rand(2, 6).softmax(-1)
    short, _, positions = tiny_budget(2).drop(tokens, 1, relevance)
    for row in range(2):
        dropped = [patch for patch in range(6) if patch not in positions[row].tolist()]
        weights = relevance[row, dropped] / relevance[row, dropped].sum()
        expected = sum(w * tokens[row, 1 + patch] for w, patch in zip(weights, dropped, strict=True))
        torch.testing.assert_close(short[row, -1], expected)


SHAPES = [("vit", *shape) for shape in product((1, 5, 14, [2, 12]), ("eager", "sdpa"), ((32, 32), (24, 40)))] + [
    (vision, 5, "sdpa", (24, 40)) for vision in LAYOUT_CONFIGS if vision not in ("vit", "dinov3_vit")
]
SHAPES += [("dinov3_vit", token_budget, "sdpa", (24, 40)) for token_budget in (1, 5, [2, 12])]


@pytest.mark.parametrize(("vision", "token_budget", "attention", "size"), SHAPES)
def test_gathering_the_kept_patches_equals_masking_the_dropped_ones(vision, token_budget, attention, size) -> None:
    """Logits, maps and the scorer's gradients, in training and inference."""
    model = budget_model(vision, token_budget=token_budget, token_budget_mass=0.6, attention=attention)
    batch = tiny_batch(size=size)
    masking = budget_model(vision, token_budget=token_budget, token_budget_mass=0.6, attention=attention)
    if vision == "dinov3_vit":  # it draws positions in training
        for encoder in (model, masking):
            encoder.qca.vision_encoder.backbone.config.pos_embed_rescale = None
    masking.qca.vision_encoder = MaskingEncoder(masking.qca.vision_encoder)
    for training in (False, True):
        gathered, masked = model.train(training)(**batch, labels=LABELS), masking(**batch, labels=LABELS)
        assert torch.equal(gathered.patch_mask, masked.patch_mask)
        torch.testing.assert_close(gathered.logits, masked.logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(gathered.relevance, masked.relevance, atol=1e-5, rtol=1e-5)
        for outputs in (gathered, masked):
            outputs.loss.backward()
        gradient = model.qca.vision_encoder.budget.q_proj.weight.grad
        assert gradient.abs().amax() > 1e-4
        torch.testing.assert_close(
            gradient, masking.qca.vision_encoder.budget.q_proj.weight.grad, atol=1e-5, rtol=1e-3
        )


def test_learned_relevance_gets_a_straight_through_gradient() -> None:
    """By hand for three patches x of which one is kept: with outputs weighted by g, the kept patch's relevance r has
    the gradient <x, g> / r, that of a dropped one <x - merged, g of the merged token> / dropped mass."""
    tokens = torch.tensor([[[9.0, 9.0], [1.0, 2.0], [3.0, -1.0], [0.5, 4.0]]])
    relevance = torch.tensor([[0.2, 0.5, 0.3]], requires_grad=True)
    weights = torch.tensor([[5.0, 5.0], [1.0, -2.0], [0.3, 0.7]])  # for CLS, the kept patch, the merged token
    short, _, positions = tiny_budget(1).drop(tokens, 1, relevance)
    assert positions.tolist() == [[1]]
    (short[0] * weights).sum().backward()
    merged = (0.2 * tokens[0, 1] + 0.3 * tokens[0, 3]) / 0.5
    expected = [
        (tokens[0, 1] - merged) @ weights[2] / 0.5,
        tokens[0, 2] @ weights[1] / 0.5,
        (tokens[0, 3] - merged) @ weights[2] / 0.5,
    ]
    torch.testing.assert_close(relevance.grad[0], torch.stack(expected))
    torch.testing.assert_close(short[0, 1:], torch.stack([tokens[0, 2], merged]))


@pytest.mark.parametrize("selection", ["top", "spread"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_adaptive_budget_does_not_depend_on_batch_mates(attention: str, selection: str) -> None:
    model = budget_model(
        token_budget=[1, 14], token_budget_mass=0.5, token_budget_selection=selection, attention=attention
    )
    batch = tiny_batch(questions=8, images=3)
    with torch.no_grad():
        together = model(**batch)
        counts = together.patch_mask.sum(-1)
        assert counts.unique().numel() > 2
        for row in range(8):
            alone = {name: batch[name][row : row + 1] for name in ("input_ids", "attention_mask", "token_type_ids")}
            image = batch["image_index"][row]
            output = model(**alone, pixel_values=batch["pixel_values"][image : image + 1])
            assert torch.equal(output.patch_mask[0], together.patch_mask[row])
            torch.testing.assert_close(output.logits[0], together.logits[row], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(output.relevance[0], together.relevance[row], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("vision", VISION_CONFIGS)
@pytest.mark.parametrize("token_budget", [5, [2, 9]])
def test_eager_and_sdpa_agree(token_budget, vision: str) -> None:
    outputs = []
    for attention in ("eager", "sdpa"):
        model = budget_model(vision, token_budget=token_budget, token_budget_mass=0.6, attention=attention)
        with torch.no_grad():
            outputs.append(model(**tiny_batch(size=(40, 24))))
    assert torch.equal(outputs[0].patch_mask, outputs[1].patch_mask)
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("token_budget", [5, [2, 9]])
def test_relevance_is_on_the_full_grid_and_zero_for_dropped_patches(token_budget) -> None:
    model = budget_model(token_budget=token_budget, token_budget_mass=0.6, num_attention_layers=3)
    output = model(**tiny_batch(size=(24, 40)))
    assert output.relevance.shape == (3, 3, 4, 15) and output.grid == (3, 5)
    dropped = ~output.patch_mask[:, None, None].expand_as(output.relevance)
    assert not output.relevance[dropped].any() and (output.relevance[~dropped] > 0).all()
    torch.testing.assert_close(output.relevance.sum(-1), torch.ones(3, 3, 4))
    torch.testing.assert_close(output.budget_relevance.sum(-1), torch.ones(3))


def test_target_relevance_supervises_the_learned_budget() -> None:
    model = budget_model().train()
    target = torch.zeros(3, 16)
    target[torch.arange(3), torch.tensor([2, 7, 11])] = 4.0
    output = model(**tiny_batch(), labels=LABELS, target_relevance=target)
    chosen = output.budget_relevance[torch.arange(3), torch.tensor([2, 7, 11])]
    hops = output.relevance[:, -1].mean(1)[target > 0]
    reachable = output.patch_mask[target > 0]
    expected = -chosen.log().mean() - (hops[reachable].log().sum() / reachable.sum().clamp(min=1))
    torch.testing.assert_close(output.relevance_loss, expected)
    assert chosen.mean() < 0.3 and not reachable.all()
    optimizer = torch.optim.AdamW(model.qca.vision_encoder.budget.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        model(**tiny_batch(), labels=LABELS, target_relevance=target).relevance_loss.backward()
        optimizer.step()
    output = model(**tiny_batch())
    assert output.budget_relevance[target > 0].mean() > 0.7 and output.patch_mask[target > 0].all()


def test_random_budget_follows_the_seed_and_is_uniform() -> None:
    model = budget_model(token_budget_scorer="random")
    batch = tiny_batch(questions=3, images=1)
    masks = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        masks.append(model(**batch).patch_mask)
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[0][0], masks[0][1])
    budget = model.qca.vision_encoder.budget
    torch.manual_seed(0)
    relevance = budget(torch.zeros(4000, 1 + 16, 32), 1, torch.zeros(4000, 32), layer=None)
    torch.testing.assert_close(budget.keep(relevance).float().mean(0), torch.full((16,), 5 / 16), atol=0.03, rtol=0)


@pytest.mark.parametrize("vision", PREFIX_TOKENS)
def test_cls_attention_equals_the_attention_of_the_next_layer(vision: str) -> None:
    model = budget_model(vision, token_budget=16, token_budget_scorer="cls_attention", attention="eager")
    output = model(**tiny_batch(questions=2, images=2), output_attentions=True)
    row = output.vision_attentions[1][:, :, 0].mean(1)[:, PREFIX_TOKENS[vision] :]  # [B, H, S, S] -> [B, N]
    torch.testing.assert_close(output.budget_relevance, row / row.sum(-1, keepdim=True))
    other = tiny_batch(questions=2, images=2) | {"input_ids": tiny_batch(questions=2, images=2, seed=1)["input_ids"]}
    assert torch.equal(output.budget_relevance, model(**other).budget_relevance), "whatever the question"


def test_recorded_layers_behind_the_budget_have_fewer_tokens() -> None:
    model = budget_model(attention="eager")
    output = model(**tiny_batch(), output_hidden_states=True, output_attentions=True)
    assert [states.shape[:2] for states in output.vision_hidden_states] == [(2, 17), (2, 17), (3, 7), (3, 7)]
    assert [weights.shape for weights in output.vision_attentions] == [(2, 4, 17, 17), (3, 4, 7, 7), (3, 4, 7, 7)]


def test_bfloat16_keeps_exactly_k() -> None:
    model = budget_model().to(torch.bfloat16)
    output = model(**tiny_batch())
    assert (output.patch_mask.sum(-1) == 5).all() and output.logits.isfinite().all()


def test_fixed_budget_exports_with_any_number_of_questions() -> None:
    model = budget_model(token_budget_selection="spread")
    batch, other = tiny_batch(questions=3, images=2), tiny_batch(questions=4, images=3, seed=1)
    questions, images = torch.export.Dim("questions", min=2, max=64), torch.export.Dim("images", min=2, max=64)
    shapes = {name: {0: images if name == "pixel_values" else questions} for name in batch}
    program = torch.export.export(model, (), kwargs=batch, dynamic_shapes=shapes, strict=False).module()
    with torch.no_grad():
        for inputs in (batch, other):
            exported, own = program(**inputs), model(**inputs)
            torch.testing.assert_close(exported.logits, own.logits, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(exported.relevance, own.relevance, atol=1e-5, rtol=1e-5)


@pytest.mark.slow  # compiles
@pytest.mark.parametrize(
    ("fields", "one_graph"),
    [
        ({"vision_conditioning_layers": "late"}, True),
        ({}, True),
        ({"token_budget": [2, 9]}, False),
    ],
    ids=["fixed with conditioning", "fixed", "adaptive"],
)
def test_compiled_model_gives_equal_outputs(fields, one_graph: bool) -> None:
    """An adaptive budget looks at how many patches it keeps, which breaks the graph once."""
    model, batch = budget_model(**fields), tiny_batch(size=(24, 40))
    compiled = torch.compile(model, backend="eager", fullgraph=one_graph)
    with torch.no_grad():
        torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits)
