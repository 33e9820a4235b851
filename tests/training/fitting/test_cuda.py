"""On a GPU: outputs equal those on the CPU for all kernels and precisions, and training works."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import save_tiny_model, tiny_batch, tiny_image, tiny_model, tiny_text_config, tiny_vision_config
from test_trainer import Questions, losses, trainer_of
from transformers import pipeline

from modeling_qca import QCAConfig, QCAForVisualQuestionAnswering, QCAVisualQuestionAnsweringPipeline
from modeling_qca.training.benchmark.models import Contender, Models, Workload
from modeling_qca.training.benchmark.speed import FLASH_ATTENTION

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
FLASH = [name for name, available in FLASH_ATTENTION.items() if available()]
VARIANTS: dict[str, dict[str, Any]] = {
    "dense": {},
    "layers": {"vision_feature_layers": [1, 3]},
    "conditioned": {"vision_conditioning_layers": "late"},
    "budget": {"token_budget": 5, "token_budget_layer": 1},
    "adaptive": {"token_budget": [3, 9], "token_budget_layer": 1},
    "spread": {"token_budget": 5, "token_budget_layer": 1, "token_budget_selection": "spread"},
}


def on_gpu(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.cuda() for name, value in inputs.items()}


def wide_model() -> QCAForVisualQuestionAnswering:
    """With heads of 64, which flash attention has kernels for."""
    shape = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 256}
    config = QCAConfig.from_vision_text_configs(tiny_vision_config(**shape), tiny_text_config(**shape), num_labels=5)
    torch.manual_seed(0)
    return QCAForVisualQuestionAnswering(config).eval()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_gpu_outputs_equal_cpu_outputs(fields: dict[str, Any], attention: str) -> None:
    model, batch = tiny_model(**fields), tiny_batch(questions=5)
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):
            torch.nn.init.constant_(parameter, 0.5)
    model.set_attn_implementation(attention)
    with torch.no_grad():
        expected = model(**batch)
        found = model.cuda()(**on_gpu(batch))
    for name in ("logits", "relevance"):
        torch.testing.assert_close(found[name].cpu(), expected[name], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("attention", ["eager", "sdpa", *FLASH])
def test_bfloat16_outputs_are_close(attention: str) -> None:
    model, batch = wide_model(), tiny_batch(questions=4)
    with torch.no_grad():
        expected = model(**batch).logits
        model.to("cuda", torch.bfloat16).set_attn_implementation(attention)
        found = model(**on_gpu(batch)).logits.float().cpu()
    assert (found - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize("name", ["qca", "qca-49"])
def test_cuda_graphs_give_the_same_outputs_and_losses(name: str) -> None:
    models = Models(torch.device("cuda"), quick=True)
    inputs = [models.get(Contender(name)).inputs(Workload(images=1, questions=4))]
    inputs.append({key: value.flip(0) if key == "input_ids" else value for key, value in inputs[0].items()})
    answers, trained = [], []
    for compiled in (False, True):
        model = models.get(Contender(name, compiled=compiled))
        model.module.eval()
        answers.append([model.run(inputs[i % 2], "answer").clone() for i in range(6)])
        trained.append(torch.stack([model.run(inputs[0], "train") for _ in range(4)]))
    for one, other in zip(*answers, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(*trained, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("compiled", [False, True])
def test_trains_in_bfloat16(compiled: bool, tmp_path: Path) -> None:
    trainer = trainer_of(
        tmp_path, max_steps=40, bf16=True, torch_compile=compiled, use_cpu=False, save_strategy="no", warmup_steps=5
    )
    trainer.train()
    curve = losses(trainer)
    assert trainer.model.device.type == "cuda" and sum(curve[-5:]) < 0.7 * sum(curve[:5])
    with torch.no_grad():
        loss = trainer.model.cpu()(**Questions(10, seed=1).batch).loss.item()
    assert trainer_of(tmp_path, trainer.model, use_cpu=False).evaluate()["eval_loss"] == pytest.approx(loss, rel=0.05)


def test_pipeline_answers_equal_those_on_the_cpu(tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    answers = [
        pipeline(model=str(tmp_path), pipeline_class=QCAVisualQuestionAnsweringPipeline, device=device)(
            tiny_image(), "what is the color of the ball", top_k=5
        )
        for device in ("cpu", "cuda")
    ]
    assert [a["answer"] for a in answers[0]] == [a["answer"] for a in answers[1]]
    assert [a["score"] for a in answers[1]] == pytest.approx([a["score"] for a in answers[0]], abs=1e-3)
