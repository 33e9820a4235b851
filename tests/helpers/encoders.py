"""Tiny vision and text encoders in folders, as if they were downloaded."""

from pathlib import Path

from modeling_qca import QCAConfig, QCAForVisualQuestionAnswering, QCAProcessor, configuration

PRESET = Path(configuration.__file__).parent / "qca-tiny"


def save_encoders(folder: Path) -> tuple[str, str]:
    """Write the encoders of `qca-tiny`, with random weights, where the documents name them; return both paths."""
    vision, text = folder / "facebook" / "dinov2-small", folder / "sentence-transformers" / "all-MiniLM-L6-v2"
    model = QCAForVisualQuestionAnswering(QCAConfig.from_pretrained(PRESET)).qca
    processor = QCAProcessor.from_pretrained(PRESET)
    model.vision_encoder.backbone.save_pretrained(vision)
    processor.image_processor.save_pretrained(vision)
    model.text_encoder.save_pretrained(text)
    processor.tokenizer.save_pretrained(text)
    return str(vision), str(text)
