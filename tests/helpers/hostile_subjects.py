"""The receivers of hostile inputs: a tiny pipeline, the config loader and its model, and the recipe loader."""

import random
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image

from helpers import hostile_images, hostile_tables, hostile_text
from helpers.tiny import tiny_batch, tiny_config, tiny_image, tiny_model, tiny_processor, tiny_tokenizer
from modeling_qca import QCAConfig, QCAForVisualQuestionAnswering, QCAProcessor, QCAVisualQuestionAnsweringPipeline
from modeling_qca.training.data.rows import load_rows
from modeling_qca.training.fitting.recipe import load_recipe

LARGEST_RUN = 3_000_000  # parameters; a larger model is only built on the meta device
LARGEST_IMAGE = 128  # pixels of a side

torch.set_num_threads(1)


class Subjects:
    def __init__(self, folder: Path):
        folder.mkdir(exist_ok=True)
        self.folder = folder
        model = tiny_model()
        limited, unlimited = tiny_processor(), tiny_processor()
        unlimited.tokenizer.model_max_length = int(1e30)
        self.pipelines = [
            QCAVisualQuestionAnsweringPipeline(model=model, processor=processor) for processor in (limited, unlimited)
        ]
        bare = tiny_tokenizer(model_max_length=int(1e30))
        bare.backend_tokenizer.post_processor = None  # without special tokens a question can be empty
        self.processors = [QCAProcessor(limited.image_processor, bare), limited]
        self.model = model

    def meet(self, kind: str, number: int, seed: int) -> list[float]:
        """The values of the answer to input `number` of a kind. Errors of the input pass through."""
        generator = random.Random(f"{seed} {kind} {number}")
        torch.manual_seed(number)
        with torch.no_grad():
            return list(getattr(self, f"_{kind}")(generator))

    def is_clear(self, kind: str, error: Exception) -> bool:
        """Whether an error is of a documented class and has a message."""
        allowed: dict[str, tuple[type, ...]] = {
            "image": (ValueError,),
            "question": (ValueError,),
            "config": (ValueError, OSError),
            "table": (ValueError, FileNotFoundError),
            "recipe": (ValueError, FileNotFoundError, PackageNotFoundError),  # of a named file or package
        }
        strict = isinstance(error, StrictDataclassError) and kind in ("config", "recipe")
        return bool(str(error)) and (type(error) in allowed[kind] or strict)

    def _image(self, generator: random.Random) -> Iterator[float]:
        image = hostile_images.image(generator, self.folder)
        if generator.random() < 0.5 and isinstance(image, (str, bytes, Path, Image.Image)):
            yield from _scores(generator.choice(self.pipelines)(image, "what is red ?", return_relevance=True))
        else:
            inputs = self.processors[1](images=image, text="what is red ?")
            yield from self.model(**inputs).logits.flatten().tolist()

    def _question(self, generator: random.Random) -> Iterator[float]:
        question, truncation = hostile_text.question(generator), generator.random() < 0.3
        if generator.random() < 0.7:
            yield from _scores(generator.choice(self.pipelines)(tiny_image(), question, truncation=truncation))
        else:
            inputs = generator.choice(self.processors)(images=tiny_image(), text=question or "", truncation=truncation)
            yield from self.model(**inputs).logits.flatten().tolist()

    def _config(self, generator: random.Random) -> Iterator[float]:
        path = self.folder / "config.json"
        path.write_bytes(hostile_text.config(generator, tiny_config().to_dict()))
        config = QCAConfig.from_pretrained(self.folder)
        with torch.device("meta"):
            on_meta = QCAForVisualQuestionAnswering(config)
        yield float(sum(parameter.numel() for parameter in on_meta.parameters()))
        size = config.vision_config.image_size
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        if (
            sum(parameter.numel() for parameter in on_meta.parameters()) < LARGEST_RUN
            and max(height, width) <= LARGEST_IMAGE
        ):
            model = QCAForVisualQuestionAnswering(config).eval()
            batch = tiny_batch(questions=2, images=1, tokens=4, size=(height, width))
            batch["input_ids"] %= config.text_config.vocab_size
            del batch["token_type_ids"]
            outputs = model(**batch, return_dict=True)
            yield from outputs.logits.flatten().tolist()
            yield from outputs.relevance.flatten().tolist()

    def _table(self, generator: random.Random) -> Iterator[float]:
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            tiny_image().save(Path(place) / "a.png")
            path = hostile_tables.table(generator, Path(place))
            rows = load_rows(generator.choice([place, str(path)]), cache_dir=f"{place}/cache")
            yield float(len(rows))
            assert all(isinstance(row["question"], str) and row["question"].strip() for row in rows)

    def _recipe(self, generator: random.Random) -> Iterator[float]:
        path = self.folder / "recipe.yaml"
        path.write_bytes(hostile_text.recipe(generator))
        recipe = load_recipe(path)
        yield float(recipe.training_arguments().learning_rate)
        yield float(tiny_config(**recipe.config).hidden_size)


def _scores(found: Any) -> Iterator[float]:
    """Every number in an answer of the pipeline."""
    if isinstance(found, torch.Tensor):
        yield from found.flatten()[:: max(1, found.numel() // 1000)].tolist()
        yield float(found.sum())
    elif isinstance(found, float):
        yield found
    elif isinstance(found, dict):
        for value in found.values():
            yield from _scores(value)
    elif isinstance(found, list):
        for value in found:
            yield from _scores(value)
