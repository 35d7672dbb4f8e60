"""A number of things in a sentence."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 image`, `0 images`, `2 boxes`: the number and the noun, whose plural takes an s (es after x).

    Args:
        number: of things.
        noun: of one thing, with what agrees with it, such as `image has no picture`.
        plural: the same of several things, where it is more than an added s.
    """
    plural = plural or f"{noun}{'es' if noun.endswith('x') else 's'}"
    return f"{number} {noun if number == 1 else plural}"
