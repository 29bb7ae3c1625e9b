"""Numbers in words."""


def duration_in_words(seconds: float) -> str:
    """Seconds as '5 min 3 s', or as '2 h 5 min'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours} h {minutes} min' if hours else f'{minutes} min {seconds} s'
