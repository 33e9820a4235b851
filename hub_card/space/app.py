"""The demo app: ask questions about a picture and see which patches the model read.

The file is both `qca app CHECKPOINT` and a Space, whose variable QCA_CHECKPOINT names the checkpoint. If the package
is installed, the app runs its code and not the checkpoint's.
"""

import io
import json
import os
import random
from hashlib import blake2b
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from transformers import pipeline

try:
    import gradio as gr
except ImportError as error:
    raise ImportError('The app needs gradio: pip install "modeling-qca[app]"') from error

METHODS = {
    "Relevance map of each hop": "relevance",
    "Attention rollout to the image": "rollout",
    "Gradient of the answer's score": "gradient",
}
NO_HOPS = "This model has no hops. The map shows the gradient of the answer's score."
SIDE = 640  # pixels of the longer side of a drawn picture
COLORS = {"red": "#d62728", "green": "#2ca02c", "blue": "#1f77b4", "yellow": "#f2c12e", "purple": "#8e44ad"}
SHAPES = ("square", "circle", "triangle")
# Local fonts, so that the page loads nothing from other sites.
THEME = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def load_pipeline(checkpoint: str) -> Any:
    """The checkpoint's pipeline. It runs the installed package, or the checkpoint's code without the package."""
    try:
        from modeling_qca import QCAVisualQuestionAnsweringPipeline
    except ImportError:
        return pipeline(model=checkpoint, trust_remote_code=True)  # type: ignore[call-overload]
    return pipeline(model=checkpoint, pipeline_class=QCAVisualQuestionAnsweringPipeline)  # type: ignore[call-overload]


def example_image(seed: int) -> Image.Image:
    """Three shapes of different kinds and colors on a plain background."""
    generator = random.Random(seed)
    image = Image.new("RGB", (320, 240), "#e8e4da")
    draw = ImageDraw.Draw(image)
    places = generator.sample([(x, y) for x in (60, 160, 260) for y in (70, 170)], 3)
    kinds, colors = generator.sample(SHAPES, 3), generator.sample(sorted(COLORS), 3)
    for (x, y), kind, color in zip(places, kinds, colors, strict=True):
        size = generator.randint(26, 42)
        if kind == "circle":
            draw.ellipse((x - size, y - size, x + size, y + size), fill=COLORS[color])
        else:
            sides, rotation = {"square": (4, 0), "triangle": (3, 0)}[kind]
            draw.regular_polygon((x, y, size), sides, rotation, fill=COLORS[color])
    return image


def answer(ask: Any, image: Image.Image | None, question: str, method: str, earlier: list | None) -> tuple:
    """New values of the components after a question: one for each output of `build_app`.

    Raises:
        gradio.Error: There is no picture, or the question is empty or too long.
    """
    if image is None:
        raise gr.Error("Choose a picture first.")
    try:
        explanation = ask.look(image, question, method=METHODS[method]).fit(SIDE)
    except ValueError as error:
        raise gr.Error(str(error)) from error
    maps = len(explanation.relevance)
    earlier = [(explanation.overlay(caption=False), explanation.caption), *(earlier or [])]
    scores = {entry["answer"]: entry["score"] for entry in explanation.answers}
    slider = gr.Slider(maximum=max(maps, 2), value=maps, visible=maps > 1)
    kept = gr.Image() if explanation.kept is None else gr.Image(explanation.kept_patches(), visible=True)
    return explanation, scores, slider, *show_hop(explanation, maps), kept, gr.Gallery(earlier, visible=True)


def show_hop(explanation: Any, hop: int) -> tuple:
    """The overlay of a hop, and the words with the share of the answer's probability that is lost without each."""
    if explanation is None:
        return None, None
    score = explanation.answers[0]["score"] or 1.0  # of a sigmoid that underflows
    words = [(word, round(max(lost, 0.0) / score, 3)) for word, lost in explanation.words]
    return explanation.overlay(int(hop) - 1, caption=False), words


def store_wrong(
    folder: str | None, checkpoint: str, image: Image.Image | None, question: str, right_answer: str
) -> str:
    """
    Store a picture, a question and its right answer as a row of a table.

    Args:
        folder: gets `train.jsonl` and `images/`. Without it nothing is stored.

    Returns:
        What to do next, in Markdown.

    Raises:
        gradio.Error: There is no picture, question or right answer, or the picture cannot be read.
    """
    if folder is None:
        return (
            "This page stores no pictures. On your own machine, `qca app CHECKPOINT --annotations FOLDER` stores what "
            "was answered wrong, and `qca annotate FOLDER` opens the page to mark where to look."
        )
    if image is None or not question.strip():
        raise gr.Error("Choose a picture and ask a question first.")
    if not right_answer.strip():
        raise gr.Error("Write the right answer first.")
    from modeling_qca.image_qca import open_image  # a Space may lack the package, and stores nothing

    buffer = io.BytesIO()
    try:
        open_image(image).save(buffer, "PNG")
    except ValueError as error:
        raise gr.Error(str(error)) from error
    name = f"{blake2b(buffer.getvalue(), digest_size=8).hexdigest()}.png"
    pictures = Path(folder, "images")
    pictures.mkdir(parents=True, exist_ok=True)
    (pictures / name).write_bytes(buffer.getvalue())
    row = {"image": name, "question": question.strip(), "answer": right_answer.strip()}
    with open(Path(folder, "train.jsonl"), "a", encoding="utf-8") as table:
        table.write(json.dumps(row, ensure_ascii=False) + "\n")
    return f"Stored. Mark where to look: `qca annotate {folder} --checkpoint {checkpoint}`"


def build_app(checkpoint: str, annotations: str | None = None) -> gr.Blocks:
    """
    Args:
        checkpoint: folder or Hub id.
        annotations: folder that gets the questions that were answered wrong, see [`store_wrong`].

    Raises:
        ValueError: There is no such checkpoint.
    """
    ask = load_pipeline(checkpoint)
    config = ask.model.config
    with gr.Blocks(title="Where does it look?", analytics_enabled=False) as app:
        gr.Markdown("# Where does it look?\nAsk about a picture and see which patches the model read for its answer.")
        if config.num_attention_layers == 0:
            gr.Markdown(NO_HOPS, elem_id="no-hops")
        with gr.Row():
            with gr.Column(min_width=300):
                inputs = input_components(config.num_attention_layers)
                button = gr.Button("Ask", variant="primary", elem_id="ask")
                right_answer, wrong, stored = wrong_components()
            with gr.Column(min_width=300):
                outputs = output_components(config.num_attention_layers, config.token_budget is not None)
        outputs["earlier"] = earlier = earlier_questions()
        image, question, _ = inputs
        gr.Examples(
            [[example_image(1), "what color is the circle"], [example_image(2), "is there a green square"]],
            [image, question],
        )
        gr.on(
            [button.click, question.submit],
            lambda *values: answer(ask, *values),
            [*inputs, earlier],
            list(outputs.values()),
        )
        shown = [outputs["overlay"], outputs["words"]]
        outputs["hop"].input(show_hop, [outputs["explanation"], outputs["hop"]], shown, show_progress="hidden")
        wrong.click(lambda *row: store_wrong(annotations, checkpoint, *row), [image, question, right_answer], stored)
        image.change(lambda: gr.Gallery([], visible=False), None, earlier)
    return app


def input_components(hops: int) -> list[Any]:
    """Picture, question and method, which is the gradient alone without hops."""
    methods = [name for name, method in METHODS.items() if hops or method == "gradient"]
    return [
        # Any other `image_mode` converts: transparent pixels turn black, and 16-bit values are cut off at 255.
        gr.Image(type="pil", image_mode=None, label="Picture", sources=["upload", "clipboard"], elem_id="picture"),
        gr.Textbox(label="Question", placeholder="what is left of the table", elem_id="question"),
        gr.Radio(methods, value=methods[0], label="Show", elem_id="method"),
    ]


def wrong_components() -> tuple[Any, ...]:
    """Right answer, button and what to do next."""
    with gr.Row():
        right_answer = gr.Textbox(label="Right answer", scale=2, elem_id="right")
        button = gr.Button("Wrong? Show it", scale=1, elem_id="wrong")
    return right_answer, button, gr.Markdown(elem_id="stored")


def output_components(hops: int, has_budget: bool) -> dict[str, Any]:
    """The outputs of `answer` but the last, in its order."""
    explanation = gr.State(None)
    answers = gr.Label(label="Answers", num_top_classes=5, elem_id="answers")
    overlay = picture("Where it looked", "overlay")
    hop = gr.Slider(1, max(hops, 2), max(hops, 1), step=1, label="Hop", visible=hops > 1, elem_id="hop")
    words = gr.HighlightedText(label="Words that its answer depends on", elem_id="words")
    kept = picture("Patches that the token budget kept", "kept", visible=has_budget)
    return {
        "explanation": explanation,
        "answers": answers,
        "hop": hop,
        "overlay": overlay,
        "words": words,
        "kept": kept,
    }


def earlier_questions() -> gr.Gallery:
    """The last output of `answer`: the overlays of all questions about the picture."""
    return gr.Gallery(
        label="Earlier questions",
        format="png",
        columns=4,
        fit_columns=False,
        height="auto",
        object_fit="contain",
        interactive=False,
        visible=False,
        elem_id="earlier",
    )


def picture(title: str, elem_id: str, visible: bool = True) -> gr.Image:
    """A picture with its title above it. A label of gradio would cover a part of the picture."""
    gr.Markdown(f"**{title}**", visible=visible)
    return gr.Image(
        label=title,
        show_label=False,
        format="png",
        interactive=False,
        buttons=["download", "fullscreen"],
        alt_text=title,
        visible=visible,
        elem_id=elem_id,
    )


def launch_app(checkpoint: str, annotations: str | None = None, **options: Any) -> Any:
    """Serve `build_app(checkpoint, annotations)`. The `options` are those of `gradio.Blocks.launch`."""
    return build_app(checkpoint, annotations).launch(theme=THEME, **options)


if __name__ == "__main__":
    launch_app(os.environ["QCA_CHECKPOINT"])
