"""Fine-tune on a table of questions and a folder of images with the plain `Trainer`.

    python examples/finetune.py my_rooms my_photos

`my_rooms/train.csv` has the columns `image`, `question` and `answer`. `my_rooms/train_relevance.npz` is optional: it
holds the regions to look at (docs/data.md).

With several GPUs, start it with `accelerate launch`, or set CUDA_VISIBLE_DEVICES=0. In a single process the `Trainer`
uses DataParallel, which splits images and questions apart.
"""

import argparse
from pathlib import Path

from transformers import AutoImageProcessor, AutoTokenizer, EvalPrediction, Trainer, TrainingArguments

from modeling_qca import QCAForVisualQuestionAnswering, QCAProcessor, QCAVisualQuestionAnsweringPipeline
from modeling_qca.training import QuestionCollator, build_vocabulary, load_rows


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Share of questions whose best answer is right; -100 marks answers outside the vocabulary."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="folder with train.csv")
    parser.add_argument("images", help="folder of the images")
    parser.add_argument("--vision", default="facebook/dinov2-small", help="vision encoder")
    parser.add_argument("--text", default="sentence-transformers/all-MiniLM-L6-v2", help="text encoder")
    parser.add_argument("--output-dir", default="runs/finetune")
    parser.add_argument("--epochs", type=float, default=5)
    options = parser.parse_args()

    cut = {"images": options.images, "validation_ratio": 0.2, "group_by": "image_id"}
    train, validation = (load_rows(options.data, split=split, **cut) for split in ("train", "validation"))
    answers = dict(enumerate(build_vocabulary(train["answers"])))
    model = QCAForVisualQuestionAnswering.from_vision_text_pretrained(options.vision, options.text, id2label=answers)
    side = model.config.vision_config.image_size
    images = AutoImageProcessor.from_pretrained(
        options.vision, size={"height": side, "width": side}, do_center_crop=False
    )  # relevance maps cover the whole image
    processor = QCAProcessor(images, AutoTokenizer.from_pretrained(options.text))

    supervision = "last_hop" if Path(options.data, "train_relevance.npz").exists() else "none"
    trainer = Trainer(
        model,
        TrainingArguments(
            options.output_dir,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=32,
            learning_rate=3e-4,
            remove_unused_columns=False,  # the collator needs every column
            label_names=["labels"],
            report_to="none",
        ),
        data_collator=QuestionCollator(processor, model.config, attention_supervision=supervision),
        train_dataset=train,
        eval_dataset=validation,
        compute_metrics=accuracy,
        processing_class=processor,
    )
    trainer.train()
    print(f"accuracy: {trainer.evaluate()['eval_accuracy']:.3f}")
    trainer.save_model()
    ask = QCAVisualQuestionAnsweringPipeline(model=model.eval(), processor=processor)
    row = validation[0]
    print(row["question"], ask(row["image"], row["question"], top_k=1))


if __name__ == "__main__":
    main()
