"""Let the vision tower of a LLaVA model read the question, and train nothing but that.

Layers of the frozen vision tower read the prompt's word embeddings through gates that start closed: until they are
trained, the model answers exactly as before.

    python examples/llava_vision_tower.py llava-hf/llava-1.5-7b-hf photo.jpg "What is on the table?"

In your own training script:

    model = LlavaForConditionalGeneration.from_pretrained("llava-hf/llava-1.5-7b-hf")
    tower = condition_on_question(model)       # from here on only the conditioning has gradients
    Trainer(model, ...).train()                # `labels` are -100 on the prompt, as usual
    save_file(tower.conditioning_state(), "conditioning.safetensors")
"""

import argparse
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import AutoProcessor, LlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from modeling_qca import QCAConfig
from modeling_qca.embedding_qca import QueryEmbedder
from modeling_qca.vision_qca import QuestionAwareVisionEncoder


class QuestionAwareVisionTower(nn.Module):
    """
    A LLaVA vision tower whose later layers read the prompt.

    Args:
        model: whose vision tower this is to replace.
        fields: of [`QCAConfig`], such as `vision_conditioning`. By default the second half of the layers that LLaVA
            reads is conditioned.
    """

    def __init__(self, model: LlavaForConditionalGeneration, **fields: Any):
        super().__init__()
        vision_config, depth = model.config.vision_config, model.config.vision_config.num_hidden_layers
        last = model.config.vision_feature_layer
        layers_read = max(layer % (depth + 1) for layer in ([last] if isinstance(last, int) else last))
        defaults = {
            "vision_conditioning_layers": list(range(layers_read // 2, layers_read)),
            "num_attention_heads": vision_config.num_attention_heads,
            "question_pooling": "mean",
        }
        config = QCAConfig.from_vision_text_configs(vision_config, model.config.text_config, **defaults | fields)
        if config.token_budget is not None:
            raise ValueError("LLaVA's prompt holds a place for every patch; leave `token_budget` unset.")
        self.query_embedder = QueryEmbedder(config)
        self.encoder = QuestionAwareVisionEncoder(config, backbone=model.model.vision_tower)
        self.prompt: tuple[torch.Tensor, torch.Tensor] | None = None

    def read_prompt(self, model: LlavaForConditionalGeneration, args: tuple, kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of `model`: the prompt's embeddings, one row an image, without the answer being taught."""
        pixel_values, input_ids = kwargs.get("pixel_values"), kwargs.get("input_ids")
        if pixel_values is None:
            return
        if input_ids is None:
            raise ValueError("The vision tower reads the prompt: pass `input_ids` with `pixel_values`, by name.")
        placeholders = input_ids == model.config.image_token_id
        words = ~placeholders
        for name, is_word in (("attention_mask", lambda mask: mask == 1), ("labels", lambda labels: labels == -100)):
            if kwargs.get(name) is not None:
                words = words & is_word(kwargs[name])
        places = placeholders.sum(dim=1)
        row = torch.arange(len(input_ids), device=input_ids.device)
        row_of_image = row.repeat_interleave(places * len(pixel_values) // places.sum())
        embeddings = model.get_input_embeddings()(input_ids)
        self.prompt = embeddings[row_of_image], words[row_of_image]

    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """`pixel_values` `[I, 3, h, w]`; returns the hidden states of every layer, as LLaVA picks its own."""
        embeddings, words = self.prompt
        features = self.encoder.encode_images(pixel_values, output_hidden_states=True)
        output = self.encoder(features, None, self.query_embedder(embeddings, words), output_hidden_states=True)
        return BaseModelOutputWithPooling(
            last_hidden_state=output.hidden_states[-1], hidden_states=output.hidden_states
        )

    def conditioning_state(self) -> dict[str, torch.Tensor]:
        """The weights that are trained; load them with `load_state_dict(..., strict=False)`."""
        backbone = "encoder.backbone."
        return {name: value for name, value in self.state_dict().items() if not name.startswith(backbone)}


def condition_on_question(model: LlavaForConditionalGeneration, **fields: Any) -> QuestionAwareVisionTower:
    """Put a [`QuestionAwareVisionTower`] into `model` and leave only its conditioning trainable."""
    tower = QuestionAwareVisionTower(model, **fields).to(device=model.device, dtype=model.dtype)
    model.model.vision_tower = tower
    model.register_forward_pre_hook(tower.read_prompt, with_kwargs=True)
    model.requires_grad_(False)
    tower.query_embedder.requires_grad_(True)
    tower.encoder.conditioning.requires_grad_(True)
    return tower


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("image")
    parser.add_argument("question")
    options = parser.parse_args()
    model = LlavaForConditionalGeneration.from_pretrained(options.checkpoint)
    processor = AutoProcessor.from_pretrained(options.checkpoint)
    condition_on_question(model)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"{trained / 1e6:.1f} M of {model.num_parameters() / 1e6:.1f} M parameters would be trained")
    prompt = f"USER: <image>\n{options.question} ASSISTANT:"
    inputs = processor(images=Image.open(options.image), text=prompt, return_tensors="pt").to(model.device)
    print(processor.decode(model.generate(**inputs, max_new_tokens=30)[0], skip_special_tokens=True))


if __name__ == "__main__":
    main()
