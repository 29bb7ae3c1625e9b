"""Conversion of released checkpoints to the parameter names of our models.

Sources: https://github.com/val-iisc/DeiT-LT (students, and the teachers it reads),
https://github.com/val-iisc/Saddle-LongTail (teachers trained by LDAM + SAM),
https://github.com/dvlab-research/Parametric-Contrastive-Learning (PaCo).
"""
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import timm
import torch

from ..benchmarks import BENCHMARKS, PAPER_TAGS, TAGS
from ..utils.words import first_of
from . import deit_lt, resnet_cifar, resnet_cosine  # noqa: F401  (registers what is created by name)

__all__ = ['CIFAR100_NAMES', 'ROWS', 'Released', 'convert', 'count_order', 'recognise', 'recognise_benchmark']

_ALLOWED = (
    'Allowed are the files of DeiT-LT and its teachers: a distilled ViT-tiny, -small or -base (with dist_token), a '
    'CIFAR ResNet-20, -32, -44 or -56, or a ResNet-50, each with a linear or a cosine classifier or wrapped by PaCo.'
)
_STUDENTS = {192: 'deit_lt_tiny', 384: 'deit_lt_small', 768: 'deit_lt_base'}
_CIFAR_DEPTHS = {(3,) * 3: 20, (5,) * 3: 32, (7,) * 3: 44, (9,) * 3: 56}
# Tensors that PaCo needs only in training, apart from its momentum encoder: the projection head and the queue
_PACO_TRAINING = re.compile(
    r'encoder_q\.fc\.([03]\.)?(weight|bias)|encoder_q\.fc\.1\.(weight|bias|running_mean|running_var'
    r'|num_batches_tracked)|linear_k\.(weight|bias)|queue(_l|_ptr)?'
)

# Class names in the order of the labels
CIFAR100_NAMES = tuple(re.findall(r'\w+', '''
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
'''))


# Their names of our data sets, in `args` of a checkpoint
_THEIRS = {
    'lt/cifar10': 'CIFAR10LT', 'lt/cifar100': 'CIFAR100LT', 'lt/imagenet': 'IMAGENETLT', 'lt/inat18': 'INAT18'}
ROWS = {name: TAGS[name] for name in PAPER_TAGS}


@dataclass(frozen=True)
class Released:
    """Content of a released checkpoint.

    Attributes:
        kind: 'student', or for a teacher 'paco', or 'linear' or 'cosine' after its classifier.
        architecture: Name for `timm.create_model`.
        num_classes: Number of classes.
        image_size: Side of its images in pixels. The weights of a ResNet do not say, so it is the usual size there.
        model_args: Further arguments for `timm.create_model`.
    """
    kind: str
    architecture: str
    num_classes: int
    image_size: int
    model_args: dict[str, Any] = field(default_factory=dict)


def recognise(state_dict: Mapping[str, torch.Tensor]) -> Released:
    """Find out from keys and shapes which released network a state dict belongs to.

    Two things are not in the weights. The number of attention heads of a student is that of the published size,
    width / 64. PaCo does not normalise the pooled feature, as in the released runs.

    Raises:
        ValueError: If it is another network. The error names what was found and what is allowed.
    """
    shapes = {key: tuple(value.shape) for key, value in _without_prefix(state_dict).items()}
    if 'dist_token' in shapes:
        return _recognise_student(shapes)
    encoder = 'encoder_q.' if 'encoder_q.conv1.weight' in shapes else ''
    blocks = _blocks(shapes, encoder)
    stem, middle = (shapes.get(f'{encoder}{name}.weight') for name in ('conv1', 'layer1.0.conv2'))
    if blocks in _CIFAR_DEPTHS and stem == (16, 3, 3, 3):
        architecture, width, image_size = f'resnet{_CIFAR_DEPTHS[blocks]}_cifar', 64, 32
    elif blocks == (3, 4, 6, 3) and f'{encoder}layer1.0.conv3.weight' in shapes and middle == (64, 64, 3, 3):
        architecture, width, image_size = 'resnet50', 2048, 224
    else:
        raise ValueError(f'Not a released network: the file holds {_describe(shapes)}. {_ALLOWED}')

    name = 'linear' if encoder or 'linear.weight' in shapes else 'fc'
    weight = shapes.get(f'{name}.weight', ())
    kind = 'paco' if encoder else 'linear' if f'{name}.bias' in shapes else 'cosine'
    features_dim = 0 if kind == 'cosine' else 1  # the released cosine classifiers are stored as [D, C]
    if len(weight) != 2 or weight[features_dim] != width:
        raise ValueError(
            f'Not a released network: the {name}.weight of this {architecture} has the shape {list(weight)}. Allowed '
            f'are [classes, {width}] with a bias (linear), and [{width}, classes] without one (cosine).')
    model_args = {}
    if kind == 'cosine':
        if architecture == 'resnet50':
            architecture = 'resnet50_cosine'
        else:
            model_args['cosine'] = True
    return Released(kind, architecture, weight[1 - features_dim], image_size, model_args)


def _recognise_student(shapes: dict[str, tuple[int, ...]]) -> Released:
    depth = len({key.split('.')[1] for key in shapes if key.startswith('blocks.')})
    parts = [shapes.get(key, ()) for key in ('dist_token', 'patch_embed.proj.weight', 'pos_embed', 'head.weight')]
    token, patch, position, head = parts
    whole = [len(part) for part in parts] == [3, 4, 3, 2] and depth == 12 and position[1] > 2
    if not whole or token[2] not in _STUDENTS:
        raise ValueError(
            f'Not a released network: the file holds a distilled Vision Transformer of {depth} blocks with dist_token '
            f'{list(token)}, patch_embed.proj.weight {list(patch)}, pos_embed {list(position)} and head.weight '
            f'{list(head)}. {_ALLOWED} They have 12 blocks of width {", ".join(map(str, _STUDENTS))}.')
    image_size = math.isqrt(position[1] - 2) * patch[3]
    model_args = {} if image_size == 224 else {'img_size': image_size}
    if patch[3] != 16:
        model_args['patch_size'] = patch[3]
    return Released('student', _STUDENTS[token[2]], head[0], image_size, model_args)


def recognise_benchmark(released: Released, settings: Mapping[str, Any], asked: str | None = None) -> str:
    """Find out the benchmark of a checkpoint from its tensors and settings, and check it against the user's choice.

    Args:
        released: Result of `recognise` for its tensors.
        settings: The `args` of its training. The file of a student holds them, that of a teacher does not.
        asked: The user's choice, a key of `ROWS`, or None.

    Returns:
        Key of `ROWS`.

    Raises:
        ValueError: If these contradict each other, or if several benchmarks are possible.
    """
    possible = [
        name for name, row in ROWS.items()
        if BENCHMARKS[row.dataset].num_classes == released.num_classes
        and settings.get('data_set') in (None, _THEIRS[row.dataset])
        and (released.kind == 'student' or (released.image_size == 32) == (row.imbalance_factor is not None))
    ]
    if 'imb_factor' in settings:  # theirs is n_min / n_max
        possible = [
            name for name in possible if ROWS[name].imbalance_factor is None
            or abs((ROWS[name].imbalance_factor or 0.) * float(settings['imb_factor']) - 1) < .01
            and settings.get('imb_type', 'exp') == 'exp']
    told = ''.join(f', {name} {settings[name]}' for name in ('data_set', 'imb_type', 'imb_factor') if name in settings)
    found = f'a {released.architecture} with {released.num_classes} classes{told}'
    if not possible:
        raise ValueError(f'No benchmark fits the file, {found}: the benchmarks are {", ".join(ROWS)}.')
    if asked and asked not in possible:
        raise ValueError(f'--benchmark {asked} contradicts the file, {found}: it is {" or ".join(possible)}.')
    if not asked and len(possible) > 1:
        raise ValueError(f'The file, {found}, may be {" or ".join(possible)}: choose one by --benchmark.')
    return asked or possible[0]


def convert(state_dict: Mapping[str, torch.Tensor], released: Released) -> dict[str, torch.Tensor]:
    """Convert a released state dict to weights of `released.architecture`, as copies.

    Args:
        state_dict: Content of the file, with or without `module.` before every key.
        released: Result of `recognise`.

    Returns:
        Tensors under the keys of our model, in float32 except for the counters of BatchNorm.

    Raises:
        ValueError: If keys are missing or left over, shapes differ, or weights are not finite.
    """
    source = _without_prefix(state_dict)
    model = timm.create_model(
        released.architecture, num_classes=released.num_classes, device='meta', **released.model_args)
    encoder = 'encoder_q.' if released.kind == 'paco' else ''
    classifier = 'linear.' if encoder or 'linear.weight' in source else 'fc.'
    if encoder:
        momentum = {key.replace(encoder, 'encoder_k.', 1) for key in source if key.startswith(encoder)}
        source = {
            key: value for key, value in source.items() if key not in momentum and not _PACO_TRAINING.fullmatch(key)}

    weights, wrong = {}, []
    for ours, wanted in model.state_dict().items():
        theirs = ours if released.kind == 'student' else (
            ours.replace('fc.', classifier, 1) if ours.startswith('fc.') else encoder + ours)
        value = source.pop(theirs, None)
        if value is None:
            wrong.append(f'{theirs} is missing')
            continue
        if released.kind == 'cosine' and ours == 'fc.weight':
            value = value.T
        if value.shape != wanted.shape:
            wrong.append(f'{theirs} is {list(value.shape)}, not {list(wanted.shape)}')
        elif (value.is_floating_point(), value.layout) != (wanted.is_floating_point(), wanted.layout):
            wrong.append(f'{theirs} is {value.dtype}, {value.layout}, not {wanted.dtype}, {wanted.layout}')
        elif not torch.isfinite(value).all():
            wrong.append(f'{theirs} holds NaN or Inf')
        else:
            weights[ours] = value.detach().to(wanted.dtype, copy=True).contiguous()
    wrong += [f'{key} is left over' for key in source]
    if wrong:
        raise ValueError(
            f'This is not a complete {released.architecture} ({released.kind}): {first_of(wrong, 3, "; ")}. Use the '
            'file as it was released, and download it again if it may be damaged.')
    return weights


def count_order(counts: Sequence[int]) -> list[int]:
    """Classes by count, descending, with ties as in the released runs: `np.argsort(-np.array(counts))` of NumPy 1.24.

    That sort is not stable. Since NumPy 1.25 its result depends on the processor: two machines may order classes of
    equal count differently. For Python objects NumPy still sorts as in 1.24 on every machine.

    Args:
        counts: Training images per class, in the order of the list file.

    Returns:
        The class at each rank.

    Source: https://github.com/val-iisc/DeiT-LT, datasets.py; its environment.yml pins NumPy 1.24.3.
    """
    return np.argsort(-np.array(counts, dtype=object)).tolist()


def _without_prefix(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if not state_dict or not all(
            isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state_dict.items()):
        raise ValueError(f'Not a state dict: found {_kinds(state_dict)}, but it must map names to tensors.')
    prefix = 'module.' if all(key.startswith('module.') for key in state_dict) else ''
    return {key.removeprefix(prefix): value for key, value in state_dict.items()}


def _kinds(values: Mapping[Any, Any]) -> str:
    kinds = Counter(type(value).__name__ for value in values.values())
    return ', '.join(f'{count} {kind}' for kind, count in kinds.most_common(3)) or 'nothing'


def _blocks(shapes: dict[str, tuple[int, ...]], encoder: str = '') -> tuple[int, ...]:
    found = re.findall(rf'^{re.escape(encoder)}(layer\d+)\.\d+\.conv1\.weight$', '\n'.join(shapes), re.MULTILINE)
    return tuple(count for _, count in sorted(Counter(found).items()))


def _describe(shapes: dict[str, tuple[int, ...]]) -> str:
    if 'cls_token' in shapes:
        return 'a Vision Transformer without dist_token'
    encoder = 'encoder_q.' if any(key.startswith('encoder_q.') for key in shapes) else ''
    blocks = _blocks(shapes, encoder)
    if not blocks:
        return f'{len(shapes)} tensors such as {", ".join(list(shapes)[:3])}'
    second = list(shapes.get(f'{encoder}layer1.0.conv2.weight', ()))
    return f'{"PaCo around " * bool(encoder)}a ResNet of {"-".join(map(str, blocks))} blocks, layer1.0.conv2 {second}'
