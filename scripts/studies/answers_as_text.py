r"""Answer heads: does scoring an answer by its own text embedding gain over the classifier?

    python scripts/studies/answers_as_text.py NAME RECIPE.yaml WORK --data DATA ... --output answers_as_text.json

Further options are keys of the recipe, as of `qca train`. Each seed cuts its own validation split, and holds out a
tenth of the answers (not the two most frequent) from training. The model is the recipe's without hops. It reads the
mean of the patches of frozen encoders, which is taken once and kept in WORK, as each finished run is.

| head | score of answer c with the text embedding e_c, for the fused features x |
| --- | --- |
| classifier | x . w_c + b_c |
| embedding | x . P e_c + p . e_c |
| both summed | x . (w_c + P e_c) + b_c + p . e_c |
| both summed, shuffled | the same, and each trained answer has the text embedding of another one |
"""

import argparse
import dataclasses
import json
from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import normalize
from transformers import get_cosine_schedule_with_warmup, set_seed

from modeling_qca.loss_qca import answer_loss
from modeling_qca.training.data.answers import answer_key, answer_scores, majority_answer
from modeling_qca.training.data.sampler import ImageGroupedSampler
from modeling_qca.training.data.vocabulary import build_vocabulary
from modeling_qca.training.evaluation.device import device_name
from modeling_qca.training.evaluation.provenance import command_line
from modeling_qca.training.experiments.results_summary import paired_gain
from modeling_qca.training.files.markdown import mean_cell
from modeling_qca.training.files.progress import track
from modeling_qca.training.files.run_files import write_json
from modeling_qca.training.fitting.model_factory import build_model
from modeling_qca.training.fitting.parameter_groups import freeze
from modeling_qca.training.fitting.recipe import Recipe, load_recipe
from modeling_qca.training.fitting.splits import Splits, measured_on, read_splits
from modeling_qca.training.fitting.training_run import WITHOUT_HOPS, cache_features

HEADS = ("classifier", "embedding", "both summed", "both summed, shuffled")
NEAREST = ("classifier, nearest embedding", "question, nearest embedding")  # for answers never trained on
RARE = 5  # training rows of an answer, at most
HELD_OUT = 0.1  # of the answers
NEVER_HELD_OUT = 2  # the most frequent answers
NEIGHBORS = 10  # answers whose embeddings ConSE mixes
Scores = dict[str, list[Any]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the data in the results")
    parser.add_argument("recipe")
    parser.add_argument("work", type=Path, help="folder of features and finished runs")
    parser.add_argument("--output", type=Path, required=True, help="results of other data in the file stay")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--types", nargs="*", default=[], help="question types with a column of their own")
    arguments, rest = parser.parse_known_args()
    keys = dict(zip((key.removeprefix("--") for key in rest[::2]), rest[1::2], strict=True))
    runs: dict[str, list[Scores]] = {}
    for seed in arguments.seeds:
        for head, scores in run_seed(arguments.recipe, keys, seed, arguments.work / arguments.name).items():
            runs.setdefault(head, []).append(scores)
    results = json.loads(arguments.output.read_text()) if arguments.output.exists() else {"data": {}}
    of_data = summarize(arguments.name, runs, arguments.types)
    split = measured_on(read_recipe(arguments.recipe, keys, arguments.seeds[0]))["split"]
    origin = {"seeds": arguments.seeds, "split of the first seed": split, "device": device_name(torch.device("cpu"))}
    results["data"][arguments.name] = of_data | origin | {"command": command_line()}
    results["tables"] = [table for name in results["data"] for table in results["data"][name]["tables"]]
    write_json(arguments.output, results)
    print(json.dumps(of_data["tables"], indent=1))


def run_seed(path: str, keys: dict[str, str], seed: int, work: Path) -> dict[str, Scores]:
    """Head -> the scores of its answers, of the finished runs in `work` or else of new ones."""
    files = {head: work / str(seed) / f"{head.replace(', ', '_').replace(' ', '_')}.json" for head in HEADS + NEAREST}
    (work / str(seed)).mkdir(parents=True, exist_ok=True)
    unfinished = [head for head in HEADS if not files[head].exists()]
    if unfinished:
        study = Study(read_recipe(path, keys, seed), seed, work)
        for head in unfinished:
            found = study.run(head)
            for name in reversed(found):  # the head last: its file says that all are written
                write_json(files[name], found[name])
    return {head: json.loads(file.read_text()) for head, file in files.items()}


def read_recipe(path: str, keys: dict[str, str], seed: int) -> Recipe:
    """The recipe without hops and relevance maps, its validation split cut by `seed`."""
    recipe = load_recipe(path, keys)
    config = {**recipe.config, **WITHOUT_HOPS}
    options = {name: value for name, value in recipe.data_options.items() if name != "relevance_filter"}
    return dataclasses.replace(
        recipe, attention_supervision="none", data_seed=seed, config=config, data_options=options
    )


class Study:
    """The rows, features and answers of one seed."""

    def __init__(self, recipe: Recipe, seed: int, work: Path):
        self.recipe, self.seed, splits = recipe, seed, read_splits(recipe)
        self.rule = (recipe.answer_rule, recipe.normalize_answers)
        every = [
            answer_scores(row, *self.rule) for rows in (splits.train, splits.validation) for row in rows["answers"]
        ]
        held_out = self._hold_out(splits.train["answers"])
        of_train, self.expected = every[: len(splits.train)], every[len(splits.train) :]
        kept = [index for index, scores in enumerate(of_train) if not held_out & scores.keys()]
        self.train, self.validation = splits.train.select(kept), splits.validation
        self.counts = Counter(answer for index in kept for answer in of_train[index])
        self.trained = build_vocabulary(self.train["answers"], rule=self.rule[0], normalize=self.rule[1])
        self.counts = Counter({answer: self.counts[answer] for answer in self.trained})
        known = set(self.trained)
        self.untrained = sorted({answer for scores in every for answer in scores} - known)
        self.answers = self.trained + self.untrained
        self.training_scores = [of_train[index] for index in kept]
        self.features = read_features(recipe, splits, work)
        self.embeddings = self._embed_answers()
        set_seed(seed)
        self.model, _ = build_model(recipe, self.trained)
        freeze(self.model, recipe.freeze)

    def _hold_out(self, answers: list[Any]) -> set[str]:
        ranked = build_vocabulary(answers, rule=self.rule[0], normalize=self.rule[1])[NEVER_HELD_OUT:]
        generator = np.random.default_rng(self.seed)
        return set(generator.choice(ranked, max(2, round(HELD_OUT * len(ranked))), replace=False).tolist())

    def _embed_answers(self) -> torch.Tensor:
        """`[answers, E]` of length 1, centered on the answers that are trained on."""
        embeddings = torch.stack([self.features["text"][answer] for answer in self.answers])
        return normalize(embeddings - embeddings[: len(self.trained)].mean(dim=0), dim=-1)

    def run(self, head: str) -> dict[str, Scores]:
        """Train one head; returns its scores, and with the classifier those of the nearest embeddings."""
        set_seed(self.seed)
        model, count, embeddings = deepcopy(self.model), len(self.trained), self.embeddings.clone()
        if head == "both summed, shuffled":
            embeddings[:count] = embeddings[torch.randperm(count)]
        if head != "classifier":
            scorer = AnswerEmbeddings(model.config.hidden_size, embeddings[:count], free=head != "embedding")
            model.classifier[-1] = scorer.apply(model._init_weights)
        self._fit(model, head)
        if head != "classifier":
            model.classifier[-1].embeddings = embeddings  # of all answers
        logits = self._answer(model)
        found = {head: self._score(logits)}
        if head == "classifier":
            single = model.config.problem_type != "multi_label_classification"
            shares = logits.softmax(-1) if single else normalize(logits.sigmoid(), p=1, dim=-1)
            best, which = shares.topk(min(NEIGHBORS, count))
            mixed = (best[..., None] * self.embeddings[which]).sum(dim=1)
            asked = torch.stack([self.features["text"][question] for question in self.validation["question"]])
            texts = torch.stack([self.features["text"][answer] for answer in self.answers])
            found[NEAREST[0]] = self._score(normalize(mixed, dim=-1) @ self.embeddings.T)
            found[NEAREST[1]] = self._score(normalize(asked, dim=-1) @ normalize(texts, dim=-1).T)
        return found

    def _inputs(self, rows: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Features `[B, prefix + 1, E]` of the images and `[B, 1, E]` of the questions."""
        images = torch.stack([self.features["images"][image_id] for image_id in rows["image_id"]])
        return images, torch.stack([self.features["text"][question] for question in rows["question"]])[:, None]

    def _labels(self, model: Any) -> torch.Tensor:
        position = {answer: index for index, answer in enumerate(self.trained)}
        if model.config.problem_type != "multi_label_classification":
            majorities = [majority_answer(row, self.rule[1]) for row in self.train["answers"]]
            return torch.tensor([position.get(answer, -100) for answer in majorities])
        labels = torch.zeros(len(self.train), len(position))
        for row, scores in zip(labels, self.training_scores, strict=True):
            for answer in scores.keys() & position.keys():
                row[position[answer]] = scores[answer]
        return labels

    def _fit(self, model: Any, head: str) -> None:
        arguments = self.recipe.training_arguments(bf16=False)
        (images, questions), labels = self._inputs(self.train), self._labels(model)
        sampler = ImageGroupedSampler(self.train["image_id"], self.recipe.questions_per_image, self.seed)
        size, epochs = arguments.per_device_train_batch_size, int(arguments.num_train_epochs)
        steps = epochs * -(-len(self.train) // size)
        optimizer = torch.optim.AdamW(_groups(model, arguments.weight_decay), lr=arguments.learning_rate, fused=True)
        schedule = get_cosine_schedule_with_warmup(optimizer, arguments.get_warmup_steps(steps), steps)
        model.train()
        for epoch in track(range(epochs), f"{head}, seed {self.seed}"):
            sampler.set_epoch(epoch)
            for rows in torch.tensor(list(sampler)).split(size):
                logits = _logits(model, images[rows], questions[rows])
                loss = answer_loss(logits, labels[rows], model.config.problem_type)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), arguments.max_grad_norm)
                optimizer.step()
                schedule.step()
        model.eval()

    @torch.no_grad()
    def _answer(self, model: Any) -> torch.Tensor:
        images, questions = self._inputs(self.validation)
        batches = zip(images.split(512), questions.split(512), strict=True)
        return torch.cat([_logits(model, *batch) for batch in batches]).float()

    def _score(self, logits: torch.Tensor) -> Scores:
        """For each validation row its ids, the training rows of its answer, and the score of the answer chosen from
        the list of trained answers, of all, and of those never trained on (none where the head has no scores)."""
        scores = np.array([[row.get(answer, 0.0) for answer in self.answers] for row in self.expected])
        count, rows = len(self.trained), np.arange(len(scores))
        lists = {
            "from trained": (0, count),
            "from all": (0, len(self.answers)),
            "from new": (count, len(self.answers)),
        }
        chosen = {
            name: scores[rows, start + logits[:, start:end].argmax(dim=-1).numpy()].tolist()
            for name, (start, end) in lists.items()
            if end <= logits.shape[1]
        }
        return {
            **{name: self.validation[name][:] for name in ("question_id", "image_id", "question_type")},
            "training rows": [max(map(self.counts.__getitem__, row), default=0) for row in self.expected],
            "chance": scores[:, count:].mean(axis=1).tolist(),
            **chosen,
        }


class AnswerEmbeddings(nn.Module):
    """Scores of answers by their text embeddings `[C, E]`, which may be replaced. With `free`, the scores of a
    classifier of these C answers are added."""

    embeddings: torch.Tensor

    def __init__(self, size: int, embeddings: torch.Tensor, free: bool):
        super().__init__()
        self.register_buffer("embeddings", embeddings)
        self.project = nn.Linear(embeddings.shape[1], size, bias=False)
        self.bias = nn.Linear(embeddings.shape[1], 1, bias=False)
        self.free = nn.Linear(size, len(embeddings)) if free else None

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """`[B, D]` -> `[B, C]`"""
        logits = states @ self.project(self.embeddings).T + self.bias(self.embeddings)[:, 0]
        if self.free is None:
            return logits
        free = self.free(states)
        return logits + nn.functional.pad(free, (0, logits.shape[1] - free.shape[1]))


def _logits(model: Any, images: torch.Tensor, questions: torch.Tensor) -> torch.Tensor:
    mask = torch.ones(questions.shape[:2], dtype=torch.long)
    return model(image_features=images, image_grid=(1, 1), text_features=questions, attention_mask=mask).logits


def _groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters that train. Matrices decay, as in `Trainer`."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.dim() > 1]
    others = [parameter for parameter in trained if parameter.dim() < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def read_features(recipe: Recipe, splits: Splits, work: Path) -> dict[str, dict[str, torch.Tensor]]:
    """`images`: id -> `[prefix + 1, E]`, the prefix tokens and the mean patch. `text`: question or answer -> `[E]`,
    the mean of its tokens. Both are kept in `work`."""
    file = work / "features.pt"
    if file.exists():
        return torch.load(file)
    both: list[Any] = [splits.train, splits.validation]
    model, processor = build_model(recipe, ["yes", "no"])
    freeze(model, recipe.freeze)
    cache = cache_features(model, processor, both, half=recipe.arguments.get("bf16", False))
    prefix = model.qca.vision_encoder.shape.prefix
    images = {}
    for image_id in track(cache.position, "Mean patches"):
        tokens = cache.read([image_id])[0].float()
        images[image_id] = torch.cat([tokens[:prefix], tokens[prefix:].mean(dim=0, keepdim=True)])
    answers = {
        answer_key(answer["answer"], recipe.normalize_answers)
        for of in both
        for row in of["answers"]
        for answer in row
    }
    texts = sorted({question for rows in both for question in rows["question"]} | answers - {""}, key=_by_length)
    text = {}
    for start in track(range(0, len(texts), 64), "Text features"):
        chunk = texts[start : start + 64]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=recipe.arguments.get("bf16", False)):
            states = model.eval().get_text_features(**processor(text=chunk))
        pooled = model.qca.query_embedder.pool(states.last_hidden_state, states.attention_mask.bool())
        text |= dict(zip(chunk, pooled.float().clone(), strict=True))
    torch.save({"images": images, "text": text}, file)
    return {"images": images, "text": text}


def _by_length(text: str) -> tuple[int, str]:
    return len(text), text


def summarize(name: str, runs: dict[str, list[Scores]], types: list[str]) -> dict[str, Any]:
    """Tables of one data set: answers that training has, and answers that it never has. Groups without questions are
    left out."""
    counts = {
        group: [len(seed["score"]) for seed in _select(runs["classifier"], group)] for group in ("all", *types, "rare")
    }
    groups = [group for group, questions in counts.items() if any(questions)]
    trained = []
    for head in HEADS:
        accuracy = [_mean([seed["score"] for seed in _select(runs[head], group)]) for group in groups]
        trained.append([head, *accuracy, *(_gain(runs[head], runs["classifier"], group) for group in groups)])
    over = [_gain(runs["both summed"], runs["both summed, shuffled"], group) for group in groups]
    trained.append(["both summed, over shuffled", *("" for _ in groups), *over])
    new = []
    for head in HEADS[1:3] + NEAREST:
        seeds = runs[head]
        cells = [[np.array(seed[part])[_new(seed)] for seed in seeds] for part in ("from new", "from all")]
        new.append([head, *map(_mean, cells)])
    chance = [np.array(seed["chance"])[_new(seed)] for seed in runs["classifier"]]
    new.append(["chance", _mean(chance), ""])
    counts["new"] = [int(_new(seed).sum()) for seed in runs["classifier"]]
    columns = [f"{name}: answers trained on", *groups, *(f"{group}, gain" for group in groups)]
    tables = [{"columns": columns, "rows": trained}]
    if any(counts["new"]):
        titles = [f"{name}: answers never trained on", "chosen from these", "chosen from all"]
        tables.append({"columns": titles, "rows": new})
    return {"questions": counts, "tables": tables}


def _select(seeds: list[Scores], group: str) -> list[Scores]:
    """The questions of each seed whose answer training has: all, those of rare answers, or those of a type."""
    selected = []
    for seed in seeds:
        rows = np.array(seed["training rows"])
        chosen = rows > 0
        if group == "rare":
            chosen &= rows <= RARE
        elif group != "all":
            chosen &= np.array(seed["question_type"]) == group
        where = np.flatnonzero(chosen)
        columns = {"question_id": "question_id", "image_id": "image_id", "score": "from trained"}
        selected.append({name: [seed[column][row] for row in where] for name, column in columns.items()})
    return selected


def _gain(seeds: list[Scores], base: list[Scores], group: str) -> str:
    gain = paired_gain(_select(seeds, group), _select(base, group))
    return f"{gain['mean']:+.3f} (SE {gain['standard_error']:.3f})"


def _new(seed: Scores) -> np.ndarray:
    """Questions with an answer, none of whose answers is trained on."""
    return (np.array(seed["training rows"]) == 0) & (np.array(seed["chance"]) > 0)


def _mean(seeds: list[Any]) -> str:
    return mean_cell([float(np.mean(seed)) for seed in seeds if len(seed)])


if __name__ == "__main__":
    main()
