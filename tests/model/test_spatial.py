"""The product of the query and of where the hops looked, against a loop, and what it lets a model answer."""

import numpy as np
import pytest
import torch
from helpers.tiny import tiny_batch, tiny_config, tiny_model
from torch import nn

from modeling_qca import QCAModel
from modeling_qca.boxes_qca import grid_boxes
from modeling_qca.spatial_qca import SpatialFusion
from modeling_qca.training.fitting.parameter_groups import group_of

WIDTH, HOPS, HEADS, GRID = 32, 2, 4, (3, 5)
PATCHES = GRID[0] * GRID[1]


def build(hops: int = HOPS) -> SpatialFusion:
    torch.manual_seed(0)
    return SpatialFusion(tiny_config(hidden_size=WIDTH, num_attention_heads=HEADS, num_attention_layers=hops))


def boxes(questions: int) -> torch.Tensor:
    return grid_boxes(GRID, torch.device("cpu")).expand(questions, -1, -1)


def affine(layer: nn.Linear, vector: np.ndarray) -> np.ndarray:
    return layer.weight.detach().numpy() @ vector + layer.bias.detach().numpy()


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_spatial_fusion_is_the_product_of_query_and_places(hops):
    module = build(hops).double()
    query = torch.randn(4, WIDTH, dtype=torch.float64)
    relevance = torch.rand(4, hops, HEADS, PATCHES, dtype=torch.float64).softmax(dim=-1)
    given = module(query, relevance, boxes(4)).detach().numpy()
    for question in range(4):
        where = np.zeros((hops, 2))
        for hop in range(hops):
            for patch in range(PATCHES):
                row, column = divmod(patch, GRID[1])
                place = np.array([(row + 0.5) / GRID[0], (column + 0.5) / GRID[1]]) * 2 - 1
                where[hop] += relevance[question, hop, :, patch].mean().item() * place
        steps = [where[hop + 1] - where[hop] for hop in range(hops - 1)]
        places = 4 * np.concatenate([*where, *steps])
        asked = query[question].numpy()
        asked = (asked - asked.mean()) / np.sqrt(asked.var() + 1e-5)
        expected = affine(module.place_proj, places) * affine(module.query_proj, asked)
        np.testing.assert_allclose(given[question], expected, atol=1e-6)  # the boxes are of float32


def accuracy_of_comparisons(reads_places: bool) -> float:
    """After 60 steps, of "is the first hop's place left (or right) of the second's", with evidence of the place."""
    module, head, classifier = build(), nn.Sequential(nn.Linear(2 * WIDTH, WIDTH), nn.GELU()), nn.Linear(WIDTH, 2)
    optimizer = torch.optim.AdamW(nn.ModuleList([module, head, classifier]).parameters(), lr=1e-3)
    left, first = torch.randn(2, WIDTH)

    def logits_and_answers(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        asks_left = torch.randint(2, (count,)).bool()
        query = torch.randn(count, WIDTH) + torch.where(asks_left[:, None], left, -left)
        relevance = (3 * torch.randn(count, HOPS, 1, PATCHES)).expand(-1, -1, HEADS, -1).softmax(dim=-1)
        column = (relevance.mean(dim=2).unflatten(-1, GRID).sum(dim=2) * torch.arange(GRID[1])).sum(dim=-1)
        step = column[:, 1] - column[:, 0]
        evidence = torch.randn(count, WIDTH) + step[:, None] * first / 4
        states = head(torch.cat([evidence, query], dim=-1))
        if reads_places:
            states = states + module(query, relevance, boxes(count))
        return classifier(states), ((step > 0) == asks_left).long()

    for _ in range(60):
        logits, answers = logits_and_answers(64)
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, answers).backward()
        optimizer.step()
    logits, answers = logits_and_answers(2000)
    return (logits.argmax(dim=-1) == answers).float().mean().item()


def test_places_teach_comparisons_sooner_than_evidence():
    assert accuracy_of_comparisons(reads_places=True) > 0.9 > accuracy_of_comparisons(reads_places=False) + 0.1


def test_answers_depend_on_places_only_with_spatial_fusion():
    with_places, without = tiny_model(spatial_fusion=True), tiny_model()
    assert without.spatial_fusion is None
    batch = tiny_batch()
    before = with_places(**batch).logits
    with torch.no_grad():
        with_places.spatial_fusion.place_proj.weight.zero_()
        with_places.spatial_fusion.place_proj.bias.zero_()
    assert not with_places(**batch).logits.allclose(before)


def test_new_projections_keep_the_scale_of_their_input():
    model = tiny_model(spatial_fusion=True, hidden_size=256, initializer_range=0.02)
    assert model.spatial_fusion.query_proj.weight.std().item() == pytest.approx(256**-0.5, rel=0.05)


def test_without_hops_there_are_no_places():
    model = tiny_model(spatial_fusion=True, num_attention_layers=0)
    assert model.spatial_fusion is None
    assert model(**tiny_batch()).logits.isfinite().all()


def test_its_parameters_are_of_the_head():
    names = [name for name, _ in tiny_model(spatial_fusion=True).named_parameters() if "spatial_fusion" in name]
    assert len(names) == 6
    assert {group_of(name) for name in names} == {"head"}


def test_body_of_a_model_with_spatial_fusion_loads_without_a_warning(tmp_path):
    tiny_model(spatial_fusion=True).save_pretrained(tmp_path)
    _, info = QCAModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
