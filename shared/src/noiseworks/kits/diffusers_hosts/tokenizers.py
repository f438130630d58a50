"""Tokenizers of a few words, built in memory: a listed word is one token, any other falls into characters."""

import json
import string
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import CLIPTokenizer, T5Tokenizer


def tiny_clip_tokenizer(words: Iterable[str], max_length: int = 16) -> "CLIPTokenizer":
    """Return a CLIP tokenizer in which every word is one token.

    Args:
        words: The vocabulary, lower case.
        max_length: Tokens of a padded prompt, the text encoder's `max_position_embeddings`.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    characters = [chr(code) for code in range(33, 127)]
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    bpe.normalizer, bpe.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=100_000,
        min_frequency=1,
        end_of_word_suffix="</w>",
        initial_alphabet=characters,
        show_progress=False,
    )
    bpe.train_from_iterator(sorted(set(words)), trainer)
    model = json.loads(bpe.to_str())["model"]
    vocab = dict(model["vocab"])
    for piece in (piece for c in characters for piece in (c, c + "</w>")):
        vocab.setdefault(piece, len(vocab))
    # The CLIP text model pools at the largest id, so the end token must come last.
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocab[special] = len(vocab)
    merges = [tuple(merge) for merge in model["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_length)


def tiny_t5_tokenizer(words: Iterable[str], max_length: int = 16) -> "T5Tokenizer":
    """Return a T5 tokenizer in which every word is one token; arguments as in `tiny_clip_tokenizer`."""
    from transformers import T5Tokenizer

    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]  # ids 0, 1 and 2 are fixed
    vocab += [("\u2581" + word, -1.0) for word in sorted(set(words))]
    vocab += [(c, -10.0) for c in string.ascii_lowercase + string.digits + ".,!"]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=max_length)
