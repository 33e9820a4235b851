"""Ask a checkpoint about a picture and see where it looks. The same file is `qca app CHECKPOINT` and a Space.

A Space names the checkpoint in its variable QCA_CHECKPOINT. With the package installed no code of the checkpoint runs.
"""

import os
import random
from typing import Any

from PIL import Image, ImageDraw
from transformers import pipeline

try:
    import gradio as gr
except ImportError as error:
    raise ImportError('The app needs gradio: pip install "modeling-qca[app]"') from error

METHODS = {
    "where each hop looks": "relevance",
    "back through the vision encoder (rollout)": "rollout",
    "what raised the answer's score (gradient)": "gradient",
}
SIDE = 640  # pixels of the longer side of what is drawn
COLORS = {"red": "#d62728", "green": "#2ca02c", "blue": "#1f77b4", "yellow": "#f2c12e", "purple": "#8e44ad"}
SHAPES = ("square", "circle", "triangle")
# Fonts of the reader's machine: nothing is fetched from elsewhere.
THEME = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def load_pipeline(checkpoint: str) -> Any:
    """The checkpoint's pipeline, by the installed package or else by its own code."""
    try:
        from modeling_qca import QCAVisualQuestionAnsweringPipeline
    except ImportError:
        return pipeline(model=checkpoint, trust_remote_code=True)  # type: ignore[call-overload]
    return pipeline(model=checkpoint, pipeline_class=QCAVisualQuestionAnsweringPipeline)  # type: ignore[call-overload]


def example_image(seed: int) -> Image.Image:
    """Three shapes of different colors on a plain background."""
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


def build_app(checkpoint: str) -> gr.Blocks:
    """
    Args:
        checkpoint: folder or Hub id.

    Raises:
        ValueError: where there is no such checkpoint, or it has no hops to look at.
    """
    ask = load_pipeline(checkpoint)
    hops, budget = ask.model.config.num_attention_layers, ask.model.config.token_budget
    if hops == 0:
        raise ValueError(f"{checkpoint} has no hops (`num_attention_layers=0`): there is nowhere to see it look.")

    def answer(image: Image.Image | None, question: str, method: str, earlier: list) -> tuple:
        if image is None:
            raise gr.Error("Choose a picture first.")
        try:
            look = ask.look(image, question, method=METHODS[method])
            if not look.words:
                look.words = ask.look(image, question, method="gradient").words
            look = look.fit(SIDE)
        except ValueError as error:
            raise gr.Error(str(error)) from error
        maps = len(look.relevance)
        earlier = [(look.overlay(caption=False), look.caption), *(earlier or [])]
        scores = {entry["answer"]: entry["score"] for entry in look.answers}
        slider = gr.Slider(maximum=max(maps, 2), value=maps, visible=maps > 1)
        dropped = gr.Image() if look.kept is None else gr.Image(look.kept_patches(), visible=True)
        return look, scores, slider, *show_hop(look, maps), dropped, gr.Gallery(earlier, visible=True)

    def show_hop(look: Any, hop: int) -> tuple:
        if look is None:
            return None, None
        words = look.words[min(int(hop), len(look.words)) - 1]
        highest = max(share for _, share in words) or 1.0
        return look.overlay(int(hop) - 1, caption=False), [(word, share / highest) for word, share in words]

    with gr.Blocks(title="Where does it look?", analytics_enabled=False) as app:
        gr.Markdown("# Where does it look?\nAsk about a picture: the answers, and the evidence for them.")
        look = gr.State(None)
        with gr.Row():
            with gr.Column(min_width=300):
                image = gr.Image(type="pil", label="Picture", sources=["upload", "clipboard"], elem_id="picture")
                question = gr.Textbox(label="Question", placeholder="what is left of the table", elem_id="question")
                method = gr.Radio(list(METHODS), value=next(iter(METHODS)), label="Show", elem_id="method")
                button = gr.Button("Ask", variant="primary", elem_id="ask")
            with gr.Column(min_width=300):
                answers = gr.Label(label="Answers", num_top_classes=5, elem_id="answers")
                overlay = picture("Where it looked", "overlay")
                hop = gr.Slider(1, max(hops, 2), hops, step=1, label="Hop", visible=hops > 1, elem_id="hop")
                words = gr.HighlightedText(label="Words it read", elem_id="words")
                kept = picture("Patches the token budget kept", "kept", visible=budget is not None)
        earlier = gr.Gallery(
            label="Questions so far",
            format="png",
            columns=4,
            fit_columns=False,
            height="auto",
            object_fit="contain",
            interactive=False,
            visible=False,
            elem_id="earlier",
        )
        gr.Examples(
            [[example_image(1), "what color is the circle"], [example_image(2), "is there a green square"]],
            [image, question],
        )
        outputs = [look, answers, hop, overlay, words, kept, earlier]
        gr.on([button.click, question.submit], answer, [image, question, method, earlier], outputs)
        hop.input(show_hop, [look, hop], [overlay, words], show_progress="hidden")
        image.change(lambda: gr.Gallery([], visible=False), None, earlier)
    return app


def picture(title: str, elem_id: str, visible: bool = True) -> gr.Image:
    """A picture under its title, which would otherwise lie on it."""
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


def launch_app(checkpoint: str, **options: Any) -> Any:
    """Serve [`build_app`]; `options` are those of `gradio.Blocks.launch`."""
    return build_app(checkpoint).launch(theme=THEME, **options)


if __name__ == "__main__":
    launch_app(os.environ["QCA_CHECKPOINT"])
