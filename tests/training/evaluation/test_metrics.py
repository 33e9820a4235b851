"""The `evaluate` modules, loaded by path, against hand-computed cases, loops, scipy and scikit-learn."""

import importlib
import shutil
from functools import cache
from pathlib import Path

import datasets
import evaluate
import numpy as np
import pytest
from helpers.wordnet import write_wordnet
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from nltk.corpus.reader import WordNetCorpusReader
from nltk.corpus.util import LazyCorpusLoader
from scipy import stats
from sklearn import metrics

from modeling_qca.training.evaluation.answer_metrics import compute_metrics

METRICS = Path(__file__).parents[3] / "training" / "metrics"


@cache
def load(name: str):
    metric = evaluate.load(str(METRICS / name))
    return metric, importlib.import_module(type(metric).__module__)


@pytest.mark.parametrize("name", ["vqa_accuracy", "wups", "attention_quality"])
def test_each_metric_loads_by_path_and_has_a_card(name):
    metric, _ = load(name)
    assert metric.description and metric.citation and metric.inputs_description
    assert (METRICS / name / "README.md").read_text().startswith("---\ntitle:")


# VQA accuracy


def human(**counts: int) -> list[dict]:
    return [{"answer": answer, "count": count} for answer, count in counts.items()]


def test_vqa_accuracy_matches_hand_computed_values_per_type():
    metric, _ = load("vqa_accuracy")
    result = metric.compute(
        predictions=["Yes", "two", "dog", "a cat"],
        references=[human(yes=8, no=2), human(**{"2": 3, "3": 7}), human(cat=10), human(cat=1, dog=9)],
        question_types=["is", "how many", "what", "what"],
        answer_types=["yes/no", "number", "other", "other"],
    )
    # yes: 8 of 10 -> 1; two: 3 of 10 -> 0.9; dog: none -> 0; cat: 1 of 10 -> 0.3
    assert result["accuracy"] == pytest.approx((1 + 0.9 + 0 + 0.3) / 4)
    assert result["per_answer_type"] == pytest.approx({"yes/no": 1, "number": 0.9, "other": 0.15})
    assert result["per_question_type"] == pytest.approx({"is": 1, "how many": 0.9, "what": 0.15})


def test_normalizes_only_where_annotators_differ():
    metric, _ = load("vqa_accuracy")
    unanimous = {"predictions": ["Two"], "references": [human(**{"2": 10})]}
    assert metric.compute(**unanimous)["accuracy"] == 0
    assert metric.compute(**unanimous, always_normalize=True)["accuracy"] == 1


def test_answer_types_default_to_the_majority_answer():
    metric, _ = load("vqa_accuracy")
    result = metric.compute(predictions=["no", "4"], references=[human(yes=10), human(**{"4": 10})])
    assert result["per_answer_type"] == {"number": 1, "yes/no": 0}
    assert "per_question_type" not in result


def test_refuses_a_question_without_answers():
    _, module = load("vqa_accuracy")
    with pytest.raises(ValueError, match="without human answers"):
        module.question_accuracy("yes", [])


# WUPS


@pytest.fixture
def wups(tmp_path, monkeypatch):
    """The metric with the small database in place of an installed WordNet."""
    write_wordnet(tmp_path / "corpora" / "wordnet")
    metric, module = load("wups")
    monkeypatch.setattr("nltk.data.path", [str(tmp_path)])
    monkeypatch.setattr(module, "wordnet", LazyCorpusLoader("wordnet", WordNetCorpusReader, None))
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path / "nothing"))
    clear_caches(module)
    yield metric, module
    clear_caches(module)


def clear_caches(module) -> None:
    module.load_wordnet.cache_clear()
    module.similarity.cache_clear()


@pytest.mark.filterwarnings("ignore:The multilingual functions")
def test_similarity_matches_the_wu_palmer_formula(wups):
    # 2 * depth(lowest common ancestor) / (depth + depth), with entity at depth 1
    _, module = wups
    assert module.similarity("chair", "table") == pytest.approx(2 * 2 / (3 + 3))
    assert module.similarity("table", "night stand") == pytest.approx(2 * 3 / (3 + 4))
    assert module.similarity("chair", "dog") == pytest.approx(2 * 1 / (3 + 3))
    assert module.similarity("tables", "table") == 1  # by way of the singular
    assert module.similarity("gizmo", "gizmo") == 1
    assert module.similarity("gizmo", "table") == 0


@pytest.mark.filterwarnings("ignore:The multilingual functions")
def test_wups_matches_hand_computed_values(wups):
    metric, _ = wups
    result = metric.compute(
        predictions=[["Chair"], ["table"], ["table", "dog"], ["night_stand"]],
        references=[["chair"], ["chair"], ["dog", "chair"], ["table"]],
    )
    near, nearer = 2 / 3, 6 / 7
    assert result["accuracy"] == 1 / 4
    assert result["wups_0.0"] == pytest.approx((1 + near + near + nearer) / 4)
    assert result["wups_0.9"] == pytest.approx((1 + 0.1 * near + 0.1 * near + 0.1 * nearer) / 4)


@pytest.mark.filterwarnings("ignore:The multilingual functions")
def test_compute_metrics_reports_set_and_first_answer_scores(wups):
    sets = [["chair"], ["chair", "dog"], ["table", "chair"]]
    answers = [[{"answer": name, "count": 1} for name in names] for names in sets]
    rows = datasets.Dataset.from_dict({"answers": answers})
    measured = compute_metrics(["wups"], ["chair", "chair", "chair"], rows)
    dog, table = 2 * 1 / (3 + 3), 2 / 3  # what chair is worth for them
    assert measured["set_accuracy"] == pytest.approx(1 / 3)
    assert measured["wups_0.0"] == pytest.approx((1 + dog + table) / 3)
    assert measured["wups_0.9"] == pytest.approx((1 + 0.1 * dog + 0.1 * table) / 3)
    assert measured["first_answer_accuracy"] == pytest.approx(2 / 3)
    assert measured["first_answer_wups_0.9"] == pytest.approx((2 + 0.1 * table) / 3)


@pytest.mark.filterwarnings("ignore:The multilingual functions")
def test_set_score_is_the_smaller_of_both_directions(wups):
    _, module = wups
    # predicted in right: 1; right in predicted: chair 1 times dog's best, 1/3
    assert module.set_score(["chair"], ["chair", "dog"], 0.0) == pytest.approx(1 / 3)
    assert module.set_score([], ["chair"], 0.0) == 0
    assert module.set_score([], [], 0.0) == 1


def test_missing_wordnet_error_names_the_install_commands(wups, tmp_path):
    metric, _ = wups
    shutil.rmtree(tmp_path / "corpora")
    with pytest.raises(ImportError, match=r"(?s)nltk\.download\('wordnet'\).*apt-get install wordnet-base"):
        metric.compute(predictions=[["chair"]], references=[["table"]])


def test_reads_the_system_wordnet_where_nltk_has_none(wups, tmp_path, monkeypatch):
    _, module = wups
    system = (tmp_path / "corpora" / "wordnet").rename(tmp_path / "dict")
    for absent in ("lexnames", "index.sense"):  # as Debian has it
        (system / absent).unlink()
    monkeypatch.setenv("WNSEARCHDIR", str(system))
    assert module.similarity("table", "night stand") == pytest.approx(2 * 3 / (3 + 4))


@pytest.mark.filterwarnings("ignore:The multilingual functions")
@pytest.mark.parametrize(
    ("first", "second", "published"),
    [("curtain", "blinds", 0.94), ("carton", "box", 0.94), ("stove", "fire extinguisher", 0.82)],
)
def test_similarity_matches_the_published_values(wups, first, second, published):
    """Malinowski and Fritz, NIPS 2014; the database holds the chains of WordNet 3.0 for these words."""
    _, module = wups
    assert module.similarity(first, second) == pytest.approx(published, abs=0.005)


# Attention quality

# Values far apart or equal, so that ties happen and float error does not decide an order.
LEVELS = st.integers(0, 6).map(lambda level: level / 4)


@st.composite
def map_pairs(draw):
    shape = draw(st.tuples(st.integers(1, 3), st.integers(2, 4), st.integers(2, 4)))
    predicted = draw(arrays(np.float64, shape, elements=LEVELS))
    target = draw(arrays(np.float64, shape, elements=LEVELS))
    target[:, 0, 0] += 1
    return predicted, target


def inside_of(target):
    return target >= 0.5 * target.max()


@settings(max_examples=60, deadline=None)
@given(map_pairs())
def test_attention_quality_matches_scipy_scikit_learn_and_loops(pair):
    _, module = load("attention_quality")
    measured = module.attention_quality(*pair)
    for index, (predicted, target) in enumerate(zip(*(maps.reshape(len(maps), -1) for maps in pair), strict=True)):
        got = {name: values[index] for name, values in measured.items()}
        inside = inside_of(target)
        p = predicted / predicted.sum() if predicted.any() else np.full(len(predicted), 1 / len(predicted))
        t = target / target.sum()
        assert got["sim"] == pytest.approx(sum(min(a, b) for a, b in zip(p, t, strict=True)))
        assert got["energy"] == pytest.approx(sum(a for a, hit in zip(p, inside, strict=True) if hit))
        highest = [hit for value, hit in zip(predicted, inside, strict=True) if value == predicted.max()]
        assert got["pointing"] == pytest.approx(sum(highest) / len(highest))
        if (p > 0).all():
            assert got["kl"] == pytest.approx(stats.entropy(t, p), abs=1e-9)
        if np.ptp(predicted) and np.ptp(target):
            assert got["spearman"] == pytest.approx(stats.spearmanr(predicted, target)[0])
            assert got["cc"] == pytest.approx(stats.pearsonr(predicted, target)[0])
        else:
            assert got["spearman"] == got["cc"] == 0
        z = stats.zscore(predicted) if np.ptp(predicted) else np.zeros(len(predicted))
        assert got["nss"] == pytest.approx(np.mean([a for a, hit in zip(z, inside, strict=True) if hit]), abs=1e-9)
        assert got["auc_judd"] == pytest.approx(judd(predicted, inside))
        assert got["iou"] == pytest.approx(expected_iou(predicted, inside))


def judd(predicted, inside) -> float:
    """Area under scikit-learn's ROC curve with only the thresholds that occur inside the target."""
    if inside.all():
        return 0.5
    alarms, hits, thresholds = metrics.roc_curve(inside, predicted, drop_intermediate=False)
    keep = np.isin(thresholds, predicted[inside])
    return metrics.auc([0, *alarms[keep], 1], [0, *hits[keep], 1])


def expected_iou(predicted, inside) -> float:
    """Of the target with as many of the highest cells, the last of them drawn from those that tie."""
    area = inside.sum()
    last = sorted(predicted, reverse=True)[area - 1]
    above, tied = predicted > last, predicted == last
    drawn = stats.hypergeom.stats(tied.sum(), (tied & inside).sum(), area - above.sum(), moments="m")
    intersection = (above & inside).sum() + drawn
    return intersection / (2 * area - intersection)


def test_target_scores_perfectly_and_flat_map_scores_chance():
    metric, _ = load("attention_quality")
    target = np.zeros((1, 4, 4))
    target[0, :2, :2] = 1
    perfect = metric.compute(predictions=target, references=target)
    for name in ("iou", "spearman", "pointing", "auc_judd", "cc", "sim", "energy"):
        assert perfect[name] == pytest.approx(1), name
    assert perfect["kl"] == pytest.approx(0, abs=1e-9)
    assert perfect["nss"] == pytest.approx(np.sqrt(3))  # (1 - 1/4) / sqrt(1/4 * 3/4)
    flat = perfect["uniform"]
    assert [flat[name] for name in ("pointing", "energy", "auc_judd", "nss", "cc", "spearman")] == pytest.approx(
        [0.25, 0.25, 0.5, 0, 0, 0]
    )
    assert perfect["shuffled"] is None and perfect["shuffled_maps"] == 0


def test_center_baseline_hits_only_a_central_target():
    metric, _ = load("attention_quality")
    targets = np.zeros((2, 6, 8))
    targets[0, 2:4, 3:5] = 1
    targets[1, 0, 0] = 1
    _, module = load("attention_quality")
    pointing = module.attention_quality(module.center_maps(2, 6, 8), targets)["pointing"]
    assert pointing.tolist() == [1, 0]
    assert metric.compute(predictions=targets, references=targets)["center"]["pointing"] == 0.5


def test_shuffled_baseline_pairs_questions_about_one_image():
    metric, module = load("attention_quality")
    groups = ["a", "b", "a", "c", "b", "b"]
    rows, others = module.shuffled_rows(groups, seed=3)
    assert sorted(rows) == sorted(others) == [0, 1, 2, 4, 5]  # c has one question only
    assert all(groups[row] == groups[other] and row != other for row, other in zip(rows, others, strict=True))
    targets = np.zeros((6, 2, 3))
    for row, target in enumerate(targets):
        target.flat[row] = 1
    result = metric.compute(predictions=targets, references=targets, groups=groups)
    assert result["pointing"] == 1
    assert result["shuffled"]["pointing"] == 0
    assert (result["maps"], result["shuffled_maps"]) == (6, 5)


@pytest.mark.parametrize(
    ("predicted", "target", "message"),
    [
        (np.ones((1, 2, 2)), np.zeros((1, 2, 2)), "reference map 0 is all zero"),
        (np.ones((1, 2, 3)), np.ones((1, 2, 2)), "resize first"),
        (-np.ones((1, 2, 2)), np.ones((1, 2, 2)), "predictions 0 holds a value that is negative"),
        (np.full((1, 2, 2), np.nan), np.ones((1, 2, 2)), "not finite"),
        (np.ones((2, 2)), np.ones((2, 2)), r"must be \[n, rows, columns\]"),
    ],
)
def test_refuses_malformed_maps(predicted, target, message):
    _, module = load("attention_quality")
    with pytest.raises(ValueError, match=message):
        module.attention_quality(predicted, target)
