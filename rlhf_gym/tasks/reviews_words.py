"""The words of the language of reviews, and the prompts made of them."""

from __future__ import annotations

from dataclasses import dataclass

ITEMS = ("soup", "bread", "salad", "pasta", "fish", "curry", "cake", "pie", "stew", "rice", "tea", "coffee")
ASPECTS = ("service", "price", "room", "music", "view", "portion")
NAMES = ("harbour", "garden", "market", "station", "castle", "mill", "bridge", "corner")
KINDS = ("cafe", "inn", "diner")
HEADINGS = ("review of", "advert for", "complaint about", "chat about")
"""What a prompt begins with. Only the first is a task's; the language model has read the others too."""

PRAISE = {
    "any": ("good", "nice", "lovely", "great"),
    "dish": ("tasty", "fresh", "rich"),
    "service": ("kind", "quick", "friendly"),
    "price": ("fair", "modest", "sensible"),
    "room": ("cosy", "bright", "clean"),
    "music": ("soft", "cheerful", "gentle"),
    "view": ("pretty", "wide", "calm"),
    "portion": ("generous", "hearty", "ample"),
}
COMPLAINTS = {
    "any": ("bad", "poor", "dull", "awful"),
    "dish": ("bland", "cold", "stale"),
    "service": ("slow", "rude", "careless"),
    "price": ("high", "silly", "unfair"),
    "room": ("dark", "cramped", "dirty"),
    "music": ("loud", "harsh", "tinny"),
    "view": ("grey", "ugly", "blocked"),
    "portion": ("tiny", "mean", "measly"),
}
PLAIN = ("fine", "plain", "usual", "ordinary", "average")
GUSHING = ("superb", "perfect", "divine", "heavenly", "stunning", "flawless")
PRAISING_VERBS = ("liked", "enjoyed", "loved")
COMPLAINING_VERBS = ("disliked", "regretted")
PLAIN_VERBS = ("had", "tried", "ordered")
DEGREES = ("very", "quite", "rather", "really")
OPENERS = ("well", "anyway", "basically", "honestly")
FILLER_SENTENCES = ("you know how it goes .", "so that was that .")
FILLERS = (*OPENERS, "you", "know", "how", "goes", "so", "that")
DAYS = ("monday", "wednesday", "saturday", "sunday")
FUNCTION_WORDS = (
    *("review", "advert", "complaint", "chat", "of", "for", "about", "at", ":"),
    *("the", "and", "was", "seemed", "tasted", "it", "i", "we", "a", "what", "came", "to", "on"),
    *("would", "not", "come", "back", ".", "!"),
)

VOCABULARY: tuple[str, ...] = tuple(
    dict.fromkeys(
        word
        for group in (
            FUNCTION_WORDS,
            *(ITEMS, ASPECTS, NAMES, KINDS, DAYS),
            *PRAISE.values(),
            *COMPLAINTS.values(),
            *(PLAIN, GUSHING, PRAISING_VERBS, COMPLAINING_VERBS, PLAIN_VERBS, DEGREES, FILLERS),
        )
        for word in group
    )
)
"""Every word of prompts and texts, each once."""


@dataclass(frozen=True)
class Topic:
    """What a prompt asks about: `review of the soup and the service at the harbour cafe :`."""

    item: str
    """A dish, one of `ITEMS`."""
    aspect: str
    """An aspect of the dish, one of `ASPECTS`."""
    name: str
    """The place's name, one of `NAMES`."""
    kind: str
    """The place's kind, one of `KINDS`."""

    def prompt(self, heading: str = HEADINGS[0]) -> str:
        """The prompt that asks for a text about this."""
        return f"{heading} the {self.item} and the {self.aspect} at the {self.name} {self.kind} :"

    @classmethod
    def from_prompt(cls, prompt: str) -> Topic:
        """The topic of a prompt, whatever its heading.

        Raises:
            ValueError: the text is not a prompt of this language.
        """
        words = prompt.split()
        if len(words) == 12:
            topic = cls(item=words[3], aspect=words[6], name=words[9], kind=words[10])
            if prompt.split() == topic.prompt(" ".join(words[:2])).split() and topic._is_known(" ".join(words[:2])):
                return topic
        raise ValueError(
            f"expected a prompt like {cls(ITEMS[0], ASPECTS[0], NAMES[0], KINDS[0]).prompt()!r}, got {prompt!r}"
        )

    def _is_known(self, heading: str) -> bool:
        return (
            heading in HEADINGS
            and self.item in ITEMS
            and self.aspect in ASPECTS
            and self.name in NAMES
            and self.kind in KINDS
        )
