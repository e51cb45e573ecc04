"""The ways in which a model may write one label: with a space before it or without, in capitals or not.

A model that means ` True` may write `True`: what one of them is worth says less than what both are worth together.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

VariantRule = Literal["space", "case"]
Variants = tuple[VariantRule, ...] | dict[str, tuple[str, ...]]


RULES: tuple[VariantRule, ...] = ("space", "case")


def parse_variants(value: object) -> Variants:
    """A job's value as rules or a mapping. Raises ValueError for what is neither."""
    if isinstance(value, dict):
        return {_text(label): _texts(label, texts) for label, texts in value.items()}
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list | tuple):
        raise ValueError("is neither a list of space and case nor a mapping of labels to texts")
    for one in given:
        if one not in RULES:
            raise ValueError(f"{one!r:.60} is no rule; space and case are, or map each label to its texts")
    return tuple(rule for rule in RULES if rule in given)


def _texts(label: object, texts: object) -> tuple[str, ...]:
    given = [texts] if isinstance(texts, str) else texts
    if not isinstance(given, list | tuple) or not given:
        raise ValueError(f"label {label!r:.60} has no list of texts")
    return tuple(dict.fromkeys(map(_text, given)))


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r:.60} is no text, or an empty one")
    return value


def all_variants(labels: Sequence[str], variants: Variants) -> dict[str, tuple[str, ...]]:
    """The texts that say each label, each once. Raises ValueError where a label has none, or one that is another's."""
    owner: dict[str, str] = {}
    found = {label: variants_of(label, variants) for label in labels}
    for label, texts in found.items():
        if not texts:
            raise ValueError(f"variants give no text for the label {label!r:.60}")
        for text in texts:
            other = owner.setdefault(text, label)
            if other != label:
                raise ValueError(
                    f"labels {other!r:.60} and {label!r:.60} have the variant {text!r:.60} in common; "
                    "say which texts are which label's, or take variants: []"
                )
    return found


def variants_of(label: str, variants: Variants) -> tuple[str, ...]:
    """By rules the label itself first; of a mapping, the texts that it gives."""
    if isinstance(variants, Mapping):
        return tuple(variants.get(label, ()))
    texts = [label]
    if "case" in variants:
        texts += [label.lower(), label.upper(), _capitalised(label)]
    if "space" in variants:
        texts += [text[1:] if text.startswith(" ") else f" {text}" for text in texts]
    return tuple(dict.fromkeys(texts))


def _capitalised(text: str) -> str:
    """With a capital where the first word begins; the rest stays as it is."""
    start = len(text) - len(text.lstrip())
    return text[:start] + text[start : start + 1].upper() + text[start + 1 :]
