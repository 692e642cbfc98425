"""The controlled-sentiment world, after section 5.1 of Rafailov et al. 2023.

A review has a latent sentiment s in {-1, +1}, each with probability one half. It holds a few
opinions; an opinion of a given strength agrees with s with a known probability, independently
of all else, and the words that state it depend on its polarity and strength alone. So the
posterior of s given a text is exact:

    log P(s=+1 | text) / P(s=-1 | text) = sum over opinions of polarity * log(q / (1 - q)).

The gold reward is r = SCALE * (P(s=+1 | text) - P(s=-1 | text)), in (-SCALE, SCALE).
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from betaflow.data.splits import in_eval
from betaflow.worlds import lexicon as words

if TYPE_CHECKING:
    from betaflow.config import WorldSettings

Row = dict[str, Any]

SCALE = 2.5
# P(an opinion's polarity is the latent sentiment), by the opinion's strength.
AGREEMENT = {words.STRONG: 0.8, words.MILD: 0.65}
EVIDENCE = {strength: math.log(q / (1 - q)) for strength, q in AGREEMENT.items()}
P_STRONG = 0.35

_WORD = re.compile(r"[a-z]+")


def log_odds(text: str) -> float:
    """Log posterior odds of a positive sentiment, given the text (nats).

    A negator, with at most one intensifier after it, turns the opinion that follows: "not very
    good" is a mild negative opinion, "never awful" a mild positive one.
    """
    total = 0.0
    found = _WORD.findall(text.lower())
    for place, word in enumerate(found):
        kind = words.OPINIONS.get(word)
        if kind is None:
            continue
        polarity, strength = kind
        before = place - 1
        if before >= 0 and found[before] in words.INTENSIFIERS:
            before -= 1
        if before >= 0 and found[before] in words.NEGATORS:
            polarity, strength = -polarity, words.MILD
        total += polarity * EVIDENCE[strength]
    return total


def gold_reward(text: str) -> float:
    """The exact reward of a whole review (prompt and completion), in (-2.5, 2.5)."""
    return SCALE * math.tanh(log_odds(text) / 2)


class Review(NamedTuple):
    """A text and the latent sentiment it was written from, -1 or +1."""

    text: str
    sentiment: int


class World(NamedTuple):
    """Rows for every file that `prepare` writes."""

    sft_train: list[Row]
    sft_eval: list[Row]
    prompts_train: list[Row]
    prompts_unlabelled: list[Row]
    prompts_eval: list[Row]
    prompts_ood: list[Row]
    cloze: list[Row]


class _Writer:
    """Writes one review: draws opinions given the latent sentiment and states them."""

    def __init__(self, rng: random.Random, domain: words.Domain, sentiment: int) -> None:
        self.rng, self.domain, self.sentiment = rng, domain, sentiment
        self.pick = rng.choice
        self.work = rng.choice(domain.works)

    def polarity(self) -> tuple[int, str]:
        strength = words.STRONG if self.rng.random() < P_STRONG else words.MILD
        agrees = self.rng.random() < AGREEMENT[strength]
        return (self.sentiment if agrees else -self.sentiment), strength

    def adjective(self, opinion: tuple[int, str]) -> str:
        polarity, strength = opinion
        # A mild opinion may be stated by negating any adjective of the other polarity.
        if strength == words.MILD and self.rng.random() < 0.15:
            other = (-polarity, self.pick([words.MILD, words.MILD, words.STRONG]))
            middle = f"{self.pick(words.INTENSIFIERS)} " if self.rng.random() < 0.3 else ""
            return f"{self.pick(words.NEGATORS)} {middle}{self.pick(words.ADJECTIVES[other])}"
        middle = f"{self.pick(words.INTENSIFIERS)} " if self.rng.random() < 0.3 else ""
        return middle + self.pick(words.ADJECTIVES[opinion])

    def aspect(self) -> tuple[str, str]:
        if self.rng.random() < 0.35:
            return f"the {self.pick(self.domain.parts)}", self.pick(
                ["were", "are", "seemed", "felt"]
            )
        return f"the {self.pick(self.domain.aspects)}", self.pick(["was", "is", "seemed", "felt"])

    # Sentences with opinions.

    def judged(self) -> str:
        what, verb = self.aspect()
        return f"{what} {verb} {self.adjective(self.polarity())}"

    def two_judged(self) -> str:
        first, second = self.polarity(), self.polarity()
        joint = "and" if first[0] == second[0] else "but"
        (what, verb), (other, verb_too) = self.aspect(), self.aspect()
        start = f"{what} {verb} {self.adjective(first)}"
        return f"{start} {joint} {other} {verb_too} {self.adjective(second)}"

    def whole(self) -> str:
        return f"the {self.work} {self.pick(['is', 'was'])} {self.adjective(self.polarity())}"

    def by_someone(self) -> str:
        role = self.pick(self.domain.makers)
        return f"{self.pick(words.PEOPLE)} is {self.adjective(self.polarity())} as the {role}"

    def felt(self) -> str:
        verb = self.pick(words.VERBS[self.polarity()])
        return f"i {verb} {self.aspect()[0]} of this {self.work}"

    def verdict(self) -> str:
        noun = self.pick(words.NOUNS[self.polarity()])
        return f"{self.pick(['it is a', 'what a', 'this is a', 'in the end it is a'])} {noun}"

    # Sentences without.

    def story(self) -> str:
        deed = f"{self.pick(words.DEEDS)} a {self.pick(words.OBJECTS)}"
        where = self.pick(
            [
                f"in {self.pick(words.PLACES)}",
                f"in a {self.pick(words.SETTINGS)}",
                f"after the {self.pick(words.TIMES)}",
            ]
        )
        return f"a {self.pick(words.ROLES)} {self.pick(words.ADVERBS)} {deed} {where}"

    def about(self) -> str:
        kind = self.pick(self.domain.kinds)
        return (
            f"this {kind} {self.work} is about a {self.pick(words.ROLES)} who "
            f"{self.pick(words.DEEDS)} a {self.pick(words.OBJECTS)}"
        )

    def occasion(self) -> str:
        who = self.pick(["i", f"{self.pick(words.PEOPLE)} and i", "we"])
        return (
            f"{who} {self.pick(self.domain.consumed)} this {self.work} "
            f"{self.pick(['before', 'after', 'during'])} the {self.pick(words.TIMES)}"
        )

    def review(self) -> str:
        opening: list[Callable[[], str]] = [
            self.about,
            self.occasion,
            self.whole,
            self.judged,
            self.felt,
        ]
        middle: list[Callable[[], str]] = [
            self.story,
            self.judged,
            self.judged,
            self.two_judged,
            self.by_someone,
            self.felt,
            self.whole,
        ]
        sentences = [self.pick(opening)()]
        sentences += [self.pick(middle)() for _ in range(self.rng.randint(1, 3))]
        if self.rng.random() < 0.6:
            sentences.append(self.verdict())
        return ". ".join(sentences) + "."


def write_review(rng: random.Random, domain: words.Domain = words.MOVIES) -> Review:
    """Draw a sentiment and a review that states it."""
    sentiment = rng.choice([-1, 1])
    return Review(_Writer(rng, domain, sentiment).review(), sentiment)


def build(settings: WorldSettings, seed: int, eval_fraction: float) -> World:
    """Make the world's rows. The same arguments give the same rows.

    Prompts are prefixes of 2 to 8 words of reviews other than those that SFT learns (which may
    begin alike). They are split by hash, as every prompt is (`betaflow.data.splits`).
    """
    reviews = _texts(random.Random(f"{seed}/reviews"), settings.reviews)
    held_out = _texts(random.Random(f"{seed}/held-out"), max(settings.reviews // 16, 64))
    labelled = settings.prompts
    inside = _prefixes(
        random.Random(f"{seed}/prompts"), words.MOVIES, labelled + settings.unlabelled
    )
    first, rest = inside[:labelled], inside[labelled:]
    return World(
        sft_train=[{"text": text} for text in reviews],
        sft_eval=[{"text": text} for text in held_out],
        prompts_train=_prompt_rows(p for p in first if not in_eval(p, eval_fraction)),
        prompts_unlabelled=_prompt_rows(p for p in rest if not in_eval(p, eval_fraction)),
        prompts_eval=_prompt_rows(p for p in inside if in_eval(p, eval_fraction)),
        prompts_ood=_prompt_rows(
            _prefixes(random.Random(f"{seed}/books"), words.BOOKS, settings.out_of_domain)
        ),
        cloze=_cloze(random.Random(f"{seed}/cloze"), held_out[:200]),
    )


def _texts(rng: random.Random, count: int) -> list[str]:
    return [write_review(rng).text for _ in range(count)]


def _prefixes(rng: random.Random, domain: words.Domain, count: int) -> list[str]:
    """Distinct prefixes; of book reviews, those that show they are about a book."""
    own = domain.nouns() - words.MOVIES.nouns() if domain is not words.MOVIES else None
    found: dict[str, None] = {}
    while len(found) < count:
        text = write_review(rng, domain).text.split(" ")
        prefix = " ".join(text[: rng.randint(2, 8)])
        if own is None or own & set(_WORD.findall(prefix)):
            found[prefix] = None
    return list(found)


def _prompt_rows(prompts: Iterable[str]) -> list[Row]:
    return [{"id": hashlib.sha256(p.encode()).hexdigest()[:16], "prompt": p} for p in prompts]


def _cloze(rng: random.Random, texts: list[str]) -> list[Row]:
    """A word of a held-out review is to be told from three others of the vocabulary."""
    vocabulary = sorted({word for text in texts for word in _WORD.findall(text)})
    rows = []
    for text in texts:
        parts = text.rstrip(".").split(" ")
        place = rng.randrange(3, len(parts))
        answer = parts[place].rstrip(".")
        choices = rng.sample([word for word in vocabulary if word != answer], 3)
        gold = rng.randrange(4)
        choices.insert(gold, answer)
        rows.append({"query": " ".join(parts[:place]), "choices": choices, "gold": gold})
    return rows
