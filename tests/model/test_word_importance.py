"""Importance of words, against answers to questions that were written without them."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.tiny import tiny_image, tiny_model, tiny_processor, tiny_tokenizer

from modeling_qca import QCAVisualQuestionAnsweringPipeline
from modeling_qca.words_qca import ROWS, word_importance

QUESTIONS = ["what is left of the red cube", "is it", "what color is the big ball ?"]


def probability(model, question: str, answer: int) -> float:
    logits = model(**tiny_processor()(images=tiny_image(), text=question)).logits[0]
    logits = logits / model.config.temperature
    several = model.config.problem_type == "multi_label_classification"
    return float((logits.sigmoid() if several else logits.softmax(dim=-1))[answer])


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"query_tokens": "attended", "question_pooling": "mean"},
        {"vision_conditioning_layers": [1], "token_budget": 6, "token_budget_layer": 1},
        {"num_attention_layers": 0},
        {"problem_type": "multi_label_classification"},
        {"temperature": 0.3},
    ],
)
def test_importance_is_what_the_answer_loses_without_the_word(fields):
    model = tiny_model(**fields)
    inputs = tiny_processor()(images=tiny_image(), text=QUESTIONS)
    importance = word_importance(model, tiny_tokenizer(), QUESTIONS, inputs)
    answers = model(**inputs).logits.argmax(dim=-1).tolist()
    for question, words, answer in zip(QUESTIONS, importance, answers, strict=True):
        asked = question.split()
        assert [word for word, _ in words] == asked
        for index, (_, lost) in enumerate(words):
            without = " ".join(asked[:index] + asked[index + 1 :])
            expected = probability(model, question, answer) - probability(model, without, answer)
            assert lost == pytest.approx(expected, abs=1e-5)
    assert max(abs(lost) for words in importance for _, lost in words) > 0.01


def test_importance_is_of_the_answers_that_are_given():
    model, inputs = tiny_model(), tiny_processor()(images=tiny_image(), text=["what is red"])
    ((first, *_),) = word_importance(model, tiny_tokenizer(), ["what is red"], inputs, torch.tensor([3]))
    assert first[1] == pytest.approx(probability(model, "what is red", 3) - probability(model, "is red", 3), abs=1e-5)


def test_long_questions_are_answered_in_parts(monkeypatch):
    model, questions = tiny_model(), [" ".join(["red cube"] * 6)] * 8
    inputs = tiny_processor()(images=tiny_image(), text=questions)
    assert sum(len(question.split()) for question in questions) > ROWS
    whole = word_importance(model, tiny_tokenizer(), questions, inputs)
    monkeypatch.setattr("modeling_qca.words_qca.ROWS", 1000)
    for one, other in zip(whole, word_importance(model, tiny_tokenizer(), questions, inputs), strict=True):
        assert [lost for _, lost in one] == pytest.approx([lost for _, lost in other], abs=1e-5)


def test_a_question_of_one_word_has_a_finite_importance():
    inputs = tiny_processor()(images=tiny_image(), text=["what"])
    (((word, lost),),) = word_importance(tiny_model(), tiny_tokenizer(), ["what"], inputs)
    assert word == "what" and -1 <= lost <= 1


def test_a_model_in_training_is_read_without_dropout_and_left_in_training():
    model, inputs = tiny_model(evidence_dropout=0.5, classifier_dropout=0.5), None
    inputs = tiny_processor()(images=tiny_image(), text=QUESTIONS)
    expected = word_importance(model, tiny_tokenizer(), QUESTIONS, inputs)
    model.train()
    assert word_importance(model, tiny_tokenizer(), QUESTIONS, inputs) == [
        [(word, pytest.approx(lost, abs=1e-6)) for word, lost in words] for words in expected
    ]
    assert all(module.training for module in model.modules())


def test_threads_that_share_a_model_get_the_importance_of_one():
    model, processor = tiny_model(query_tokens="attended"), tiny_processor()

    def importance(number: int):
        question = QUESTIONS[number % 3]
        inputs = processor(images=tiny_image(number % 2), text=[question])
        return word_importance(model, processor.tokenizer, [question], inputs)

    expected = [importance(number) for number in range(6)]
    with ThreadPoolExecutor(4) as threads:
        for number, found in enumerate(threads.map(importance, [n % 6 for n in range(24)])):
            assert [lost for _, lost in found[0]] == pytest.approx(
                [lost for _, lost in expected[number % 6][0]], abs=1e-6
            )


@pytest.mark.parametrize("method", ["relevance", "rollout", "gradient"])
def test_look_has_the_importance_of_words_whatever_its_maps(method):
    ask = QCAVisualQuestionAnsweringPipeline(model=tiny_model(), processor=tiny_processor())
    looks = ask.look(tiny_image(), QUESTIONS, method=method)
    inputs = tiny_processor()(images=tiny_image(), text=QUESTIONS)
    for look, words in zip(looks, word_importance(ask.model, tiny_tokenizer(), QUESTIONS, inputs), strict=True):
        assert look.words == [(word, pytest.approx(lost, abs=1e-5)) for word, lost in words]
        first = max(look.words, key=lambda word: word[1])
        assert look.important_words(1) == f"{first[0]} {-first[1]:+.0%}"
