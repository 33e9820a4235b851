"""Tests of `answers_as_text.py`: scores of the heads against plain loops, and a small study from end to end."""

import json
import sys

import numpy as np
import pytest
import torch
import yaml
from studies import answers_as_text
from studies.answers_as_text import HEADS, NEAREST, AnswerEmbeddings, Study, read_recipe

from modeling_qca.training.supervision.scenes import write_scenes

EMBEDDINGS = torch.nn.functional.normalize(torch.randn(5, 6, generator=torch.Generator().manual_seed(0)), dim=-1)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    write_scenes(folder / "scenes", {"train": 12}, seed=0)
    keys = {"data": str(folder / "scenes"), "model": "qca-tiny", "freeze": ["vision", "text"], "num_train_epochs": 1}
    keys |= {"validation_ratio": 0.3, "group_by": "image_id", "question_pooling": "mean", "output_dir": str(folder)}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(keys))
    return folder / "recipe.yaml"


@pytest.mark.parametrize("free", [False, True])
def test_scores_of_answers_equal_the_formula_of_the_head(free):
    torch.manual_seed(0)
    head, states = AnswerEmbeddings(4, EMBEDDINGS[:3], free), torch.randn(2, 4)
    head.embeddings = EMBEDDINGS
    with torch.no_grad():
        scores = head(states)
        for row, state in enumerate(states):
            for answer, embedding in enumerate(EMBEDDINGS):
                expected = state @ (head.project.weight @ embedding) + (head.bias.weight @ embedding).item()
                if free and answer < 3:
                    expected += state @ head.free.weight[answer] + head.free.bias[answer]
                assert scores[row, answer] == pytest.approx(float(expected), abs=1e-5)


def test_no_training_row_has_an_answer_that_is_held_out(recipe, tmp_path):
    study = Study(read_recipe(str(recipe), {}, 0), 0, tmp_path)
    given = {answer["answer"] for row in study.train["answers"] for answer in row}
    assert given == set(study.trained)
    assert study.untrained and not given & set(study.untrained)
    assert study.embeddings[: len(study.trained)].shape[0] == len(given)


def test_rare_and_new_answers_are_counted_apart():
    seed = {
        "question_id": ["a", "b", "c", "d"],
        "image_id": ["1", "1", "2", "2"],
        "question_type": ["open", "closed", "open", "open"],
        "training rows": [9, 5, 0, 0],
        "chance": [0.0, 0.0, 0.5, 0.0],
        "from trained": [1.0, 0.0, 0.0, 0.0],
    }
    chosen = {
        group: answers_as_text._select([seed], group)[0]["question_id"] for group in ("all", "rare", "open", "closed")
    }
    assert chosen == {"all": ["a", "b"], "rare": ["b"], "open": ["a"], "closed": ["b"]}
    assert answers_as_text._new(seed).tolist() == [False, False, True, False]  # the last has no answer


def test_groups_without_questions_have_no_columns():
    scores = {"from trained": 1.0, "from all": 1.0, "from new": 1.0, "chance": 0.0, "training rows": 50}
    seed = {name: [value] for name, value in scores.items()}
    seed |= {"question_id": ["a"], "image_id": ["a"], "question_type": ["open"]}
    runs = {head: [seed] for head in answers_as_text.HEADS + answers_as_text.NEAREST}
    summary = answers_as_text.summarize("rooms", runs, ["open", "closed"])
    assert summary["questions"] == {"all": [1], "open": [1], "closed": [0], "rare": [0], "new": [0]}
    (trained,) = summary["tables"]
    assert trained["columns"] == ["rooms: answers trained on", "all", "open", "all, gain", "open, gain"]
    assert all(len(row) == len(trained["columns"]) for row in trained["rows"])


def test_study_writes_a_row_for_each_head_and_reads_finished_runs(recipe, tmp_path, monkeypatch):
    output = tmp_path / "results.json"
    arguments = [
        "scenes",
        str(recipe),
        str(tmp_path),
        "--seeds",
        "0",
        "--output",
        str(output),
        "--learning_rate",
        "1e-3",
    ]
    monkeypatch.setattr(sys, "argv", ["answers_as_text.py", *arguments])
    answers_as_text.main()
    results = json.loads(output.read_text())
    trained, new = results["tables"]
    assert [row[0] for row in trained["rows"]] == [*HEADS, "both summed, over shuffled"]
    assert [row[0] for row in new["rows"]] == [*HEADS[1:3], *NEAREST, "chance"]
    run = json.loads((tmp_path / "scenes" / "0" / "both_summed.json").read_text())
    known = np.array(run["training rows"]) > 0
    assert trained["rows"][2][1] == f"{np.array(run['from trained'])[known].mean():.3f}"
    monkeypatch.setattr(answers_as_text, "Study", lambda *args: pytest.fail("a finished run was trained again"))
    answers_as_text.main()
    assert json.loads(output.read_text()) == results
