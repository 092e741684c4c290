"""From class names to text prompts and back: captions, the tokens of each word, which prompt a box answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

DEFAULT_PROMPTS: dict[str, tuple[str, ...]] = {
    "car": ("car", "van"),
    "truck": ("truck",),
    "trailer": ("trailer",),
    "bus": ("bus",),
    "construction_vehicle": ("excavator", "bulldozer", "crane"),
    "bicycle": ("bicycle",),
    "motorcycle": ("motorcycle", "scooter"),
    "pedestrian": ("person", "pedestrian"),
}
"""Nouns for the movable classes. Several words in one prompt invite half matches ("construction vehicle" answers to any
vehicle), so a class is better served by several short prompts."""

_SEPARATORS = ".?"
"""GroundingDINO ends a phrase at these, so a prompt cannot hold them."""


@dataclass(frozen=True)
class Prompts:
    """All prompts in order, and the class index of each.

    Attributes:
        texts: lower case, single spaces, every one once.
        classes: index into the data set's classes, one per text.
    """

    texts: tuple[str, ...]
    classes: tuple[int, ...]

    @classmethod
    def of(cls, prompts: Mapping[str, Sequence[str]], classes: Sequence[str]) -> "Prompts":
        """Prompts by class name, for a data set with these `classes` (or some of them).

        Raises:
            ValueError: a class the data set has not, no prompt at all, an empty prompt, one with "." or "?", one that
                stands for two classes.
        """
        owner: dict[str, str] = {}
        for name, texts in prompts.items():
            if name not in classes:
                raise ValueError(f"prompts: class {name!r} is not one of this data set's: {', '.join(classes)}")
            for given in texts:
                text = " ".join(given.lower().split())
                if not text or any(mark in text for mark in _SEPARATORS):
                    raise ValueError(f"prompts.{name} = {given!r}: a prompt is one or more words, without . or ?")
                if owner.setdefault(text, name) != name:
                    raise ValueError(f"prompts: {text!r} stands for {owner[text]!r} and for {name!r}: keep one")
        if not owner:
            raise ValueError("prompts: none given, expected such as {car: [car, van], pedestrian: [person]}")
        return cls(tuple(owner), tuple(classes.index(name) for name in owner.values()))

    def class_of(self, prompts: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Class index of each prompt index."""
        return np.asarray(self.classes, np.int64)[prompts]


@dataclass(frozen=True)
class Caption:
    """Some of the prompts as one text, "car. construction vehicle.", with the place of every word in it.

    Attributes:
        text: what the text encoder reads.
        prompts: indices of the prompts, in the order of the text.
        words: for each of them, (start, stop) characters of its words.
    """

    text: str
    prompts: tuple[int, ...]
    words: tuple[tuple[tuple[int, int], ...], ...]

    @classmethod
    def of(cls, texts: Sequence[str], prompts: Sequence[int]) -> "Caption":
        """The prompts `prompts` (indices into `texts`) in one caption."""
        caption, places = "", []
        for index in prompts:
            caption += " " if caption else ""
            spans = []
            for number, word in enumerate(texts[index].split(" ")):
                caption += " " if number else ""
                spans.append((len(caption), len(caption) + len(word)))
                caption += word
            caption += "."
            places.append(tuple(spans))
        return cls(caption, tuple(prompts), tuple(places))

    def word_tokens(self, offsets: Sequence[tuple[int, int]]) -> list[list[list[int]]]:
        """Token indices of each word of each prompt.

        Args:
            offsets: (start, stop) characters of each token, (0, 0) for special ones, as tokenizers report them.

        Raises:
            ValueError: a word without a token: the text was cut.
        """
        found = []
        for index, spans in enumerate(self.words):
            tokens = [[t for t, (a, b) in enumerate(offsets) if b > a and a >= s and b <= e] for s, e in spans]
            if not all(tokens):
                start, stop = spans[0][0], spans[-1][1]
                raise ValueError(
                    f"the caption is too long for the text encoder: no token for {self.text[start:stop]!r} "
                    f"(prompt {index + 1} of {len(self.words)} in one caption); use fewer prompts"
                )
            found.append(tokens)
        return found


def captions(prompts: Prompts, joint: bool) -> list[Caption]:
    """All prompts in one caption (joint), or one caption for each class: slower, but classes cannot disturb another."""
    if joint:
        return [Caption.of(prompts.texts, range(len(prompts.texts)))]
    groups = [[i for i, kind in enumerate(prompts.classes) if kind == one] for one in dict.fromkeys(prompts.classes)]
    return [Caption.of(prompts.texts, group) for group in groups]


def match_prompts(
    token_scores: Float[np.ndarray, "queries tokens"],
    words: Sequence[Sequence[Sequence[int]]],
    least_score: Float[np.ndarray, " prompts"],
    least_word: float,
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Which prompt of a caption each query box answers, if any.

    A word scores what its best token does. A prompt scores what its best word does (as upstream's box threshold counts)
    and is eligible only if every one of its words reaches `least_word`: "construction vehicle" is not met by "vehicle"
    alone. Of the eligible the one with the best mean over its words wins, the earlier one of equals.

    Args:
        token_scores: in [0, 1] (sigmoid of the logits); NaN counts as 0.
        words: token indices by prompt and word, from `Caption.word_tokens`.
        least_score: threshold of each prompt's score.
        least_word: threshold of each word (upstream's text threshold).

    Returns:
        Query indices, ascending; the position in the caption of the prompt that each answers; its score.
    """
    scores = np.nan_to_num(token_scores.astype(np.float64), nan=0.0)
    best = np.zeros((len(scores), len(words)))
    mean, weakest = best.copy(), best.copy()
    for p, prompt in enumerate(words):
        word = np.stack([scores[:, tokens].max(axis=1) for tokens in prompt], axis=1)
        best[:, p], mean[:, p], weakest[:, p] = word.max(axis=1), word.mean(axis=1), word.min(axis=1)
    eligible = (best >= least_score) & (weakest >= least_word)
    chosen = np.where(eligible, mean, -1.0).argmax(axis=1)
    kept = np.flatnonzero(eligible.any(axis=1))
    return kept, chosen[kept], best[kept, chosen[kept]]
