from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Metaspace
from tokenizers.trainers import BpeTrainer

from boresight.report.tokens import FILE, TokenTexts, keep_tokenizer

TEXTS = ["the angle AOB is 130 degrees", "三角形的角", "naïve 🙂 triangle", "<think>a</think>"]


def trained(kind: str) -> Tokenizer:
    """Tokens that are bytes, where one character may be several of them; or words that begin with their space."""
    tokenizer = Tokenizer(BPE())
    if kind == "bytes":
        tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
        alphabet = ByteLevel.alphabet()
    else:
        tokenizer.pre_tokenizer, tokenizer.decoder = Metaspace(), MetaspaceDecoder()
        alphabet = []
    tokenizer.train_from_iterator(
        TEXTS, BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False)
    )
    return tokenizer


@pytest.mark.parametrize("kind", ["bytes", "words"])
def test_the_texts_of_tokens_joined_are_the_text(kind: str) -> None:
    tokenizer = trained(kind)
    encoded = [[*tokenizer.encode(text).ids, 0] for text in TEXTS]
    texts = TokenTexts(tokenizer)(encoded)
    if kind == "bytes":
        assert ["".join(each) for each in texts] == [f"{text}<|end|>" for text in TEXTS]
    assert ["".join(each) for each in texts] == tokenizer.decode_batch(encoded, skip_special_tokens=False)
    assert [len(each) for each in texts] == [len(ids) for ids in encoded]
    assert all(each[-1].endswith("<|end|>") for each in texts)


def test_what_a_policy_samples_need_be_no_text() -> None:
    """Random bytes, characters cut in the middle and at the end: one text a token all the same."""
    tokenizer, chooser = trained("bytes"), random.Random(0)
    sampled = [[chooser.randrange(tokenizer.get_vocab_size()) for _ in range(40)] for _ in range(50)]
    sampled.append(tokenizer.encode("三").ids[:-1])
    texts = TokenTexts(tokenizer)(sampled)
    assert [len(each) for each in texts] == [len(ids) for ids in sampled]
    assert ["".join(each) for each in texts] == tokenizer.decode_batch(sampled, skip_special_tokens=False)
    assert TokenTexts(tokenizer)([[]]) == [[]]


def test_the_tokenizer_is_found_beside_the_completions_or_in_the_newest_checkpoint(tmp_path: Path) -> None:
    assert TokenTexts.of_run(tmp_path) is None
    keep_tokenizer(tmp_path, SimpleNamespace())  # one without a fast form
    assert TokenTexts.of_run(tmp_path) is None
    bytes_, words = trained("bytes"), trained("words")
    for step, tokenizer in ((9, words), (10, bytes_)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        tokenizer.save(str(tmp_path / f"checkpoint-{step}" / "tokenizer.json"))
    ids = bytes_.encode("角").ids
    found = TokenTexts.of_run(tmp_path)
    assert found is not None and "".join(found([ids])[0]) == "角"
    keep_tokenizer(tmp_path, SimpleNamespace(backend_tokenizer=words))
    assert (tmp_path / FILE).exists()
    found = TokenTexts.of_run(tmp_path)
    assert found is not None and found([words.encode("the angle").ids]) == TokenTexts(words)(
        [words.encode("the angle").ids]
    )
