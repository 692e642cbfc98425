"""The words of the controlled-sentiment world.

Opinion words carry a polarity and a strength; every other word is neutral. The evidence for
the latent sentiment is in the opinion words alone, so that its posterior can be read off a text.
"""

from __future__ import annotations

STRONG, MILD = "strong", "mild"

# adjectives[(polarity, strength)]
ADJECTIVES: dict[tuple[int, str], list[str]] = {
    (+1, STRONG): (
        "brilliant superb wonderful magnificent stunning unforgettable perfect extraordinary "
        "masterful flawless"
    ).split(),
    (+1, MILD): (
        "good nice pleasant charming funny warm solid clever fresh likable touching enjoyable "
        "decent sweet lively"
    ).split(),
    (-1, STRONG): (
        "awful terrible horrible dreadful unwatchable atrocious disastrous worthless pathetic painful"
    ).split(),
    (-1, MILD): (
        "bad dull slow weak flat boring clumsy predictable thin silly tired confusing messy bland "
        "forgettable"
    ).split(),
}
VERBS: dict[tuple[int, str], list[str]] = {
    (+1, STRONG): ["loved", "adored"],
    (+1, MILD): ["liked", "enjoyed", "admired"],
    (-1, STRONG): ["hated", "despised"],
    (-1, MILD): ["disliked", "regretted", "resented"],
}
NOUNS: dict[tuple[int, str], list[str]] = {
    (+1, STRONG): ["masterpiece", "triumph"],
    (+1, MILD): ["delight", "treat", "gem"],
    (-1, STRONG): ["disaster", "catastrophe"],
    (-1, MILD): ["disappointment", "bore", "letdown"],
}
OPINIONS: dict[str, tuple[int, str]] = {
    word: kind
    for table in (ADJECTIVES, VERBS, NOUNS)
    for kind, words in table.items()
    for word in words
}

NEGATORS = ["not", "never", "hardly"]
INTENSIFIERS = ["really", "very", "quite", "so", "truly", "rather"]

PEOPLE = (
    "anna david maria peter julia marcus elena victor sarah oscar nina thomas clara hugo irene felix martha leon vera simon"
).split()
ROLES = (
    "detective teacher soldier dancer doctor farmer painter thief sailor widow lawyer pilot singer "
    "priest journalist gambler judge baker poet waiter"
).split()
DEEDS = (
    "finds loses follows leaves meets saves hides steals remembers forgets visits discovers protects "
    "chases betrays rescues inherits"
).split()
OBJECTS = "letter secret map ring diary painting key photograph fortune dog brother daughter violin diamond passport horse".split()
PLACES = (
    "paris london berlin rome chicago boston vienna brooklyn madrid tokyo dublin prague"
).split()
SETTINGS = "village desert school hospital ship farm castle hotel prison theater forest harbor library palace bakery".split()
TIMES = "war storm wedding funeral winter summer trial strike flood election".split()
ADVERBS = "slowly suddenly quietly finally secretly often bravely patiently".split()


class Domain:
    """The nouns of one kind of review."""

    def __init__(
        self, works: str, kinds: str, aspects: str, parts: str, makers: str, consumed: str
    ) -> None:
        self.works, self.kinds = works.split(), kinds.split()
        self.aspects, self.parts = aspects.split(), parts.split()
        self.makers, self.consumed = makers.split(), consumed.split()

    def nouns(self) -> set[str]:
        """Words by which the domain can be told."""
        return {*self.works, *self.aspects, *self.parts, *self.makers}


MOVIES = Domain(
    works="movie film picture drama comedy thriller western romance sequel musical mystery documentary",
    kinds="romantic historical animated french italian modern independent quiet british korean silent",
    aspects=(
        "plot story script acting ending music photography dialogue editing pacing humor cast "
        "soundtrack direction opening finale lighting narration camerawork"
    ),
    parts="actors characters scenes jokes effects songs costumes performances stunts sets",
    makers="director writer producer star",
    consumed="watched saw rented finished",
)
# Held out of all training: book reviews share the opinions and differ in the nouns.
BOOKS = Domain(
    works="novel book memoir trilogy biography paperback",
    kinds="gothic russian literary illustrated translated short",
    aspects="prose narration style plot ending language structure premise vocabulary",
    parts="chapters characters pages sentences metaphors footnotes",
    makers="author narrator translator novelist",
    consumed="read opened borrowed finished",
)
