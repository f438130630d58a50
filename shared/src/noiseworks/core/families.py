"""The families that methods are grouped by, read from the keywords of the installed distributions.

A method's `pyproject.toml` says `keywords = ["images", "calibrates"]`: its family, and what it costs before it can be
used. Both are in the metadata of its wheel.
"""

from collections.abc import Iterable, Mapping
from importlib.metadata import Distribution
from types import MappingProxyType

# Family -> title, in the order in which overviews show them.
FAMILIES: Mapping[str, str] = MappingProxyType(
    {
        "images": "Image generation",
        "language": "Masked diffusion language models",
        "policies": "Robot policies",
        "driving": "Driving",
        "motion": "Human motion",
        "rl": "Reinforcement learning",
        "tuning": "Tuning image models",
        "backbones": "Backbones",
        "protection": "Image protection",
        "theory": "Theory",
    }
)
OTHERS = "Others"
# Keyword -> what a user has to do before the method works on a model of theirs.
COSTS: Mapping[str, str] = MappingProxyType(
    {"training-free": "no", "calibrates": "calibrates in minutes", "trains": "yes"}
)


def keywords_of(distribution: Distribution | None) -> frozenset[str]:
    """Return a distribution's keywords."""
    text = (distribution.metadata["Keywords"] or "") if distribution else ""
    return frozenset(word.strip() for word in text.split(",") if word.strip())


def family_of(distribution: Distribution | None) -> str | None:
    """Return a distribution's family, or None when its keywords name none."""
    found = keywords_of(distribution)
    return next((family for family in FAMILIES if family in found), None)


def cost_of(distribution: Distribution | None) -> str | None:
    """Return what a method costs before it can be used, as a key of `COSTS`, or None when it does not say."""
    found = keywords_of(distribution)
    return next((cost for cost in COSTS if cost in found), None)


def by_family(methods: Iterable[tuple[str, str | None]]) -> dict[str, list[str]]:
    """Return slugs grouped under the titles of their families, in the order of `FAMILIES`, sorted inside.

    Args:
        methods: Pairs of slug and family (a key of `FAMILIES`, or None).
    """
    pairs = sorted(methods, key=lambda pair: pair[0])
    grouped = {title: [slug for slug, own in pairs if own == family] for family, title in FAMILIES.items()}
    grouped[OTHERS] = [slug for slug, family in pairs if family not in FAMILIES]
    return {title: slugs for title, slugs in grouped.items() if slugs}
