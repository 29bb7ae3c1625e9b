import dataclasses

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torchvision.datasets import FashionMNIST

import timm_deitlt.benchmarks
from timm_deitlt.benchmarks import (
    BENCHMARKS,
    CATALOGUE,
    OWNER,
    PUBLISHED,
    RELEASED,
    TAGS,
    hub_id,
    pretrained_cfgs,
    published_id,
    tag_of,
)
from timm_deitlt.data import class_counts, create_dataset
from timm_deitlt.models import CosineLinear
from timm_deitlt.models.conversion import ROWS
from timm_deitlt.run.build.model import build_model
from timm_deitlt.run.settings import model_settings
from timm_deitlt.run.teacher_settings import teacher_args
from timm_deitlt.settings.layers import model_kind, parse_args, recipe_names


@pytest.mark.parametrize('benchmark', BENCHMARKS.values(), ids=BENCHMARKS)
def test_a_benchmark_is_consistent(benchmark):
    mid, tail = benchmark.shot_boundaries
    assert BENCHMARKS[benchmark.name] is benchmark
    assert benchmark.name.startswith('lt/') and benchmark.recipe
    assert 0 < mid < tail < benchmark.num_classes
    if benchmark.class_names is not None:
        assert len(set(benchmark.class_names)) == len(benchmark.class_names) == benchmark.num_classes
    assert benchmark.num_classes < benchmark.train_images < benchmark.num_classes * benchmark.n_max
    if benchmark.imbalance_factor is not None:
        counts = class_counts(benchmark.num_classes, benchmark.n_max, benchmark.imbalance_factor)
        assert (counts[0], counts[-1]) == (benchmark.n_max, int(benchmark.n_max / benchmark.imbalance_factor))
        assert sum(counts) == benchmark.train_images
    assert bool(benchmark.files) == bool(benchmark.files_folder) == bool(benchmark.files_source)
    hash(benchmark)
    with pytest.raises(dataclasses.FrozenInstanceError):
        benchmark.n_max = 1


@pytest.mark.parametrize('name, imbalance_factor, images', [
    ('lt/digits', None, 568),
    ('lt/fashion_mnist', None, 14886),
    ('lt/cifar10', None, 12406),
    ('lt/cifar10', 50, 13996),
    ('lt/cifar100', None, 10847),
    ('lt/cifar100', 50, 12608),
])
def test_training_sets_have_the_published_size(name, imbalance_factor, images):
    benchmark = BENCHMARKS[name]
    counts = class_counts(
        benchmark.num_classes, benchmark.n_max, imbalance_factor or benchmark.imbalance_factor)
    assert sum(counts) == images


@pytest.mark.parametrize('name, figures', [
    ('lt/imagenet', (1000, 1280, 115846, (390, 835), {'train', 'validation', 'test'})),
    ('lt/inat18', (8142, 1000, 437513, (842, 4543), {'train', 'validation'})),
])
def test_sets_that_are_long_tailed_by_nature_have_the_published_figures(name, figures):
    benchmark = BENCHMARKS[name]
    assert benchmark.imbalance_factor is None
    assert figures == (
        benchmark.num_classes, benchmark.n_max, benchmark.train_images, benchmark.shot_boundaries,
        set(benchmark.files))


def test_digits_statistics_are_those_of_all_images_outside_of_the_test_part():
    from sklearn.datasets import load_digits

    everything = load_digits()
    test = create_dataset('lt/digits', split='test')
    pixels = np.delete(everything.images, test.indices, axis=0) / 16
    assert BENCHMARKS['lt/digits'].mean == pytest.approx([pixels.mean()] * 3, abs=1e-3)
    assert BENCHMARKS['lt/digits'].std == pytest.approx([pixels.std()] * 3, abs=1e-3)


def test_fashion_mnist_has_the_class_names_of_its_files():
    assert list(BENCHMARKS['lt/fashion_mnist'].class_names) == FashionMNIST.classes


# --- the catalogue of weights -----------------------------------------------------------------------------------------
def test_tags_name_benchmarks_and_their_recipes():
    for name, tag in TAGS.items():
        assert tag.dataset in BENCHMARKS and tag.recipe in {recipe.partition('/')[0] for recipe in recipe_names()}
        assert (tag.imbalance_factor is None) == (BENCHMARKS[tag.dataset].imbalance_factor is None)
        if tag.recipe == name:  # a folder of runs, one for each size of the student
            args = parse_args(['-c', f'{name}/deit_lt_base'])
            assert (args.dataset, args.imbalance_factor) == (tag.dataset, tag.imbalance_factor)
        else:
            assert tag.recipe == BENCHMARKS[tag.dataset].recipe
            assert tag.imbalance_factor == BENCHMARKS[tag.dataset].imbalance_factor


def test_tags_are_those_of_the_released_files_and_the_digits():
    rows = {name: (row.dataset, row.imbalance_factor) for name, row in ROWS.items()}
    tags = {name: (tag.dataset, tag.imbalance_factor) for name, tag in TAGS.items()}
    assert tags == {**rows, 'digits_if10': ('lt/digits', 10)}


@pytest.mark.parametrize('settings, tag', [
    (('lt/cifar100', None), 'cifar100_if100'), (('lt/cifar100', 100), 'cifar100_if100'),
    (('lt/cifar10', 50.), 'cifar10_if50'), (('lt/cifar10', 10), None), (('lt/digits',), 'digits_if10'),
    (('lt/digits', 10.), 'digits_if10'), (('lt/digits', 20), None), (('lt/imagenet',), 'imagenet_lt'),
    (('lt/imagenet', 256), None), (('lt/inat18', None), 'inat18'), (('lt/fashion_mnist',), None), (('folder',), None),
    (('',), None), (('torch/cifar100', 100), None),
])
def test_the_tag_of_a_run_is_found_by_its_settings(settings, tag):
    assert tag_of(*settings) == tag


def test_the_catalogue_holds_the_tags_of_every_architecture_the_default_first():
    tags = {}
    for name, entry in CATALOGUE.items():
        assert name == entry.name == f'{entry.architecture}.{entry.tag}'
        tags.setdefault(entry.architecture, []).append(entry.tag)
    large = ['imagenet_lt', 'inat18']
    cifar = ['cifar100_if100', 'cifar100_if50', 'cifar10_if100', 'cifar10_if50', 'digits_if10']
    assert tags == {
        **{f'deit_lt_{size}': [
            'imagenet_lt', 'cifar10_if100', 'cifar10_if50', 'cifar100_if100', 'cifar100_if50', 'inat18', 'digits_if10',
        ] for size in ('tiny', 'small', 'base')},
        **{f'resnet{depth}_cifar': [f'{tag}_{kind}' for tag in cifar for kind in ('sam', 'paco_sam')]
           for depth in (20, 32, 44, 56)},
        'resnet50_cosine': [f'{tag}_sam' for tag in large],
        'resnet50': [f'{tag}_paco_sam' for tag in large],
    }
    assert not (PUBLISHED | RELEASED) - CATALOGUE.keys()
    assert not [name for name in RELEASED if 'digits' in name]


def test_only_names_of_the_catalogue_that_are_published_have_a_published_id(monkeypatch):
    name, other = 'deit_lt_base.cifar100_if100', 'deit_lt_base.cifar100_if50'
    assert hub_id(name) == f'{OWNER}/{name}'
    monkeypatch.setattr(timm_deitlt.benchmarks, 'PUBLISHED', frozenset([name, 'made.up']))
    assert (published_id(name), published_id(other), published_id('made.up')) == (hub_id(name), None, None)
    assert pretrained_cfgs('deit_lt_base')[name]['hf_hub_id'] == hub_id(name)
    assert pretrained_cfgs('deit_lt_base')[name]['hf_hub_filename'] == 'model.safetensors'
    assert not {'hf_hub_id', 'hf_hub_filename'} & pretrained_cfgs('deit_lt_base')[other].keys()
    monkeypatch.setattr(timm_deitlt.benchmarks, '_OTHER_OWNER', 'someone')
    assert published_id(other) == hub_id(other)
    for wrong in ('made.up', 'deit_lt_base', 'deit_lt_base.cifar100_if100_sam', 'resnet32_cifar.cifar100_if100', ''):
        assert published_id(wrong) is None


def settings_of(entry):
    """Settings by which the recipes train what an entry of the catalogue stands for."""
    tag = TAGS[entry.benchmark]
    if entry.kind == 'student':
        named = ['--model', entry.architecture]
        run = named if tag.recipe == 'digits' else ['-c', f'{tag.recipe}/{entry.architecture}']
        return parse_args([*run, '--model-kwargs', 'depth=1'])
    teacher = f'{entry.architecture.removesuffix("_cifar").removesuffix("_cosine")}_{entry.kind}'
    factor = [] if tag.imbalance_factor is None else ['--imbalance-factor', str(tag.imbalance_factor)]
    args = parse_args(['--dataset', tag.dataset, *factor, '--model', 'deit_lt_tiny', '--teacher', teacher])
    return teacher_args(args, BENCHMARKS[tag.dataset].train_images)


@pytest.mark.parametrize('name', CATALOGUE)
def test_a_tag_says_what_its_recipe_resolves_to(name):
    entry = CATALOGUE[name]
    settings = settings_of(entry)
    assert tag_of(settings.dataset, settings.imbalance_factor) == entry.benchmark
    assert model_kind(settings.model) == ('student' if entry.kind == 'student' else 'teacher')
    num_classes = BENCHMARKS[settings.dataset].num_classes
    trained = build_model(model_settings(settings), num_classes).pretrained_cfg
    stated = pretrained_cfgs(entry.architecture)[name]
    for field in ('input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'num_classes'):
        assert stated[field] == trained[field], field
    if entry.architecture == 'resnet50':
        return  # timm's own, which has no tags of ours
    cfg = timm.get_pretrained_cfg(name)
    assert {field: getattr(cfg, field) for field in stated} == stated
    model = timm.create_model(name, device='meta')
    heads = model.get_classifier()
    kinds = {type(head) for head in (heads if isinstance(heads, tuple) else (heads,))}
    assert kinds == {CosineLinear if settings.classifier == 'cosine' else nn.Linear}
    assert model(torch.empty(1, *cfg.input_size, device='meta')).shape == (1, num_classes)
