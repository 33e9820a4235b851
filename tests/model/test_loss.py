"""Answer loss and attention supervision against loops and other libraries."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from helpers.tiny import tiny_batch, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss
from transformers.utils import logging

from modeling_qca import QCAForVisualQuestionAnswering
from modeling_qca.loss_qca import answer_loss, relevance_loss


def probabilities(*shape: int) -> torch.Tensor:
    return torch.randn(shape).softmax(-1)


def test_cross_entropy_ignores_unknown_answers():
    logits, labels = torch.randn(5, 4), torch.tensor([0, -100, 3, 1, -100])
    known = labels != -100
    expected = log_loss(labels[known], logits[known].double().softmax(-1), labels=range(4))
    assert answer_loss(logits, labels, "single_label_classification").item() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(answer_loss(logits, labels, None), answer_loss(logits, labels, "single_label_classification"))


def test_batch_of_unknown_answers_has_zero_loss_and_gradient():
    logits = torch.randn(2, 4, requires_grad=True)
    loss = answer_loss(logits, torch.tensor([-100, -100]), "single_label_classification")
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros(2, 4))


def test_soft_scores_give_binary_cross_entropy_summed_over_answers():
    logits, scores = torch.randn(3, 4), torch.tensor([[0.3, 0.0, 1.0, 0.6], [0.0] * 4, [1.0, 0.9, 0.0, 0.0]])
    expected = 0.0
    for row, targets in zip(logits.tolist(), scores.tolist(), strict=True):
        for logit, target in zip(row, targets, strict=True):
            probability = 1 / (1 + math.exp(-logit))
            expected -= (target * math.log(probability) + (1 - target) * math.log(1 - probability)) / 3
    assert answer_loss(logits, scores, "multi_label_classification").item() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(answer_loss(logits, scores, None), answer_loss(logits, scores, "multi_label_classification"))


def test_losses_are_computed_in_float32_and_do_not_overflow():
    logits = torch.tensor([[6e4, -6e4]], dtype=torch.float16)
    assert answer_loss(logits, torch.tensor([1]), None).item() == pytest.approx(2 * logits[0, 0].item())
    assert answer_loss(logits, torch.tensor([[0.0, 1.0]]), None).item() == pytest.approx(2 * logits[0, 0].item())


@pytest.mark.parametrize(
    ("labels", "problem_type", "message"),
    [
        (torch.zeros(2, dtype=torch.long), "multi_label_classification", r"shape \(2, 4\), got \(2,\)"),
        (torch.zeros(2, 3), "multi_label_classification", r"shape \(2, 4\), got \(2, 3\)"),
        (torch.zeros(2, 4), "single_label_classification", r"shape \(2,\), got \(2, 4\)"),
        (torch.zeros(3, dtype=torch.long), None, r"shape \(2,\), got \(3,\)"),
        (torch.zeros(2), "regression", "is 'regression'"),
        (torch.tensor([0, 4]), "single_label_classification", r"question 1 is 4.*4 answers"),
        (torch.tensor([-1, 0]), "single_label_classification", r"question 0 is -1.*-100"),
    ],
)
def test_names_labels_that_do_not_fit(labels, problem_type, message):
    with pytest.raises(ValueError, match=message):
        answer_loss(torch.zeros(2, 4), labels, problem_type)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 6), st.floats(0.1, 100.0), st.integers(0, 99))
def test_relevance_loss_is_the_kl_divergence_to_the_normalized_target(questions, hops, patches, scale, seed):
    torch.manual_seed(seed)
    relevance, target = probabilities(questions, hops, patches), torch.rand(questions, hops, patches)
    target[torch.rand(questions, hops, patches) < 0.3] = 0.0  # patches outside the object
    expected = [
        scipy.stats.entropy(target[b, t].double(), relevance[b, t].double())  # normalizes both, in nats
        for b in range(questions)
        for t in range(hops)
        if target[b, t].sum() > 0
    ]
    loss = relevance_loss(relevance, scale * target).item()
    assert loss == pytest.approx(np.mean(expected) if expected else 0.0, rel=1e-3, abs=1e-5)
    assert loss >= -1e-6


def test_single_target_supervises_the_last_hop():
    relevance, target = probabilities(2, 3, 5).requires_grad_(), probabilities(2, 5)
    loss = relevance_loss(relevance, target)
    assert loss.allclose(relevance_loss(relevance[:, 2:], target[:, None]))
    loss.backward()
    assert not relevance.grad[:, :2].any()
    assert relevance.grad[:, 2].any()


def test_rows_without_target_are_ignored():
    relevance, target = probabilities(3, 2, 5), probabilities(3, 2, 5)
    target[0], target[1, 1] = 0.0, 0.0
    expected = [scipy.stats.entropy(target[b, t], relevance[b, t]) for b, t in [(1, 0), (2, 0), (2, 1)]]
    assert relevance_loss(relevance, target).item() == pytest.approx(np.mean(expected), rel=1e-4)
    assert relevance_loss(relevance, torch.zeros(3, 5)).item() == 0.0


def test_target_is_renormalized_over_the_kept_patches():
    mask = torch.tensor([[True, True, False], [False, True, False]])
    relevance = torch.tensor([[[0.5, 0.5, 0.0]], [[0.0, 1.0, 0.0]]])
    target = torch.tensor([[1.0, 3.0, 4.0], [1.0, 0.0, 1.0]])  # the second lies on dropped patches alone
    expected = scipy.stats.entropy([0.25, 0.75], [0.5, 0.5])
    assert relevance_loss(relevance, target, mask).item() == pytest.approx(expected, rel=1e-5)


def test_loss_and_gradient_are_finite_for_zero_relevance():
    scores = torch.tensor([[[200.0, 0.0, 0.0]]], requires_grad=True)
    loss = relevance_loss(scores.softmax(-1), torch.tensor([[0.0, 1.0, 0.0]]))
    loss.backward()
    assert 50 < loss.item() < 100
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(2, 4), (2, 2, 5), (3, 5), (5,)])
def test_refuses_target_relevance_of_another_shape(shape):
    with pytest.raises(ValueError, match="target_relevance"):
        relevance_loss(probabilities(2, 3, 5), torch.ones(shape))


@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification"])
def test_loss_is_the_weighted_sum_of_its_parts(problem_type):
    model = tiny_model(problem_type=problem_type, relevance_loss_weight=0.3)
    several = problem_type == "multi_label_classification"
    labels = torch.rand(3, 5) if several else torch.tensor([0, 4, -100])
    target = torch.rand(3, 2, 16)
    outputs = model(**tiny_batch(), labels=labels, target_relevance=target)
    assert outputs.answer_loss.allclose(answer_loss(outputs.logits, labels, problem_type))
    assert outputs.relevance_loss.allclose(relevance_loss(outputs.relevance.mean(2), target))
    assert outputs.loss.allclose(outputs.answer_loss + 0.3 * outputs.relevance_loss)


def test_without_labels_there_is_no_loss():
    model, batch = tiny_model(), tiny_batch()
    assert {"loss", "answer_loss", "relevance_loss"}.isdisjoint(model(**batch).keys())
    answered = model(**batch, labels=torch.tensor([0, 1, 2]))
    assert torch.equal(answered.loss, answered.answer_loss)
    assert answered.relevance_loss is None


def test_soft_scores_set_the_problem_type_of_the_config():
    """Or a saved one would read its scores as those of one answer."""
    model, batch = tiny_model(problem_type=None), tiny_batch()
    model(**batch, labels=torch.tensor([0, 1, 2]))
    assert model.config.problem_type is None
    model(**batch, labels=torch.rand(3, 5))
    assert model.config.problem_type is None  # a measured loss changes no model
    with pytest.raises(ValueError):
        model.train()(**batch, labels=torch.rand(3))
    assert model.config.problem_type is None  # nor do labels of a wrong shape
    model(**batch, labels=torch.rand(3, 5))
    assert model.config.problem_type == "multi_label_classification"


def test_soft_scores_for_an_adapter_say_that_it_does_not_keep_the_problem_type(monkeypatch, tmp_path):
    warnings = []
    monkeypatch.setattr(logging.get_logger("modeling_qca.loss_qca"), "warning_once", warnings.append)
    peft = pytest.importorskip("peft")
    base = tiny_model(problem_type=None)
    base.save_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["classifier"]))
    adapted.train()(**tiny_batch(), labels=torch.rand(3, 5))
    assert len(warnings) == 1 and 'load its base model with `problem_type="multi_label_classification"`' in warnings[0]
    adapted.save_pretrained(tmp_path / "adapter")
    fields = {"problem_type": "multi_label_classification"}
    loaded = QCAForVisualQuestionAnswering.from_pretrained(tmp_path / "base", **fields)
    read = peft.PeftModel.from_pretrained(loaded, tmp_path / "adapter").eval()
    outputs = adapted.eval()(**tiny_batch())
    torch.testing.assert_close(read(**tiny_batch()).logits, outputs.logits)
    assert read.config.problem_type == adapted.config.problem_type


def test_an_adapted_model_with_soft_scores_compiles_in_one_graph():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj"])
    adapted = peft.get_peft_model(tiny_model(problem_type=None), config).train()
    labels = torch.rand(3, 5)
    compiled = torch.compile(adapted, backend="eager", fullgraph=True)(**tiny_batch(), labels=labels)
    assert torch.isfinite(compiled.loss)


def test_labels_may_be_on_another_device():
    """As where several devices share a model, whose inputs go to the first and whose logits come from the last."""
    logits, maps = torch.empty(2, 4, device="meta"), torch.empty(2, 3, 16, device="meta")
    assert answer_loss(logits, torch.rand(2, 4), "multi_label_classification").device.type == "meta"
    assert relevance_loss(maps, torch.rand(2, 16), torch.ones(2, 16).bool()).device.type == "meta"


def test_relevance_loss_alone_trains_the_relevance():
    outputs = tiny_model(relevance_loss_weight=2.0)(**tiny_batch(), target_relevance=torch.rand(3, 16))
    assert outputs.answer_loss is None
    assert outputs.loss.allclose(2.0 * outputs.relevance_loss)
