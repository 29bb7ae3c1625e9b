"""Numbers and lists in words."""
from collections.abc import Sequence


def first_of(items: Sequence[str], most: int = 10, separator: str = ', ') -> str:
    """The first items, and how many more there are."""
    more = f' and {len(items) - most} more' if len(items) > most else ''
    return separator.join(items[:most]) + more


def duration_in_words(seconds: float) -> str:
    """Seconds as '5 min 3 s', or as '2 h 5 min'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours} h {minutes} min' if hours else f'{minutes} min {seconds} s'
