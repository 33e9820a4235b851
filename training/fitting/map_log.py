"""Pictures of relevance maps in the tracker of a run, at each evaluation."""

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback, TrackioCallback

from modeling_qca import QCAProcessor, QCAVisualQuestionAnsweringPipeline
from modeling_qca.overlay_qca import strip

from ..data.images import read_image

TRACKERS = {"tensorboard": TensorBoardCallback, "trackio": TrackioCallback}
SIDE = 320  # pixels of the longer side


def check_map_log(arguments: TrainingArguments) -> None:
    """
    Raises:
        ValueError: no tracker of the run takes pictures.
    """
    if not TRACKERS.keys() & set(arguments.report_to or []):
        raise ValueError(f"`log_maps` sends pictures to a tracker: set `report_to` to {' or '.join(TRACKERS)}")
    if arguments.fsdp:
        raise ValueError("`log_maps` does not work under FSDP; leave it out, or train with DDP")


class MapLog(TrainerCallback):
    """Sends validation pictures with their maps to the trackers of `trainer`, after each of its evaluations.

    Args:
        rows: the rows to show; see [`spread_rows`].
    """

    def __init__(self, trainer: Trainer, processor: QCAProcessor, rows: datasets.Dataset):
        self.trainer, self.processor, self.rows = trainer, processor, rows

    def on_evaluate(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        model: Any = self.trainer.model
        pipeline = QCAVisualQuestionAnsweringPipeline(model=model, processor=self.processor)
        for row in self.rows:
            look: Any = pipeline.look(read_image(row), row["question"], top_k=1)
            look = look.fit(SIDE)
            picture = strip([look.image, *(look.overlay(index) for index in range(len(look.relevance)))])
            self._send(f"maps/{row['question_id']}", np.asarray(picture), look.caption, state.global_step)

    def _send(self, name: str, picture: np.ndarray, caption: str, step: int) -> None:
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                callback.tb_writer.add_image(name, picture, step, dataformats="HWC")
            elif isinstance(callback, TrackioCallback):
                tracker = callback._trackio
                tracker.log({name: tracker.Image(picture, caption=caption)}, step=step)


def spread_rows(rows: datasets.Dataset, count: int) -> datasets.Dataset:
    """At most `count` rows about different images, evenly spread over the images, images not decoded."""
    first = list({image_id: index for index, image_id in reversed(list(enumerate(rows["image_id"])))}.values())[::-1]
    places: Sequence[int] = np.linspace(0, len(first) - 1, min(count, len(first))).round().astype(int).tolist()
    return rows.select([first[place] for place in places]).cast_column("image", datasets.Image(decode=False))
