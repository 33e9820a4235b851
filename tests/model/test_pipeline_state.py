"""Asking and explaining do not change the model or the processor, so threads and trainers can share them."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.answers import QUESTIONS, assert_same, scores
from helpers.tiny import (
    tiny_image,
    tiny_model,
    tiny_processor,
    tiny_tokenizer,
)

from modeling_qca import QCAForVisualQuestionAnswering, QCAProcessor, QCAVisualQuestionAnsweringPipeline
from modeling_qca.relevance_qca import explain

IMAGES = [tiny_image(seed, size=(32 + 8 * seed, 32)) for seed in range(3)]


@pytest.fixture(scope="module")
def ask() -> QCAVisualQuestionAnsweringPipeline:
    return QCAVisualQuestionAnsweringPipeline(model=tiny_model(), processor=tiny_processor())


def dropout_model() -> QCAForVisualQuestionAnswering:
    model = tiny_model(classifier_dropout=0.5)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    return model


@pytest.mark.parametrize("training", ["model", "hops"])
def test_a_model_in_training_mode_answers_as_in_evaluation_mode_and_stays_as_it_is(training):
    model = dropout_model()
    ask = QCAVisualQuestionAnsweringPipeline(model=model, processor=tiny_processor())
    expected, looked = ask(IMAGES[0], QUESTIONS), ask.look(IMAGES[0], QUESTIONS[0])
    (model if training == "model" else model.qca.hops).train()
    modes = [module.training for module in model.modules()]
    for _ in range(3):
        assert_same(ask(IMAGES[0], QUESTIONS), expected)
        assert torch.equal(ask.look(IMAGES[0], QUESTIONS[0]).relevance, looked.relevance)
    assert [module.training for module in model.modules()] == modes


def test_the_pipeline_does_not_change_the_processor():
    processor = QCAProcessor(tiny_processor().image_processor, tiny_tokenizer(model_max_length=10**9))
    ask = QCAVisualQuestionAnsweringPipeline(model=tiny_model(), processor=processor)
    ask.look(IMAGES[0], QUESTIONS[0], method="gradient")
    with pytest.raises(ValueError, match="22 tokens, the text encoder reads at most 16"):
        ask(IMAGES[0], "red " * 20)
    assert processor.tokenizer.model_max_length == 10**9
    assert processor(text="red " * 20)["input_ids"].shape == (1, 22)


METHODS = ("relevance", "rollout", "gradient")


@pytest.mark.parametrize(
    ("fields", "calls"),
    [
        ({"query_tokens": "attended", "vision_conditioning_layers": [1]}, 120),
        pytest.param({}, 2000, marks=pytest.mark.slow),
    ],
)
def test_eight_threads_give_the_results_of_one(fields, calls):
    ask = QCAVisualQuestionAnsweringPipeline(model=tiny_model(**fields), processor=tiny_processor())
    questions = ["how many", "is the big red cube left of the small blue ball ?", "what", "color of the ring"]

    def call(number: int):
        kind = number % 5
        image, question = IMAGES[number % 3], questions[number % 4]
        if kind == 3:
            return ask(image, question)
        if kind == 4:
            return ask(image, f"{question} red red red red red red red red red red red red", truncation=True)
        look = ask.look(image, question, method=METHODS[kind])
        return look.question, look.answers, look.words, look.relevance

    expected = [call(number) for number in range(60)]
    with ThreadPoolExecutor(8) as threads:
        for number, result in enumerate(threads.map(call, [n % 60 for n in range(calls)])):
            one = expected[number % 60]
            if isinstance(one, tuple):
                assert result[0] == one[0] and result[1] == one[1]
                assert result[2] == [(word, pytest.approx(lost, abs=1e-6)) for word, lost in one[2]]
                torch.testing.assert_close(result[3], one[3])
            else:
                assert_same(result, one)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad])
def test_look_does_not_depend_on_the_gradient_mode(ask, method, context):
    expected = ask.look(IMAGES[0], QUESTIONS[0], method=method)
    with context():
        look = ask.look(IMAGES[0], QUESTIONS[0], method=method)
        inputs = tiny_processor()(images=IMAGES[0], text=QUESTIONS[0])
        explanation = ask.model.explain(inputs, method)
        made_inside = QCAVisualQuestionAnsweringPipeline(model=tiny_model(), processor=tiny_processor())
        inside = made_inside.look(IMAGES[0], QUESTIONS[0], method=method)
    torch.testing.assert_close(look.relevance, expected.relevance)
    torch.testing.assert_close(explanation.relevance.mean(2).unflatten(-1, (4, 4))[0], expected.relevance)
    assert inside.relevance.shape == expected.relevance.shape


@pytest.mark.parametrize("task_type", [None, "FEATURE_EXTRACTION", "SEQ_CLS"])
def test_a_peft_model_answers_and_explains_with_its_adapters(task_type):
    peft = pytest.importorskip("peft")
    model = tiny_model()
    plain = QCAVisualQuestionAnsweringPipeline(model=model, processor=tiny_processor())(IMAGES[0], QUESTIONS[0])
    config = peft.LoraConfig(task_type=task_type, target_modules=["q_proj", "v_proj"], init_lora_weights=False, r=4)
    adapted = peft.get_peft_model(model, config)
    ask = QCAVisualQuestionAnsweringPipeline(model=adapted, processor=tiny_processor())
    inputs = tiny_processor()(images=IMAGES[0], text=QUESTIONS[0])
    with torch.no_grad():
        logits = adapted.get_base_model().eval()(**inputs).logits[0]
    expected = {model.config.id2label[i]: float(p) for i, p in enumerate(logits.softmax(-1))}
    answers = ask(IMAGES[0], QUESTIONS[0])
    assert scores(answers) == pytest.approx(expected, abs=1e-5)
    assert scores(answers) != pytest.approx(scores(plain), abs=1e-3)
    for method in METHODS:
        look = ask.look(IMAGES[0], QUESTIONS[0], method=method)
        assert_same(look.answers, answers)
        explained = adapted.explain(inputs, method).relevance.mean(2).unflatten(-1, (4, 4))[0]
        torch.testing.assert_close(look.relevance, explained)
        torch.testing.assert_close(
            explain(adapted, inputs, method).relevance[0].mean(1).unflatten(-1, (4, 4)), explained
        )
    assert ask.model is adapted


def test_mixed_peft_model_answers_with_its_adapters():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, r=4)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(tiny_model(), config).eval()
    torch.manual_seed(0)
    mixed = peft.get_peft_model(tiny_model(), config, mixed=True).eval()
    answers = [
        QCAVisualQuestionAnsweringPipeline(model=model, processor=tiny_processor())(IMAGES[0], QUESTIONS[0])
        for model in (adapted, mixed)
    ]
    assert_same(*answers)


def test_pipeline_refuses_virtual_tokens_that_it_would_ignore():
    peft = pytest.importorskip("peft")
    shape = {"num_layers": 2, "token_dim": 24, "num_attention_heads": 2, "num_virtual_tokens": 3}
    adapted = peft.get_peft_model(tiny_model(), peft.PromptTuningConfig(task_type="SEQ_CLS", **shape))
    with pytest.raises(ValueError, match=r"virtual tokens of PROMPT_TUNING .* use LoRA"):
        QCAVisualQuestionAnsweringPipeline(model=adapted, processor=tiny_processor())
