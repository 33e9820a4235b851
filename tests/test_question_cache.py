"""A frozen text encoder reads each question once, and its states are those it would have given anyway."""

import torch
from tiny import tiny_batch, tiny_model

from modeling_qca.training.question_cache import remembered_questions


def test_questions_are_read_once_and_give_the_same_gradients():
    model = tiny_model().train()
    model.qca.text_encoder.eval().requires_grad_(False)
    model.classifier.eval(), model.fusion.eval(), model.qca.patch_embedder.eval(), model.qca.hops.eval()
    batches = [tiny_batch(questions=4, seed=seed) for seed in (0, 1, 0)]
    batches[2]["input_ids"][3] = batches[1]["input_ids"][0]
    batches[2]["attention_mask"][3] = batches[1]["attention_mask"][0]

    def gradients() -> list[torch.Tensor]:
        found = []
        for batch in batches:
            model.zero_grad()
            model(**batch).logits.square().sum().backward()
            found.append(model.qca.query_embedder.projection.weight.grad.clone())
        return found

    read = []
    handle = model.qca.text_encoder.encoder.layer[0].register_forward_pre_hook(
        lambda module, args: read.append(tuple(args[0].shape[:2]))
    )
    with remembered_questions(model, True):
        remembered = gradients()
    new = batches[:2]  # the third brings no question of its own
    lengths = [batch["attention_mask"].sum(dim=1).tolist() for batch in new]
    assert sorted(read) == sorted((of.count(length), length) for of in lengths for length in set(of))
    assert len(read) < 8
    read.clear()
    expected = gradients()
    assert read == [tuple(batch["input_ids"].shape) for batch in batches]
    handle.remove()
    for ours, theirs in zip(remembered, expected, strict=True):
        assert ours.allclose(theirs, rtol=1e-4, atol=1e-6)


def test_an_encoder_that_trains_is_asked_every_time():
    model, read = tiny_model().train(), []
    model.qca.text_encoder.embeddings.register_forward_hook(lambda module, args, output: read.append(len(output)))
    with remembered_questions(model, False):
        assert "forward" not in vars(model.qca.text_encoder)
    with remembered_questions(model, True):
        for _ in range(2):
            model(**tiny_batch(questions=4))
    assert read == [4, 4]
    assert "forward" not in vars(model.qca.text_encoder)
