"""Classes of two sets, matched by name."""
import unicodedata


def label_table(own: tuple[str, ...], wanted: tuple[str, ...], name: str) -> list[int]:
    """Label in `wanted` of every class of `own`, by name; an accent may be written as one character or as two.

    Raises:
        ValueError: If a class of `own` is not in `wanted`, or if names repeat and the two lists differ.
    """
    if own == wanted:
        return list(range(len(own)))
    own, wanted = (tuple(unicodedata.normalize('NFC', each) for each in names) for names in (own, wanted))
    labels = {class_name: label for label, class_name in enumerate(wanted)}
    unknown = [class_name for class_name in own if class_name not in labels]
    if unknown:
        raise ValueError(
            f'{name} has {len(unknown)} class(es) that the training set does not have, such as {unknown[0]!r}. '
            f'Allowed are {", ".join(wanted[:10])}{", ..." if len(wanted) > 10 else ""}.'
        )
    if len(set(own)) < len(own) or len(labels) < len(wanted):
        raise ValueError(
            f'{name} orders its classes in another way, and several have the same name, so they cannot be matched: '
            'rename these classes.')
    return [labels[class_name] for class_name in own]
