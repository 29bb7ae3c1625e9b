"""Classes of two sets, matched by name."""
from typing import Any


def label_table(own: tuple[str, ...], wanted: tuple[str, ...], name: str) -> list[int]:
    """Label in `wanted` of every class of `own`, by name.

    Raises:
        ValueError: If a class of `own` is not in `wanted`, or if names repeat and the two lists differ.
    """
    if own == wanted:
        return list(range(len(own)))
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


def check_same_classes(train_set: Any, eval_set: Any) -> None:
    """Refuse an evaluation set whose labels stand for other classes than in the training set.

    Raises:
        ValueError: If the class names or their order differ. The error names the first difference.
    """
    train, evaluation = train_set.class_names, eval_set.class_names
    for label, (ours, theirs) in enumerate(zip(train, evaluation)):  # noqa: B905 the length is compared below
        if ours != theirs:
            raise ValueError(
                f'Label {label} is {ours!r} in {train_set.name} and {theirs!r} in {eval_set.name}: load the second '
                f'by create_dataset(..., class_names=train_set.class_names).'
            )
    if len(train) != len(evaluation):
        raise ValueError(
            f'{train_set.name} has {len(train)} classes and {eval_set.name} has {len(evaluation)}: load the second by '
            f'create_dataset(..., class_names=train_set.class_names).'
        )
