"""Tokenizers of a few words, built in memory: a listed word is one token, any other falls into characters."""

import string
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import CLIPTokenizer, T5Tokenizer

_END = "</w>"


def tiny_clip_tokenizer(words: Iterable[str], max_length: int = 16) -> "CLIPTokenizer":
    """Return a CLIP tokenizer in which every word is one token.

    Args:
        words: The vocabulary, lower case.
        max_length: Tokens of a padded prompt, the text encoder's `max_position_embeddings`.
    """
    from transformers import CLIPTokenizer

    merges = bpe_merges(words)
    characters = [chr(code) for code in range(33, 127)]
    pieces = [*(piece for c in characters for piece in (c, c + _END)), *(a + b for a, b in merges)]
    # The CLIP text model pools at the largest id, so the end token must come last.
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_length)


def bpe_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Return byte-pair merges that make every word one token.

    The most frequent pair comes first and ties go by the alphabet, so that, unlike a trained tokenizer's, the
    ids are the same in every process.

    Args:
        words: Lower-case words.
    """
    split = {word: [*word[:-1], word[-1] + _END] for word in set(words)}
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for pieces in split.values() for pair in pairwise(pieces)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        split = {word: _merged(pieces, best) for word, pieces in split.items()}
    return merges


def _merged(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    found: list[str] = []
    for piece in pieces:
        if found and (found[-1], piece) == pair:
            found[-1] += piece
        else:
            found.append(piece)
    return found


def tiny_t5_tokenizer(words: Iterable[str], max_length: int = 16) -> "T5Tokenizer":
    """Return a T5 tokenizer in which every word is one token; arguments as in `tiny_clip_tokenizer`."""
    from transformers import T5Tokenizer

    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]  # ids 0, 1 and 2 are fixed
    vocab += [("\u2581" + word, -1.0) for word in sorted(set(words))]
    vocab += [(c, -10.0) for c in string.ascii_lowercase + string.digits + ".,!"]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=max_length)
