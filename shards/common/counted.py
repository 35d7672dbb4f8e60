"""A number of things in a sentence."""


def counted(number: int, noun: str) -> str:
    """`1 image`, `0 images`, `2 boxes`: the number and the noun, whose plural takes an s (es after x)."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{'es' if noun.endswith('x') else 's'}"
