"""Parameters that no output depends on are found for every encoder, so that DistributedDataParallel does not wait."""

import os
import socket

import pytest
import torch
from compatibility_encoders import vision_encoders
from helpers.tiny import tiny_batch, tiny_model, tiny_text_config
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from modeling_qca import QCAConfig, QCAForVisualQuestionAnswering

ENCODERS = dict(vision_encoders())
UNREAD = {  # encoders with weights that change no patch
    "beit": "vision_encoder.backbone.pooler.layernorm.weight",
    "chinese_clip_vision_model": "vision_encoder.backbone.post_layernorm.weight",
    "clip_vision_model": "vision_encoder.backbone.post_layernorm.weight",
    "dinov3_vit": "vision_encoder.backbone.embeddings.mask_token",
    "mlcd_vision_model": "vision_encoder.backbone.post_layernorm.weight",
    "siglip_vision_model": "vision_encoder.backbone.head.probe",
    "vit_msn": None,
}


def composed(vision: str) -> QCAForVisualQuestionAnswering:
    torch.manual_seed(0)
    config = QCAConfig.from_vision_text_configs(
        ENCODERS[vision](), tiny_text_config(), num_attention_heads=4, num_labels=3
    )
    return QCAForVisualQuestionAnswering(config)


def batch(questions: int = 2) -> dict[str, torch.Tensor]:
    return tiny_batch(questions, questions, size=(64, 64)) | {"labels": torch.arange(questions) % 3}


@pytest.mark.parametrize("vision", UNREAD)
def test_parameters_without_gradient_are_found(vision):
    model = composed(vision)
    found = set(model._ddp_params_and_buffers_to_ignore)
    model.train()(**batch()).loss.backward()
    assert found == {name for name, weight in model.named_parameters() if weight.grad is None}
    assert UNREAD[vision] is None or f"qca.{UNREAD[vision]}" in found


def test_looking_for_them_changes_nothing():
    model = tiny_model(vision_conditioning_layers="all", token_budget=[3, 8], token_budget_layer=1).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    with torch.no_grad():
        found = model._ddp_params_and_buffers_to_ignore
    assert all("pooler" in name for name in found) and len(found) == 2 + 2
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


def test_frozen_parameters_are_not_among_them():
    """DistributedDataParallel leaves those out by itself."""
    model = tiny_model()
    model.qca.text_encoder.requires_grad_(False)
    assert all("text_encoder" not in name for name in model._ddp_params_and_buffers_to_ignore)


def train(rank: int, port: int, results) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    for vision in UNREAD:
        model = composed(vision).eval()  # without dropout
        wrapped = DistributedDataParallel(model)
        for _ in range(2):
            rows = {name: value[rank : rank + 1] for name, value in batch().items() if name != "image_index"}
            wrapped(**rows).loss.backward()  # the second pass fails if the first waits for a gradient
        if rank == 0:
            results[vision] = model.classifier[-1].weight.grad
    distributed.destroy_process_group()


@pytest.mark.slow  # starts processes
def test_two_processes_train_every_encoder():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with multiprocessing.get_context("spawn").Manager() as manager:
        results = manager.dict()
        multiprocessing.spawn(train, (port, results), nprocs=2)
        for vision in UNREAD:
            model = composed(vision).eval()
            for _ in range(2):
                model(**batch()).loss.backward()
            torch.testing.assert_close(results[vision], model.classifier[-1].weight.grad, atol=1e-5, rtol=1e-4)
