"""An adapter that the plain `Trainer` trained: every command answers as the trained model does."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from helpers.data_files import draw
from helpers.tiny import plain_arguments, save_tiny_model, tiny_processor
from peft import LoraConfig, get_peft_model
from qca_cli.main import app
from transformers import Trainer
from typer.testing import CliRunner

from modeling_qca import QCAForVisualQuestionAnswering
from modeling_qca.training import QuestionCollator, load_rows
from modeling_qca.training.evaluation.checkpoint import load_pipeline

QUESTIONS = ("what is the color of the cube", "where is the ball", "is there a ring", "how big is the object")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for number, (question, answer) in enumerate(zip(QUESTIONS, ("red", "yes", "no", "blue"), strict=True)):
        draw(folder / "images" / f"{number}.png", shade=50 * number)
        rows.append(json.dumps({"image": f"{number}.png", "question": question, "answers": [answer] * 3}))
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module", params=[None, "SEQ_CLS"])
def run(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The checkpoint folder of a plain `Trainer` and the trained model's probabilities of all answers."""
    folder = tmp_path_factory.mktemp("run")
    save_tiny_model(folder / "base")
    model: Any = QCAForVisualQuestionAnswering.from_pretrained(folder / "base")
    config = LoraConfig(
        task_type=request.param, target_modules=["query", "value", "q_proj"], modules_to_save=["classifier"]
    )
    adapted = get_peft_model(model, config)
    processor, rows = tiny_processor(), load_rows(str(data), split="train")
    trainer = Trainer(
        adapted,
        plain_arguments(folder / "run", max_steps=2, save_steps=2, learning_rate=0.05),
        data_collator=QuestionCollator(processor, model.config),
        train_dataset=rows,
        processing_class=processor,
    )
    trainer.train()
    inputs = processor(images=list(rows["image"]), text=list(QUESTIONS))
    with torch.no_grad():
        probabilities = adapted.eval()(**inputs).logits.softmax(-1)
        with adapted.disable_adapter():
            assert (adapted(**inputs).logits.softmax(-1) - probabilities).abs().max() > 0.05
    names = model.config.id2label
    expected = [{names[i]: float(p) for i, p in enumerate(row)} for row in probabilities]
    return {"checkpoint": folder / "run" / "checkpoint-2", "expected": expected, "data": data}


def invoke(*command: object) -> str:
    finished = CliRunner().invoke(app, [str(part) for part in command])
    assert finished.exit_code == 0, finished.output
    return finished.output


def test_pipeline_gives_the_probabilities_of_the_trained_model(run: dict[str, Any]) -> None:
    ask = load_pipeline(str(run["checkpoint"]))
    for number, question in enumerate(QUESTIONS):
        answers = ask(str(run["data"] / "images" / f"{number}.png"), question, top_k=5)
        assert {each["answer"]: each["score"] for each in answers} == pytest.approx(run["expected"][number], abs=1e-4)


def test_ask_prints_the_answer_of_the_trained_model(run: dict[str, Any]) -> None:
    expected = run["expected"][0]
    best = max(expected, key=expected.__getitem__)
    printed = invoke("ask", run["checkpoint"], run["data"] / "images" / "0.png", QUESTIONS[0], "--top-k", 1)
    assert best in printed and f"{expected[best]:.3f}"[1:] in printed


def test_evaluate_records_the_answers_of_the_trained_model(run: dict[str, Any], tmp_path: Path) -> None:
    invoke("evaluate", run["checkpoint"], run["data"], "--output-dir", tmp_path / "out")
    rows = datasets.Dataset.from_parquet(str(tmp_path / "out" / "questions.parquet"))
    recorded: dict[str, str] = {row["question"]: row["answer"] for row in rows}  # type: ignore[index]
    assert [recorded[question] for question in QUESTIONS] == [max(p, key=p.__getitem__) for p in run["expected"]]


def test_push_lists_the_adapter(run: dict[str, Any]) -> None:
    printed = invoke("push", run["checkpoint"], "user/adapter", "--base-model", "user/model", "--dry-run")
    assert "adapter_model.safetensors" in printed and "adapter_config.json" in printed
