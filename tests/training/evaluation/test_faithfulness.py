"""Deletion and insertion curves, against separate forward passes."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from helpers.tiny import tiny_image, tiny_model, tiny_processor
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import auc

from modeling_qca.training.data.schema import FEATURES
from modeling_qca.training.evaluation.faithfulness import (
    FRACTIONS,
    cls_attention,
    faithfulness_curves,
    measure_faithfulness,
    ranks,
    remove_patches,
)

QUESTIONS = ["what is left", "is there a red cube", "how many", "where is the ball", "what color"]


@pytest.fixture
def rows(tmp_path: Path) -> datasets.Dataset:
    table = []
    for number, question in enumerate(QUESTIONS):
        path = tmp_path / f"{number % 2}.png"
        tiny_image(seed=number % 2, size=(40, 32)).save(path)
        table.append(
            {
                "image": {"path": str(path), "bytes": None},
                "image_id": path.stem,
                "question": question,
                "question_id": str(number),
                "question_type": "",
                "answers": [{"answer": "red", "count": 1}],
                "relevance": None,
            }
        )
    return datasets.Dataset.from_list(table, features=FEATURES)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    patch=st.integers(1, 3),
    extra=st.integers(0, 2),
    seed=st.integers(0, 99),
)
def test_removed_patches_get_the_mean_color_of_their_image(rows, columns, patch, extra, seed):
    generator = torch.Generator().manual_seed(seed)
    extra = min(extra, patch - 1)  # pixels that fill no patch
    pixels = torch.randn(2, 3, rows * patch + extra, columns * patch, generator=generator)
    removed = torch.rand(2, rows * columns, generator=generator) < 0.5
    altered = remove_patches(pixels, removed, (patch, patch))
    for image in range(2):
        for channel in range(3):
            expected = pixels[image, channel].clone()
            for row in range(rows):
                for column in range(columns):
                    if removed[image, row * columns + column]:
                        where = slice(row * patch, (row + 1) * patch), slice(column * patch, (column + 1) * patch)
                        expected[where] = pixels[image, channel].mean()
            torch.testing.assert_close(altered[image, channel], expected)


@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.integers(0, 3), min_size=1, max_size=9), seed=st.integers(0, 99))
def test_ranks_order_by_score_and_break_ties_at_random(values, seed):
    scores = torch.tensor([values, values[::-1]]).float()
    rank = ranks(scores, torch.Generator().manual_seed(seed))
    for row, ranked in zip(scores, rank, strict=True):
        assert sorted(ranked.tolist()) == list(range(len(values)))
        by_rank = row[ranked.argsort()]
        assert (by_rank[:-1] >= by_rank[1:]).all()


def test_ties_are_broken_evenly():
    first = ranks(torch.zeros(2000, 4), torch.Generator().manual_seed(0)).argsort(-1)[:, 0]
    assert torch.bincount(first).min() > 400


@pytest.mark.parametrize(
    ("method", "problem_type"),
    [("relevance", "multi_label_classification"), ("rollout", "single_label_classification")],
)
def test_curves_equal_separate_forward_passes(rows, method, problem_type):
    model, processor, rows = tiny_model(problem_type=problem_type), tiny_processor(), rows.select(range(3))
    results = faithfulness_curves(model, processor, rows, method, batch_size=2, seed=3)
    assert (results["questions"], results["images"], results["fractions"]) == (3, 2, list(FRACTIONS))
    assert set(results["curves"]) == {method, "random", "cls_attention"}
    expected = {name: np.zeros((len(FRACTIONS), 2)) for name in ("deletion", "insertion")}
    for row in rows:
        inputs = processor(images=row["image"], text=row["question"])
        explanation = model.explain(inputs, method)
        best = explanation.relevance[0].mean((0, 1)).argsort(descending=True)
        answer = explanation.logits[0].argmax()
        for index, fraction in enumerate(FRACTIONS):
            count = round(fraction * 16)
            for name, away in (("deletion", best[:count]), ("insertion", best[count:])):
                pixels = inputs["pixel_values"].clone()
                mean = pixels.mean((0, 2, 3))
                for patch in away.tolist():
                    y, x = 8 * (patch // 4), 8 * (patch % 4)
                    pixels[0, :, y : y + 8, x : x + 8] = mean[:, None, None]
                with torch.no_grad():
                    logits = model(**{**inputs, "pixel_values": pixels}).logits[0].double()
                scores = logits.sigmoid() if problem_type.startswith("multi") else logits.softmax(-1)
                expected[name][index] += [float(scores[answer]), float(logits.argmax() == answer)]
    for name, values in expected.items():
        curve = results["curves"][method][name]["positive"]
        np.testing.assert_allclose(curve["probability"], values[:, 0] / 3, atol=1e-5)
        np.testing.assert_allclose(curve["agreement"], values[:, 1] / 3, atol=1e-5)
        area = results["auc"][method][name]["positive"]
        assert area["probability"] == pytest.approx(auc(FRACTIONS, values[:, 0] / 3), abs=1e-5)


def test_insertion_mirrors_deletion_of_the_opposite_order(rows):
    curves = faithfulness_curves(tiny_model(), tiny_processor(), rows, batch_size=5)["curves"]
    for by_order in curves.values():
        for order, opposite in (("positive", "negative"), ("negative", "positive")):
            deletion, insertion = by_order["deletion"][order], by_order["insertion"][opposite]
            for measure in ("probability", "agreement"):
                assert deletion[measure][:4] == pytest.approx(
                    [insertion[measure][FRACTIONS.index(1 - f)] for f in FRACTIONS[:4]], abs=1e-6
                )
        starts = {tuple(by_order["deletion"][order]["probability"][:1]) for order in ("positive", "negative")}
        assert len(starts) == 1
    assert len({curve["deletion"]["positive"]["probability"][0] for curve in curves.values()}) == 1
    assert all(curve["deletion"]["positive"]["agreement"][0] == 1 for curve in curves.values())


def test_patches_that_decide_the_answer_have_the_lowest_deletion_curve(rows, monkeypatch):
    """A relevance that is faithful by construction: the change of the answer when one patch is removed."""
    model, processor = tiny_model(), tiny_processor()
    explain = type(model).explain

    def by_trying(self, inputs, method="relevance", answers=None):
        explanation = explain(self, inputs, method, answers)
        index = inputs.get("image_index", torch.arange(len(inputs["input_ids"])))
        pixels, chosen = inputs["pixel_values"][index], explanation.answers[:, None]
        for patch in range(16):
            removed = torch.zeros(len(pixels), 16, dtype=torch.bool)
            removed[:, patch] = True
            altered = {**inputs, "pixel_values": remove_patches(pixels, removed, (8, 8))}
            altered["image_index"] = torch.arange(len(pixels))
            with torch.no_grad():
                left = self(**altered).logits.softmax(-1).gather(1, chosen)[:, 0]
            explanation.relevance[..., patch] = (1 - left)[:, None, None]
        return explanation

    monkeypatch.setattr(type(model), "explain", by_trying)
    areas = faithfulness_curves(model, processor, rows, batch_size=5)["auc"]
    tried = areas["relevance"]
    for other in ("random", "cls_attention"):
        assert tried["deletion"]["positive"]["probability"] < areas[other]["deletion"]["positive"]["probability"]
        assert tried["insertion"]["positive"]["probability"] > areas[other]["insertion"]["positive"]["probability"]
    assert tried["deletion"]["positive"]["probability"] < tried["deletion"]["negative"]["probability"]


def test_cls_attention_equals_the_vision_encoders_own():
    model, pixels = tiny_model("dinov2_with_registers", vision_conditioning_layers="late"), torch.randn(2, 3, 32, 32)
    attention = cls_attention(model.qca, pixels)
    backbone = model.qca.vision_encoder.backbone
    backbone.set_attn_implementation("eager")
    with torch.no_grad():
        last = backbone(pixels, output_attentions=True).attentions[-1]
    prefix = last.shape[-1] - 16
    assert prefix > 1
    torch.testing.assert_close(attention, last[:, :, 0, prefix:].mean(1))
    assert cls_attention(tiny_model("siglip_vision_model").qca, pixels) is None


def test_encoder_without_cls_token_has_only_the_random_control(rows):
    results = faithfulness_curves(tiny_model("siglip_vision_model"), tiny_processor(), rows)
    assert set(results["curves"]) == {"relevance", "random"}


def test_keeps_training_mode_and_repeats_for_a_seed(rows):
    model, processor = tiny_model().train(), tiny_processor()
    first = faithfulness_curves(model, processor, rows, batch_size=5, seed=1)
    assert model.training
    assert faithfulness_curves(model, processor, rows, batch_size=5, seed=1) == first
    assert (
        faithfulness_curves(model, processor, rows, batch_size=5, seed=2)["curves"]["random"]
        != first["curves"]["random"]
    )


def test_writes_results_and_figure(rows, tmp_path):
    pytest.importorskip("matplotlib", reason="the `figures` extra is not installed")
    results = measure_faithfulness(tiny_model(), tiny_processor(), rows, tmp_path / "out", questions=2)
    assert results["questions"] == 2
    assert json.loads((tmp_path / "out" / "faithfulness.json").read_text()) == results
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"faithfulness.json", "faithfulness.png"}
