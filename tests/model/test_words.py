"""Relevance of words, for every kind of tokenizer."""

import pytest
import torch
from helpers.tiny import tiny_image, tiny_model, tiny_processor, tiny_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from modeling_qca import QCAProcessor, QCAVisualQuestionAnsweringPipeline
from modeling_qca.question_qca import word_relevance


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_word_has_the_sum_of_its_pieces(side):
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "chair": 2, "##s": 3, "where": 4, "are": 5, "?": 6}
    pieces = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    pieces.normalizer, pieces.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=pieces, pad_token="[PAD]", unk_token="[UNK]", padding_side=side
    )
    questions = ["Where are chairs?", "chairs"]
    mask = tokenizer(questions, padding=True, return_tensors="pt")["attention_mask"]
    relevance = (mask * torch.tensor([1.0, 2.0, 3.0, 4.0, 10.0]))[:, None]
    (first,), (second,) = word_relevance(tokenizer, questions, mask, relevance)
    assert first == [("Where", 0.05), ("are", 0.1), ("chairs", pytest.approx(0.35)), ("?", 0.5)]
    assert second == [("chairs", 1.0)]


def test_special_tokens_are_left_out():
    tokenizer, questions = tiny_tokenizer(), ["what is left", "how many"]
    mask = tokenizer(questions, padding=True, return_tensors="pt")["attention_mask"]
    (first, again), (second, _) = word_relevance(tokenizer, questions, mask, mask[:, None].float().expand(-1, 2, -1))
    assert first == again == [(word, pytest.approx(1 / 3)) for word in ("what", "is", "left")]
    assert second == [(word, pytest.approx(1 / 2)) for word in ("how", "many")]


def shares_of(tokenizer, question: str) -> list[tuple[str, float]]:
    """Words where token i has the relevance i + 1."""
    mask = torch.tensor([tokenizer(question)["attention_mask"]])
    relevance = torch.arange(1.0, mask.shape[1] + 1)[None, None]
    ((words,),) = word_relevance(tokenizer, [question], mask, relevance)
    return words


def sentence_piece(pre_tokenizer) -> PreTrainedTokenizerFast:
    pieces = [
        ("[UNK]", 0.0),
        ("\u2581is", -1.0),
        ("\u2581it", -1.0),
        ("\u2581re", -1.0),
        ("d", -1.0),
        ("\u2581", -2.0),
    ]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    if pre_tokenizer is None:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[UNK]")


@pytest.mark.parametrize("splits", [True, False])
def test_sentence_pieces_are_joined_to_words(splits):
    """Without a pre-tokenizer, as in Llama's, the tokenizer calls the whole sentence one word."""
    tokenizer = sentence_piece(pre_tokenizers.Metaspace() if splits else None)
    assert shares_of(tokenizer, "is it red") == [("is", 0.1), ("it", 0.2), ("red", pytest.approx(0.7))]


class WordTokenizer(PreTrainedTokenizer):
    """A tokenizer written in Python, which knows no character offsets."""

    def __init__(self, **kwargs):
        self.words = ["[PAD]", "[CLS]", "what", "is", "red"]
        super().__init__(pad_token="[PAD]", cls_token="[CLS]", **kwargs)

    @property
    def vocab_size(self):
        return len(self.words)

    def get_vocab(self):
        return {word: index for index, word in enumerate(self.words)}

    def _tokenize(self, text):
        return text.split()

    def _convert_token_to_id(self, token):
        return self.words.index(token)

    def _convert_id_to_token(self, index):
        return self.words[index]

    def build_inputs_with_special_tokens(self, token_ids_0, token_ids_1=None):
        return [self.cls_token_id, *token_ids_0]

    def get_special_tokens_mask(self, token_ids_0, token_ids_1=None, already_has_special_tokens=False):
        return [int(i in (0, 1)) for i in token_ids_0] if already_has_special_tokens else [1] + [0] * len(token_ids_0)


def test_a_tokenizer_without_offsets_gives_its_tokens():
    words = shares_of(WordTokenizer(), "what is red")
    assert [word for word, _ in words] == ["what", "is", "red"]
    assert [share for _, share in words] == pytest.approx([2 / 9, 3 / 9, 4 / 9])


def test_look_works_with_a_tokenizer_without_offsets():
    processor = QCAProcessor(tiny_processor().image_processor, WordTokenizer(model_max_length=16))
    ask = QCAVisualQuestionAnsweringPipeline(model=tiny_model(query_tokens="attended"), processor=processor)
    looks = ask.look(tiny_image(), ["what is red", "what"])
    assert [[word for word, _ in look.words] for look in looks] == [["what", "is", "red"], ["what"]]


class PieceTokenizer(WordTokenizer):
    """As a sentence-piece model: a token that begins a word is marked."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.words += ["\u2581what", "\u2581", "re", "d"]

    def _tokenize(self, text):
        return {"what": ["\u2581what"], "what red": ["\u2581what", "\u2581", "re", "d"]}[text]


def test_pieces_of_a_tokenizer_without_offsets_are_joined_to_words():
    """SigLIP's tokenizer is one of these."""
    words = shares_of(PieceTokenizer(), "what red")
    assert words == [("what", 2 / 14), ("red", pytest.approx(12 / 14))]
