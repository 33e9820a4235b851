"""Training a fully written recipe gives the losses recorded with commit 43b158b, before the folders were moved."""

import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from modeling_qca import QCAConfig, QCAForVisualQuestionAnswering, QCAProcessor
from modeling_qca.training.fitting.model_factory import CONFIGURATION
from modeling_qca.training.fitting.recipe import CONFIG_FIELDS, make_recipe
from modeling_qca.training.fitting.training_run import train
from modeling_qca.training.supervision.scenes import write_scenes

ANSWERS = ["yes", "no", "0", "1", "2", "3", "red", "green", "blue", "yellow", "circle", "square", "triangle", "star"]
FIELDS: dict[str, Any] = {
    "hidden_size": 128,
    "question_pooling": "mean",
    "query_tokens": "pooled",
    "vision_feature_layers": None,
    "relevance_scorer": "dot_product",
    "num_attention_layers": 2,
    "num_attention_heads": 4,
    "patch_update": "none",
    "answer_fusion": "concatenation",
    "answer_evidence": "hops",
    "answer_query": "updated",
    "vision_conditioning_layers": None,
    "vision_conditioning": "patches_read_question",
    "token_budget": None,
    "token_budget_layer": 1,
    "token_budget_mass": 0.9,
    "token_budget_scorer": "learned",
    "token_budget_selection": "top",
    "relevance_loss_weight": 1.0,
    "attention_dropout": 0.0,
    "evidence_dropout": 0.0,
    "num_classifier_layers": 2,
    "classifier_dropout": 0.0,
    "initializer_range": 0.08,
    "problem_type": "single_label_classification",
}
ARGUMENTS: dict[str, Any] = {
    "num_train_epochs": 2,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 16,
    "questions_per_image": 4,
    "learning_rate": 1e-3,
    "warmup_steps": 0.1,
    "lr_scheduler_type": "cosine",
    "weight_decay": 0.05,
    "max_grad_norm": 1.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "eval_strategy": "epoch",
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "metric_for_best_model": "accuracy",
    "logging_steps": 1,
    "seed": 42,
    "data_seed": 0,
    "bf16": False,
    "fp16": False,
    "use_cpu": True,
    "disable_tqdm": True,
    "report_to": "none",
}
HOPS = {
    "fields": {"query_tokens": "attended", "vision_feature_layers": [1, 3]},
    "keys": {"attention_supervision": "every_hop", "freeze": ["vision", "text"]},
    "loss": [5.769135, 5.824461, 5.46637, 4.861786, 5.001848, 4.83794, 4.501175, 4.251833],
    "eval_loss": [5.414032, 5.234237],
}
ENCODER = {
    "fields": {
        "relevance_scorer": "bilinear",
        "patch_update": "broadcast",
        "vision_conditioning_layers": [1, 2],
        "token_budget": 12,
    },
    "keys": {
        "attention_supervision": "last_hop",
        "relevance_loss_schedule": "linear",
        "ema_decay": 0.9,
        "learning_rates": {"vision": 2e-4},
    },
    "loss": [8.123755, 7.676315, 6.128444, 5.099096, 4.887441, 4.184327, 3.440135, 2.985204],
    "eval_loss": [8.457685, 7.813377],
}


def save_start(folder: Path, fields: dict[str, Any]) -> None:
    """Weights drawn from the parameters' names, so that the order in which modules are built does not matter."""
    preset = CONFIGURATION / "qca-tiny"
    model = QCAForVisualQuestionAnswering(
        QCAConfig.from_pretrained(preset, id2label=dict(enumerate(ANSWERS)), **fields)
    )
    for name, weight in model.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        if weight.dim() == 1 and "norm" in name.lower() and name.endswith("weight"):
            torch.nn.init.ones_(weight)
        elif weight.dim() == 1 and name.endswith("bias"):
            torch.nn.init.zeros_(weight)
        else:
            weight.data = torch.randn(weight.shape, generator=generator) * 0.08
    model.save_pretrained(folder)
    QCAProcessor.from_pretrained(preset).save_pretrained(folder)


@pytest.mark.parametrize("run", [HOPS, ENCODER], ids=["hops", "encoder"])
def test_losses_equal_those_before_the_moves(run, tmp_path, monkeypatch):
    write_scenes(tmp_path / "scenes", {"train": 8, "validation": 2}, seed=0)
    fields = {name: value for name, value in {**FIELDS, **run["fields"]}.items() if name in CONFIG_FIELDS}
    save_start(tmp_path / "start", fields)
    folders = {"data": tmp_path / "scenes", "model": tmp_path / "start", "output_dir": tmp_path / "run"}
    values = {name: str(folder) for name, folder in folders.items()} | {"vocabulary": None}
    logged: list[dict[str, float]] = []
    log = Trainer.log
    monkeypatch.setattr(Trainer, "log", lambda self, logs, *rest: logged.append(logs) or log(self, logs, *rest))
    train(make_recipe({**values, **fields, **ARGUMENTS, **run["keys"]}, "test"))
    for name in ("loss", "eval_loss"):
        assert [entry[name] for entry in logged if name in entry] == pytest.approx(run[name], rel=1e-4)
