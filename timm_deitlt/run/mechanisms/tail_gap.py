"""Whether stage two memorises the few tail images."""
from typing import Any

from torch.utils.data import IterableDataset, Subset

from ...engine.checkpoint import load_checkpoint
from ...engine.trainer import evaluate
from ...evaluation import ShotEvaluator
from ...models.weights import load_weights
from ..teacher_file import reorder_classes
from .subject import Subject, choose


def measure_tail_gap(subject: Subject, images: Any, num_images: int) -> dict[str, list[float]] | None:
    """Accuracy of the prediction on tail classes, at the start of stage two and with the subject's weights.

    Args:
        subject: A run. Its folder may hold the milestone at the start of stage two.
        images: Evaluation images.
        num_images: Largest number of tail training images, which are prepared as in evaluation, without augmentation.

    Returns:
        Three lists: 'epochs', after which the accuracy was measured; 'train' and 'test', the mean accuracy of the tail
        classes in percent on training and on evaluation images. They have two entries, or one without the milestone.
        None if the subject is not a run, or there are no tail images.
    """
    train, folder = subject.data.train, subject.folder
    tail = subject.data.shots.groups['tail']
    if subject.epochs is None or folder is None or not tail or isinstance(train, IterableDataset):
        return None
    chosen = choose([int(label) for label in train.targets], tail, num_images)
    parts = {'train': Subset(train, chosen), 'test': images}
    start = subject.settings.stage_two.start_epoch
    milestone = folder / f'milestone-{start}.pth.tar'
    found: dict[str, list[float]] = {'epochs': [], 'train': [], 'test': []}
    if start < subject.epochs and milestone.is_file():
        weights = {name: value.clone() for name, value in subject.model.state_dict().items()}
        checkpoint = load_checkpoint(milestone)
        load_weights(subject.model, checkpoint['state_dict'], str(milestone))
        reorder_classes(subject.model, checkpoint['data']['class_names'], train.class_names, str(milestone))
        _add(found, subject, start, parts)
        subject.model.load_state_dict(weights)
    _add(found, subject, subject.epochs, parts)
    return found if None not in (*found['train'], *found['test']) else None


def _add(found: dict[str, list[float]], subject: Subject, epochs: int, parts: dict[str, Any]) -> None:
    found['epochs'].append(epochs)
    for name, images in parts.items():
        evaluator = ShotEvaluator(subject.data.shots, (*subject.answer, *subject.experts), device=subject.device)
        metrics = evaluate(
            subject.model, subject.batches(images), evaluator, subject.autocast, fusions=subject.answer)
        found[name].append(metrics[(*subject.answer, 'mean')[0]]['tail'])
