"""Answer vocabularies on rows that can be counted by hand."""

from collections import Counter

import pytest

from modeling_qca import QCAConfig
from modeling_qca.training.data.rows import load_rows
from modeling_qca.training.data.vocabulary import build_vocabulary, merged_answers, store_vocabulary, vocabulary_reach
from modeling_qca.training.supervision.scenes import write_scenes


def row(**counts: int) -> list[dict]:
    return [{"answer": answer, "count": count} for answer, count in counts.items()]


# Majority answers: yes, yes, no, 2 (as "two"), red.
ROWS = [row(yes=9, no=1), row(Yes=6, no=4), row(no=10), row(two=7, three=3), row(red=10)]


def test_minimum_count_applies_to_normalized_majority_answers():
    assert build_vocabulary(ROWS, minimum_count=2) == ["yes"]
    assert build_vocabulary(ROWS, minimum_count=1) == ["yes", "2", "no", "red"]


def test_top_k_breaks_ties_alphabetically():
    assert build_vocabulary(ROWS, top_k=3) == ["yes", "2", "no"]


def test_keeps_answers_as_written_without_normalization():
    sets = [row(night_stand=1, lamp=1), row(lamp=1)]
    assert build_vocabulary(sets, rule="set", normalize=False) == ["lamp", "night_stand"]


def test_keeps_answers_that_normalization_would_empty(caplog):
    rows = [row(**{letter: 1}) for letter in "ABCDA"]
    assert build_vocabulary(rows) == ["a", "b", "c", "d"]
    assert vocabulary_reach(rows, ["A", "B", "C", "D"])["oracle_ceiling"] == 1
    assert not caplog.text


def test_warns_of_answers_of_different_meaning_that_merge(caplog):
    rows = [row(**{answer: 1}) for answer in ("-5", "5", "<3", ">3", "1/2", "1-2", "yes", "Yes.", "black-white")]
    assert merged_answers(rows) == {"5": ["-5", "5"], "3": ["<3", ">3"], "1 2": ["1-2", "1/2"]}
    assert len(build_vocabulary(rows)) == 5
    assert "merges 3 answers" in caplog.text and "'-5' and '5' are '5'" in caplog.text
    assert "-5" in build_vocabulary(rows, normalize=False)


def test_reach_compares_raw_labels_after_normalization():
    assert vocabulary_reach([row(**{"The Sun": 10})], ["The Sun", "T-shirt"])["coverage"] == 1


def test_reach_reports_coverage_and_oracle_ceiling():
    reach = vocabulary_reach(ROWS, ["yes", "3"])
    # yes is right in row 0 (1.0), in row 1 (1.0); "3" in row 3 was given by three of ten (0.9).
    assert reach == {"rows": 5, "coverage": pytest.approx(3 / 5), "oracle_ceiling": pytest.approx(2.9 / 5)}


def test_store_vocabulary_writes_the_config_and_returns_reach(tmp_path, caplog):
    write_scenes(tmp_path / "data", {"train": 4}, seed=0)
    QCAConfig().save_pretrained(tmp_path)
    counted = Counter(row["answers"][0]["answer"] for row in load_rows(tmp_path / "data"))
    most = sorted(counted, key=lambda answer: (-counted[answer], answer))[:2]
    reach = store_vocabulary(str(tmp_path / "data"), tmp_path, None, 2, {})
    config = QCAConfig.from_pretrained(tmp_path)
    assert config.id2label == dict(enumerate(most)) and config.label2id == {most[0]: 0, most[1]: 1}
    share = sum(counted[answer] for answer in most) / counted.total()
    assert reach == {"train": {"rows": counted.total(), "coverage": share, "oracle_ceiling": pytest.approx(share)}}
    assert "no validation.csv" in caplog.text


def test_store_vocabulary_refuses_weights_of_other_answers(tmp_path):
    write_scenes(tmp_path / "data", {"train": 4}, seed=0)
    QCAConfig().save_pretrained(tmp_path)
    store_vocabulary(str(tmp_path / "data"), tmp_path, None, 2, {})
    (tmp_path / "model.safetensors").touch()
    store_vocabulary(str(tmp_path / "data"), tmp_path, None, 2, {})  # the same answers
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(ValueError, match=f"{tmp_path.name}: its weights are trained for other answers than these 3"):
        store_vocabulary(str(tmp_path / "data"), tmp_path, None, 3, {})
    assert (tmp_path / "config.json").read_text() == before


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"minimum_count": 9}, "most frequent answer occurs 2 times"),
        ({"minimum_count": 1, "top_k": 1}, "not both"),
        ({"top_k": 0}, "at least 1, not 0"),
        ({"minimum_count": "a"}, "at least 1, not 'a'"),
    ],
)
def test_refuses_malformed_limits(limits, message):
    with pytest.raises(ValueError, match=message):
        build_vocabulary(ROWS, **limits)


def test_reach_refuses_no_rows():
    with pytest.raises(ValueError, match="no rows"):
        vocabulary_reach([], ["yes"])
