"""Which measure of word importance is true: what the answer loses when the words it ranks first are left out.

Each method ranks the words of a question. The program leaves out the two words that are ranked first, and beside them
two random content words, and reports how much of the answer's probability is lost. It also reports the rank
correlation (Spearman) of the method with the loss of each single word, which is 1 for words left out by definition.
Questions are random rows of the validation split.

    python scripts/studies/word_importance.py runs/a runs/b runs/c --data DATA --name rooms --output words.json
"""

import argparse
import json
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from modeling_qca.confidence_qca import answer_probabilities
from modeling_qca.question_qca import word_relevance, word_tokens
from modeling_qca.training.data.images import read_image
from modeling_qca.training.data.rows import load_rows
from modeling_qca.training.evaluation.checkpoint import load_pipeline
from modeling_qca.training.files.progress import track
from modeling_qca.training.files.run_files import write_json
from modeling_qca.training.files.safe_yaml import parse_yaml
from modeling_qca.words_qca import probabilities_without, word_importance

FUNCTION_WORDS = frozenset(
    ("a", "an", "the", "is", "are", "was", "were", "be", "of", "in", "on", "at", "to", "and", "or", "it", "there")
    + ("this", "that", "what", "which", "who", "where", "how", "do", "does", "has", "have", "with", "for", "from", "?")
)
LEFT_OUT = 2  # words
STEPS = 16  # of integrated gradients


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", help="folders, one for each seed")
    parser.add_argument("--data", required=True)
    parser.add_argument("--data-options", default="{}")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--output", type=Path, required=True, help="results of other data in the file stay")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--name", required=True, help="of the data in the results")
    arguments = parser.parse_args()
    rows = load_rows(arguments.data, split=arguments.split, **parse_yaml(arguments.data_options, "--data-options"))
    rows = rows.shuffle(seed=0).select(range(min(arguments.questions, len(rows))))
    measured = [measure(checkpoint, rows, arguments.methods) for checkpoint in arguments.checkpoints]
    results = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    results[arguments.name] = {"questions": len(rows), "seeds": len(measured), "methods": summary(measured)}
    write_json(arguments.output, results)
    for method, values in results[arguments.name]["methods"].items():
        print(method, json.dumps(values))


def measure(checkpoint: str, rows: Any, methods: list[str]) -> dict[str, dict[str, float]]:
    """method -> `lost`, the mean loss without its first two words; `correlation` with the loss of each word."""
    ask = load_pipeline(checkpoint)
    found: dict[str, dict[str, list[float]]] = {}
    for row in track(range(len(rows)), Path(checkpoint).name):
        for method, values in measure_question(ask, rows[row], methods).items():
            for name, value in values.items():
                found.setdefault(method, {}).setdefault(name, []).append(value)
    return {method: {name: float(np.nanmean(values)) for name, values in of.items()} for method, of in found.items()}


def measure_question(ask: Any, row: dict[str, Any], methods: list[str]) -> dict[str, dict[str, float]]:
    model, tokenizer, question = ask.model, ask.processor.tokenizer, row["question"]
    picture = dict(ask.processor(images=read_image(row), text=[question]).to(ask.device))
    inputs = {name: value for name, value in picture.items() if name != "pixel_values"}
    words = word_tokens(tokenizer, question, inputs["attention_mask"][0])
    content = [index for index, (word, _) in enumerate(words) if word.lower() not in FUNCTION_WORDS]
    if len(content) < LEFT_OUT or len(words) <= LEFT_OUT:
        return {}
    with torch.no_grad():
        features = model.get_image_features(picture["pixel_values"], return_dict=True)
        inputs |= {"image_features": features.last_hidden_state, "image_grid": features.grid}
        logits = model(**inputs).logits
    answers = logits.argmax(dim=-1)
    whole = float(answer_probabilities(logits, model.config)[0, answers])
    generator = random.Random(zlib.crc32(row["question_id"].encode()))
    scores = {
        name: METHODS[name](ask, question, picture if name in FROM_PIXELS else inputs, answers) for name in methods
    }
    (true,) = word_importance(model, tokenizer, [question], inputs, answers)
    chosen = {
        name: np.argsort(-np.array(values), kind="stable")[:LEFT_OUT] for name, values in scores.items() if values
    }
    chosen["two random content words"] = np.array(generator.sample(content, LEFT_OUT))
    chosen["two random words"] = np.array(generator.sample(range(len(words)), LEFT_OUT))
    pairs = [(0, [token for index in first for token in words[index][1]]) for first in chosen.values()]
    with torch.no_grad():
        without = dict(
            zip(chosen, probabilities_without(model, with_image_index(inputs), pairs, answers), strict=True)
        )
    results = {name: {"lost": whole - probability} for name, probability in without.items()}
    for name in results.keys() & scores.keys():
        constant = np.ptp(scores[name]) == 0 or np.ptp([lost for _, lost in true]) == 0
        rank = np.nan if constant else spearmanr(scores[name], [lost for _, lost in true]).statistic
        results[name]["correlation"] = float(rank)
    return results


def repeated(inputs: dict[str, Any], count: int) -> dict[str, Any]:
    """The question `count` times, about one image."""
    texts = {name: value.expand(count, -1) for name, value in inputs.items() if not name.startswith("image")}
    return inputs | texts | {"image_index": torch.zeros(count, dtype=torch.long, device=texts["input_ids"].device)}


def with_image_index(inputs: dict[str, Any]) -> dict[str, Any]:
    return {"image_index": torch.zeros(1, dtype=torch.long, device=inputs["input_ids"].device)} | inputs


def attention_of(method: str) -> Callable[..., list[float]]:
    """The word shares of `explain`: the mean over its maps; none where the method gives none."""

    def scores(ask: Any, question: str, inputs: dict[str, Any], answers: torch.Tensor) -> list[float]:
        found = ask.model.explain(inputs, method, answers).token_relevance
        if found is None:
            return []
        (maps,) = word_relevance(ask.processor.tokenizer, [question], inputs["attention_mask"], found)
        return np.mean([[share for _, share in words] for words in maps], axis=0).tolist()

    return scores


def left_out(ask: Any, question: str, inputs: dict[str, Any], answers: torch.Tensor) -> list[float]:
    (words,) = word_importance(ask.model, ask.processor.tokenizer, [question], inputs, answers)
    return [lost for _, lost in words]


def unknown_word(ask: Any, question: str, inputs: dict[str, Any], answers: torch.Tensor) -> list[float]:
    """The loss where a word's tokens are the unknown token, so that all others keep their places."""
    words = word_tokens(ask.processor.tokenizer, question, inputs["attention_mask"][0])
    ids = inputs["input_ids"].repeat(len(words), 1)
    for index, (_, tokens) in enumerate(words):
        ids[index, tokens] = ask.processor.tokenizer.unk_token_id
    with torch.no_grad():
        logits = ask.model(**repeated(inputs, len(words)) | {"input_ids": ids}).logits
    return (-answer_probabilities(logits, ask.model.config)[:, answers[0]]).tolist()


def gradient_times_input(ask: Any, question: str, inputs: dict[str, Any], answers: torch.Tensor) -> list[float]:
    return _along_path(ask, question, inputs, answers, torch.ones(1))


def integrated_gradients(ask: Any, question: str, inputs: dict[str, Any], answers: torch.Tensor) -> list[float]:
    """From embeddings of zero (Sundararajan et al. 2017), by the midpoint rule."""
    return _along_path(ask, question, inputs, answers, (torch.arange(STEPS) + 0.5) / STEPS)


def _along_path(
    ask: Any, question: str, inputs: dict[str, Any], answers: torch.Tensor, shares: torch.Tensor
) -> list[float]:
    model = ask.model
    with torch.no_grad():
        embeddings = model.get_input_embeddings()(inputs["input_ids"])
    points = (shares[:, None, None] * embeddings).requires_grad_()
    others = {name: value for name, value in repeated(inputs, len(shares)).items() if name != "input_ids"}
    with torch.enable_grad():
        logits = model(inputs_embeds=points, **others).logits
        score = answer_probabilities(logits, model.config)[:, answers[0]].log().sum()
        (gradient,) = torch.autograd.grad(score, points)
    effect = (gradient.mean(dim=0) * embeddings[0]).sum(dim=-1)
    words = word_tokens(ask.processor.tokenizer, question, inputs["attention_mask"][0])
    return [float(effect[tokens].sum()) for _, tokens in words]


FROM_PIXELS = ("rollout", "gradient-weighted attention")
METHODS: dict[str, Callable[..., list[float]]] = {
    "attention of the hops": attention_of("relevance"),
    "rollout": attention_of("rollout"),
    "gradient-weighted attention": attention_of("gradient"),
    "gradient times input": gradient_times_input,
    "integrated gradients": integrated_gradients,
    "word made unknown": unknown_word,
    "word left out": left_out,
}


def summary(measured: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, list[float]]]:
    """method -> value of each seed, rounded."""
    return {
        method: {name: [round(seed[method][name], 4) for seed in measured] for name in measured[0][method]}
        for method in sorted(measured[0], key=lambda method: -np.mean([seed[method]["lost"] for seed in measured]))
    }


if __name__ == "__main__":
    main()
