"""The conditioned encoder as the vision tower of a chat model (examples/llava_vision_tower.py)."""

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

from modeling_qca.conditioning_qca import GatedConditioning

_FILE = Path(__file__).parents[2] / "examples" / "llava_vision_tower.py"
_SPEC = importlib.util.spec_from_file_location("llava_vision_tower", _FILE)
llava_vision_tower = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(llava_vision_tower)

IMAGE_TOKEN, PAD, PATCHES = 59, 0, 16
MODES = ("patches_read_question", "question_reads_patches", "shared_projections")


def tiny_llava(vision: type = CLIPVisionConfig, **fields) -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = LlavaConfig(
        vision_config=vision(image_size=32, patch_size=8, **shape),
        text_config=LlamaConfig(vocab_size=60, num_key_value_heads=2, initializer_range=0.2, **shape),
        image_token_index=IMAGE_TOKEN,
        image_seq_length=PATCHES,
        **fields,
    )
    model = LlavaForConditionalGeneration(config).eval()
    for parameter in model.model.vision_tower.parameters():
        parameter.data *= 3  # so that outputs depend on the image
    return model


def chat(questions: list[list[int]], images: list[int]) -> dict[str, torch.Tensor]:
    """Prompts `<image>... question`, padded on the left, with `images[i]` images in row i."""
    rows = [[1] + [IMAGE_TOKEN] * PATCHES * count + words for words, count in zip(questions, images, strict=True)]
    length = max(map(len, rows))
    input_ids = torch.tensor([[PAD] * (length - len(row)) + row for row in rows])
    pixel_values = torch.randn(sum(images), 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return {"input_ids": input_ids, "attention_mask": (input_ids != PAD).long(), "pixel_values": pixel_values}


def open_gates(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, GatedConditioning):
            nn.init.constant_(module.gate, 1.0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("vision", [CLIPVisionConfig, SiglipVisionConfig])
@pytest.mark.parametrize("layer", [-2, -1, [1, 3]])
def test_closed_gates_leave_the_chat_model_as_it_was(layer, vision: type, mode: str) -> None:
    strategy = "full" if vision is SiglipVisionConfig else "default"
    model = tiny_llava(vision, vision_feature_layer=layer, vision_feature_select_strategy=strategy)
    conditioned = copy.deepcopy(model)
    llava_vision_tower.condition_on_question(conditioned, vision_conditioning=mode)
    inputs = chat([[5, 6, 7], [8, 9]], [1, 1])
    with torch.no_grad():
        assert torch.equal(conditioned(**inputs).logits, model(**inputs).logits)
        expected = model.generate(**inputs, max_new_tokens=5, do_sample=False)
        assert torch.equal(conditioned.generate(**inputs, max_new_tokens=5, do_sample=False), expected)


def test_only_the_conditioning_trains() -> None:
    model = tiny_llava()
    tower = llava_vision_tower.condition_on_question(model)
    open_gates(model)  # a closed gate passes gradients to itself alone
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs = chat([[5, 6, 7, 20, 21], [8, 9, 10, 22, 23]], [1, 1])
    labels = inputs["input_ids"].clone()
    labels[:, :-2] = -100
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=0.0)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model.train()(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    trained = {f"model.vision_tower.{name}" for name in tower.conditioning_state()}
    assert changed <= trained
    assert any(name.endswith("gate") for name in changed) and any("query_embedder" in name for name in changed)
    assert all(p.grad is None for name, p in model.named_parameters() if name not in trained)


def test_tower_reads_the_words_of_the_prompt_alone() -> None:
    """Not the padding, not the image placeholders, not the answer being taught, not the next row's words."""
    model, seen = tiny_llava(), []
    tower = llava_vision_tower.condition_on_question(model)
    open_gates(model)
    tower.register_forward_hook(lambda module, args, output: seen.append(output.hidden_states[-2]))

    @torch.no_grad()
    def features(inputs: dict[str, torch.Tensor], answer: int = 0) -> torch.Tensor:
        labels = inputs["input_ids"].clone()
        labels[:, : labels.shape[1] - answer] = -100
        model(**inputs, labels=labels if answer else None)
        return seen[-1]

    alone = features(chat([[5, 6, 7]], [1]))[0]
    with_longer_row = features(chat([[5, 6, 7], [8, 9, 10, 11, 12]], [1, 1]))[0]
    torch.testing.assert_close(with_longer_row, alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features(chat([[5, 6, 7, 30]], [1]), answer=1)[0], alone, atol=1e-5, rtol=1e-5)
    assert (features(chat([[5, 6, 30]], [1]))[0] - alone).abs().amax() > 1e-3
    several = chat([[8, 9], [5, 6, 7]], [2, 1])
    for image, words in enumerate(([8, 9], [8, 9], [5, 6, 7])):
        one = chat([words], [1]) | {"pixel_values": several["pixel_values"][image : image + 1]}
        torch.testing.assert_close(features(several)[image], features(one)[0], atol=1e-5, rtol=1e-5)


def test_conditioning_saves_and_loads_by_itself(tmp_path: Path) -> None:
    model, fresh = tiny_llava(), tiny_llava()
    tower = llava_vision_tower.condition_on_question(model)
    open_gates(model)
    torch.save(tower.conditioning_state(), tmp_path / "conditioning.pt")
    loaded = llava_vision_tower.condition_on_question(fresh).load_state_dict(
        torch.load(tmp_path / "conditioning.pt"), strict=False
    )
    assert not loaded.unexpected_keys and all(name.startswith("encoder.backbone.") for name in loaded.missing_keys)
    inputs = chat([[5, 6, 7]], [1])
    with torch.no_grad():
        assert torch.equal(fresh(**inputs).logits, model(**inputs).logits)


def test_what_the_tower_cannot_do_is_said() -> None:
    with pytest.raises(ValueError, match="token_budget"):
        llava_vision_tower.condition_on_question(tiny_llava(), token_budget=5, token_budget_layer=1)
    model = tiny_llava()
    llava_vision_tower.condition_on_question(model)
    inputs = chat([[5, 6, 7]], [1])
    embeddings = model.get_input_embeddings()(inputs.pop("input_ids"))
    with pytest.raises(ValueError, match="input_ids"):
        model(inputs_embeds=embeddings, **inputs)
