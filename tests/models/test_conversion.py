"""Released checkpoints: layouts written out by hand, logits by plain functions, files that must be refused."""
import argparse
import dataclasses
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import last_json, run_script
from safetensors.torch import load_file

from timm_deitlt.benchmarks import BENCHMARKS
from timm_deitlt.cli.convert import convert_main
from timm_deitlt.cli.parsers import convert_parser
from timm_deitlt.hub import convert as convert_module
from timm_deitlt.models._hub import file_sha256
from timm_deitlt.models.conversion import (
    CIFAR100_NAMES,
    ROWS,
    Released,
    convert,
    count_order,
    recognise,
    recognise_benchmark,
)


# --- the released layouts ---------------------------------------------------------------------------------------------
def conv(state, name, *shape):
    state[f'{name}.weight'] = torch.randn(shape) * (2 / (shape[1] * shape[2] * shape[3])) ** .5


def norm(state, name, width):
    state[f'{name}.weight'] = torch.rand(width) + .5
    state[f'{name}.bias'] = torch.randn(width) * .1
    state[f'{name}.running_mean'] = torch.randn(width) * .1
    state[f'{name}.running_var'] = torch.rand(width) + .5
    state[f'{name}.num_batches_tracked'] = torch.tensor(7)


def linear(state, name, outputs, inputs):
    state[f'{name}.weight'] = torch.randn(outputs, inputs) * inputs ** -.5
    state[f'{name}.bias'] = torch.randn(outputs)


def cifar_encoder(blocks=5):
    state, width = {}, 16
    conv(state, 'conv1', 16, 3, 3, 3)
    norm(state, 'bn1', 16)
    for stage, channels in enumerate((16, 32, 64), start=1):
        for block in range(blocks):
            name = f'layer{stage}.{block}'
            conv(state, f'{name}.conv1', channels, width, 3, 3)
            norm(state, f'{name}.bn1', channels)
            conv(state, f'{name}.conv2', channels, channels, 3, 3)
            norm(state, f'{name}.bn2', channels)
            width = channels
    return state


def resnet50_encoder():
    state, width = {}, 64
    conv(state, 'conv1', 64, 3, 7, 7)
    norm(state, 'bn1', 64)
    for stage, (blocks, channels) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=1):
        for block in range(blocks):
            name = f'layer{stage}.{block}'
            sizes = ((channels, width, 1, 1), (channels, channels, 3, 3), (4 * channels, channels, 1, 1))
            for index, shape in enumerate(sizes, start=1):
                conv(state, f'{name}.conv{index}', *shape)
                norm(state, f'{name}.bn{index}', shape[0])
            if block == 0:
                conv(state, f'{name}.downsample.0', 4 * channels, width, 1, 1)
                norm(state, f'{name}.downsample.1', 4 * channels)
            width = 4 * channels
    return state


def paco(encoder, width, dim, queue, num_classes, mlp=True):
    state = {}
    for twin in ('encoder_q', 'encoder_k'):
        state.update((f'{twin}.{key}', torch.randn_like(value) if twin == 'encoder_k' and value.ndim else value)
                     for key, value in encoder.items())
        if mlp:
            linear(state, f'{twin}.fc.0', width, width)
            norm(state, f'{twin}.fc.1', width)
        linear(state, f'{twin}.fc.3' if mlp else f'{twin}.fc', dim, width)
    linear(state, 'linear', num_classes, width)
    linear(state, 'linear_k', num_classes, width)
    return {
        **state, 'queue': torch.randn(queue, dim), 'queue_l': torch.randint(num_classes, (queue,)),
        'queue_ptr': torch.zeros(1, dtype=torch.long)}


def student(num_classes=100, width=192, patches=4, depth=12):
    state = {name: torch.randn(1, 1, width) for name in ('cls_token', 'dist_token')}
    state['pos_embed'] = torch.randn(1, patches + 2, width)
    conv(state, 'patch_embed.proj', width, 3, 16, 16)
    state['patch_embed.proj.bias'] = torch.randn(width)
    for block in range(depth):
        name = f'blocks.{block}'
        for index in ('1', '2'):
            state[f'{name}.norm{index}.weight'] = torch.rand(width) + .5
            state[f'{name}.norm{index}.bias'] = torch.randn(width) * .1
        linear(state, f'{name}.attn.qkv', 3 * width, width)
        linear(state, f'{name}.attn.proj', width, width)
        linear(state, f'{name}.mlp.fc1', 4 * width, width)
        linear(state, f'{name}.mlp.fc2', width, 4 * width)
    state.update({'norm.weight': torch.rand(width) + .5, 'norm.bias': torch.randn(width) * .1})
    linear(state, 'head', num_classes, width)
    linear(state, 'head_dist', num_classes, width)
    return state


def with_prefix(state, prefix='module.'):
    return {prefix + key: value for key, value in state.items()}


# --- what they compute ------------------------------------------------------------------------------------------------
def conv_norm(state, x, convolution, normalisation, stride=1, padding=0):
    x = F.conv2d(x, state[f'{convolution}.weight'], stride=stride, padding=padding)
    names = ('running_mean', 'running_var', 'weight', 'bias')
    return F.batch_norm(x, *(state[f'{normalisation}.{name}'] for name in names))


def cifar_features(state, x, blocks=5, share_before=.5):
    """Pooled features of a CIFAR ResNet whose new channels are zeros, this share of them before the old ones."""
    x = conv_norm(state, x, 'conv1', 'bn1', padding=1).relu()
    for stage in (1, 2, 3):
        for block in range(blocks):
            name, stride = f'layer{stage}.{block}', 2 if stage > 1 and block == 0 else 1
            out = conv_norm(state, x, f'{name}.conv1', f'{name}.bn1', stride, padding=1).relu()
            out = conv_norm(state, out, f'{name}.conv2', f'{name}.bn2', padding=1)
            if stride == 2:
                new = out.shape[1] - x.shape[1]
                before = int(new * share_before)
                zeros = torch.zeros(len(x), new, *out.shape[2:])
                x = torch.cat([zeros[:, :before], x[:, :, ::2, ::2], zeros[:, before:]], dim=1)
            x = (out + x).relu()
    return x.mean((2, 3))


def resnet50_features(state, x):
    x = F.max_pool2d(conv_norm(state, x, 'conv1', 'bn1', stride=2, padding=3).relu(), 3, stride=2, padding=1)
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            name, stride = f'layer{stage}.{block}', 2 if stage > 1 and block == 0 else 1
            out = conv_norm(state, x, f'{name}.conv1', f'{name}.bn1').relu()
            out = conv_norm(state, out, f'{name}.conv2', f'{name}.bn2', stride, padding=1).relu()
            out = conv_norm(state, out, f'{name}.conv3', f'{name}.bn3')
            if block == 0:
                x = conv_norm(state, x, f'{name}.downsample.0', f'{name}.downsample.1', stride)
            x = (out + x).relu()
    return x.mean((2, 3))


def linear_logits(state, features, name):
    return features @ state[f'{name}.weight'].T + state[f'{name}.bias']


def cosine_logits(state, features, name):
    weight = state[f'{name}.weight']  # [D, C], columns of unit length
    return features @ weight / features.norm(dim=1, keepdim=True) / weight.norm(dim=0)


def student_logits(state, x):
    def apply(name, x):
        return F.linear(x, state[f'{name}.weight'], state[f'{name}.bias'])

    def layer_norm(name, x):
        return F.layer_norm(x, x.shape[-1:], state[f'{name}.weight'], state[f'{name}.bias'], eps=1e-6)

    width = state['cls_token'].shape[-1]
    x = F.conv2d(x, state['patch_embed.proj.weight'], state['patch_embed.proj.bias'], stride=16)
    x = x.flatten(2).transpose(1, 2)
    tokens = [state[name].expand(len(x), -1, -1) for name in ('cls_token', 'dist_token')]
    x = torch.cat([*tokens, x], dim=1) + state['pos_embed']
    for block in range(12):
        name = f'blocks.{block}'
        qkv = apply(f'{name}.attn.qkv', layer_norm(f'{name}.norm1', x))
        heads = []
        for q, k, v in zip(*(part.split(64, dim=-1) for part in qkv.split(width, dim=-1)), strict=True):
            heads.append((q @ k.transpose(1, 2) * 64 ** -.5).softmax(dim=-1) @ v)
        x = x + apply(f'{name}.attn.proj', torch.cat(heads, dim=-1))
        x = x + apply(f'{name}.mlp.fc2', F.gelu(apply(f'{name}.mlp.fc1', layer_norm(f'{name}.norm2', x))))
    x = layer_norm('norm', x)
    return apply('head', x[:, 0]), apply('head_dist', x[:, 1])


def images(size=32):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def converted(state):
    released = recognise(state)
    model = timm.create_model(released.architecture, num_classes=released.num_classes, **released.model_args)
    model.load_state_dict(convert(state, released))
    return released, model.eval()


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)


def teacher_of(kind, name='linear', num_classes=10):
    state = cifar_encoder()
    if kind == 'cosine':
        state[f'{name}.weight'] = torch.randn(64, num_classes)
    else:
        linear(state, name, num_classes, 64)
    return state


# --- models -----------------------------------------------------------------------------------------------------------
@torch.no_grad()
@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_student_gives_the_logits_of_both_heads_and_their_mean(prefix):
    state = student()
    released, model = converted(with_prefix(state, prefix))
    assert released == Released('student', 'deit_lt_tiny', 100, 32, {'img_size': 32})
    cls_logits, dist_logits = student_logits(state, images())
    torch.testing.assert_close(model.forward_experts(images()), (cls_logits, dist_logits), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(images()), (cls_logits + dist_logits) / 2, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize('prefix', ['', 'module.'])
@pytest.mark.parametrize('name', ['linear', 'fc'])
@pytest.mark.parametrize('kind', ['linear', 'cosine'])
def test_cifar_teacher_gives_its_logits(kind, name, prefix):
    state = teacher_of(kind, name)
    released, model = converted(with_prefix(state, prefix))
    assert released == Released(kind, 'resnet32_cifar', 10, 32, {'cosine': True} if kind == 'cosine' else {})
    logits = cosine_logits if kind == 'cosine' else linear_logits
    torch.testing.assert_close(
        model(images()), logits(state, cifar_features(state, images()), name), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_new_channels_of_the_shortcut_lie_half_before_and_half_behind_the_old():
    state = teacher_of('linear')
    ours = converted(state)[1](images())
    for share, same in ((.5, True), (0., False), (1., False)):
        theirs = linear_logits(state, cifar_features(state, images(), share_before=share), 'linear')
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4) == same


@torch.no_grad()
@pytest.mark.parametrize('blocks, depth', [(3, 20), (7, 44), (9, 56)])
def test_depth_follows_from_the_number_of_blocks(blocks, depth):
    state = cifar_encoder(blocks)
    linear(state, 'linear', 10, 64)
    released, model = converted(state)
    assert released.architecture == f'resnet{depth}_cifar'
    expected = linear_logits(state, cifar_features(state, images(), blocks), 'linear')
    torch.testing.assert_close(model(images()), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize('kind', ['linear', 'cosine', 'paco'])
def test_resnet50_teacher_gives_its_logits(kind):
    encoder = resnet50_encoder()
    if kind == 'paco':
        state = paco(encoder, width=2048, dim=128, queue=256, num_classes=20)
        name = 'linear'
    else:
        state, name = dict(encoder), 'fc'
        linear(state, 'fc', 20, 2048)
        if kind == 'cosine':
            state['fc.weight'] = torch.randn(2048, 20)
            del state['fc.bias']
    released, model = converted(with_prefix(state))
    assert released == Released(kind, 'resnet50_cosine' if kind == 'cosine' else 'resnet50', 20, 224)
    logits = cosine_logits if kind == 'cosine' else linear_logits
    expected = logits(state, resnet50_features(encoder, images(64)), name)
    torch.testing.assert_close(model(images(64)), expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


@torch.no_grad()
@pytest.mark.parametrize('mlp', [True, False], ids=['mlp', 'single'])
def test_paco_teacher_is_its_query_encoder_and_its_linear_classifier(mlp):
    encoder = cifar_encoder()
    state = with_prefix(paco(encoder, width=64, dim=32, queue=1024, num_classes=100, mlp=mlp))
    kept = {key: value.clone() for key, value in state.items()}
    released, model = converted(state)
    assert released == Released('paco', 'resnet32_cifar', 100, 32)
    expected = linear_logits(with_prefix(state, ''), cifar_features(encoder, images()), 'module.linear')
    torch.testing.assert_close(model(images()), expected, rtol=1e-4, atol=1e-4)
    assert state.keys() == kept.keys() and all(torch.equal(state[key], kept[key]) for key in kept)


@pytest.mark.parametrize('width, name', [(192, 'tiny'), (384, 'small'), (768, 'base')])
def test_size_of_a_student_follows_from_its_width(width, name):
    with torch.device('meta'):
        state = student(width=width, patches=196)
    assert recognise(state) == Released('student', f'deit_lt_{name}', 100, 224)


@pytest.mark.parametrize('network, found', [
    ('resnet18', '2-2-2-2 blocks'),
    ('resnext50_32x4d', '[128, 4, 3, 3]'),
    ('deit_tiny_patch16_224', 'without dist_token'),
    ('convnext_atto', 'tensors such as stem.0.weight'),
])
def test_foreign_network_is_refused_naming_what_was_found_and_what_is_allowed(network, found):
    state = timm.create_model(network, device='meta').state_dict()
    with pytest.raises(ValueError) as error:
        recognise(state)
    assert found in str(error.value) and 'dist_token' in str(error.value) and 'ResNet-20' in str(error.value)


def test_student_of_another_size_is_refused():
    with torch.device('meta'):
        for state, found in ((student(depth=6), '6 blocks'), (student(width=256), '[1, 1, 256]')):
            with pytest.raises(ValueError, match='Not a released network') as error:
                recognise(state)
            assert found in str(error.value)


@pytest.mark.parametrize('weight', [(32, 10), (10, 64, 1), (10,)])
def test_classifier_of_other_features_is_refused(weight):
    with pytest.raises(ValueError, match=r'linear\.weight of this resnet32_cifar has the shape'):
        recognise({**cifar_encoder(), 'linear.weight': torch.zeros(weight)})


@pytest.mark.parametrize('change, words', [
    ({'layer1.0.attn.qkv.weight': torch.zeros(3)}, 'layer1.0.attn.qkv.weight is left over'),
    ({'encoder_k.conv1.weight': torch.zeros(16, 3, 3, 3)}, 'encoder_k.conv1.weight is left over'),
    ({'layer2.4.bn2.running_var': None}, 'layer2.4.bn2.running_var is missing'),
    ({'layer3.0.conv1.weight': torch.zeros(64, 32, 1, 1)}, 'layer3.0.conv1.weight is [64, 32, 1, 1], not [64, 32, 3'),
    ({'bn1.bias': torch.full((16,), float('nan'))}, 'bn1.bias holds NaN or Inf'),
    ({'bn1.weight': torch.full((16,), float('inf'))}, 'bn1.weight holds NaN or Inf'),
    ({'linear.bias': torch.zeros(10, dtype=torch.long)}, 'linear.bias is torch.int64'),
])
def test_what_is_not_exactly_the_layout_is_refused_by_name(change, words):
    state = {key: value for key, value in {**teacher_of('linear'), **change}.items() if value is not None}
    with pytest.raises(ValueError) as error:
        convert(state, recognise(state))
    assert words in str(error.value)


def test_paco_drops_only_what_its_wrapper_has():
    state = paco(cifar_encoder(), width=64, dim=32, queue=8, num_classes=10)
    for extra in ('encoder_k.extra.weight', 'encoder_q.fc.4.weight', 'queue_extra', 'encoder_q.extra.weight'):
        with pytest.raises(ValueError, match=f'{extra} is left over'):
            convert({**state, extra: torch.zeros(1)}, recognise(state))


# --- benchmark and class order ----------------------------------------------------------------------------------------
CIFAR_100 = {'data_set': 'CIFAR100LT', 'imb_type': 'exp', 'imb_factor': .01}


@pytest.mark.parametrize('num_classes, settings, asked, expected', [
    (100, CIFAR_100, None, 'cifar100_if100'),
    (100, {**CIFAR_100, 'imb_factor': .02}, None, 'cifar100_if50'),
    (100, CIFAR_100, 'cifar100_if100', 'cifar100_if100'),
    (100, {}, 'cifar100_if50', 'cifar100_if50'),
    (10, {'data_set': 'CIFAR10LT', 'imb_factor': .02}, None, 'cifar10_if50'),
    (1000, {'data_set': 'IMAGENETLT', 'imb_type': 'exp', 'imb_factor': .01}, None, 'imagenet_lt'),
    (8142, {}, None, 'inat18'),
])
def test_benchmark_is_recognised(num_classes, settings, asked, expected):
    assert recognise_benchmark(Released('student', 'deit_lt_base', num_classes, 224), settings, asked) == expected


@pytest.mark.parametrize('num_classes, settings, asked, words', [
    (100, {}, None, 'cifar100_if100 or cifar100_if50: choose one by --benchmark'),
    (100, CIFAR_100, 'cifar100_if50', 'contradicts the file'),
    (10, {}, 'cifar100_if100', 'contradicts the file'),
    (100, {**CIFAR_100, 'imb_factor': .1}, None, 'No benchmark fits'),
    (100, {**CIFAR_100, 'imb_type': 'step'}, 'cifar100_if100', 'No benchmark fits'),
    (100, {'data_set': 'IMAGENETLT'}, None, 'No benchmark fits'),
    (365, {}, None, 'No benchmark fits'),
])
def test_contradicting_or_open_benchmark_is_refused(num_classes, settings, asked, words):
    with pytest.raises(ValueError, match=words):
        recognise_benchmark(Released('student', 'deit_lt_base', num_classes, 224), settings, asked)


def test_cifar_teacher_of_imagenet_is_no_benchmark():
    with pytest.raises(ValueError, match='No benchmark fits'):
        recognise_benchmark(Released('linear', 'resnet32_cifar', 1000, 32), {})


def test_order_by_count_is_that_of_the_pinned_numpy():
    counts = [5 + i * i % 7 + 100 * (i % 3 == 0) for i in range(45)]
    assert count_order(counts) == [  # np.argsort(-np.array([np.int64(n) for n in counts])) of NumPy 1.24.3
        9, 12, 30, 33, 24, 18, 39, 3, 6, 36, 27, 15, 21, 42, 0, 40, 26, 23, 37, 44, 16, 2, 19, 5, 32, 17, 25, 11, 4, 38,
        10, 31, 1, 41, 20, 8, 29, 13, 43, 34, 22, 35, 7, 28, 14]


def test_order_by_count_is_the_released_call_without_vector_instructions():
    counts = np.random.default_rng(0).integers(2, 60, 8142)
    code = (
        'import json, sys, numpy as np; targets = np.array(json.load(sys.stdin));'
        'counts = [np.sum(targets == i) for i in range(8142)];'
        'print(json.dumps(np.argsort(-np.array(counts)).tolist()))')
    env = {**os.environ, 'NPY_DISABLE_CPU_FEATURES': 'X86_V3 X86_V4 AVX512_ICL AVX512_SPR AVX2 AVX512F AVX512_SKX'}
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code], input=json.dumps(np.arange(8142).repeat(counts).tolist()),
        capture_output=True, text=True, check=True, env=env)
    assert count_order(counts) == json.loads(done.stdout)


@pytest.fixture
def imagenet_list(tmp_path):
    """A list with as many images as ImageNet-LT's, in 1000 classes many of which have as many."""
    counts = [5 + (i * 37) % 200 for i in range(1000)]
    counts[500] += 115_846 - sum(counts)
    lines = [f'train/n{label:08d}/{k}.JPEG {label}\n' for label in range(1000) for k in range(counts[label])]
    (tmp_path / 'ImageNet_LT_train.txt').write_text(''.join(lines))
    return tmp_path / 'ImageNet_LT_train.txt', counts


def test_classes_are_named_by_count_for_students_and_ldam_and_as_listed_for_paco(imagenet_list):
    path, counts = imagenet_list
    listed = [f'n{label:08d}' for label in range(1000)]
    by_count = [listed[label] for label in count_order(counts)]
    for kind, expected, order in (
            ('student', by_count, 'count'), ('linear', by_count, 'count'), ('cosine', by_count, 'count'),
            ('paco', listed, 'list'),
    ):
        assert convert_module.class_names('imagenet_lt', kind, {}, path, None) == (expected, order)
    assert convert_module.class_names('imagenet_lt', 'paco', {}, path, 'count') == (by_count, 'count')
    assert convert_module.class_names('imagenet_lt', 'linear', {}, path, 'list') == (listed, 'list')


def test_student_that_tells_its_order_is_believed(imagenet_list):
    path, counts = imagenet_list
    order = sorted(range(1000), key=lambda label: (-counts[label], -label))  # ties otherwise than by the pinned NumPy
    class_map = [order.index(label) for label in range(1000)]
    names, used = convert_module.class_names('imagenet_lt', 'student', {'class_map': class_map}, path, None)
    assert (names, used) == ([f'n{label:08d}' for label in order], 'count')
    assert names != convert_module.class_names('imagenet_lt', 'student', {}, path, None)[0]
    for wrong in (class_map[::-1], class_map[:-1], [0] * 1000):
        with pytest.raises(ValueError, match='not the order by count'):
            convert_module.class_names('imagenet_lt', 'student', {'class_map': wrong}, path, None)
    with pytest.raises(ValueError, match='--class-order list contradicts'):
        convert_module.class_names('imagenet_lt', 'student', {'class_map': class_map}, path, 'list')


def test_missing_or_wrong_list_is_refused(imagenet_list, tmp_path):
    path, _ = imagenet_list
    with pytest.raises(ValueError, match='ImageNet_LT_train.txt .*--list-file'):
        convert_module.class_names('imagenet_lt', 'student', {}, None, None)
    with pytest.raises(FileNotFoundError, match='nowhere.txt'):
        convert_module.class_names('imagenet_lt', 'student', {}, tmp_path / 'nowhere.txt', None)
    path.write_text(''.join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match='115845 images.*training set of imagenet_lt has 115846'):
        convert_module.class_names('imagenet_lt', 'student', {}, path, None)
    with pytest.raises(ValueError, match='--list-file is for imagenet_lt and inat18'):
        convert_module.class_names('cifar10_if50', 'paco', {}, path, None)


def test_classes_of_inat_are_category_ids_by_count(tmp_path, monkeypatch):
    inat = dataclasses.replace(BENCHMARKS['lt/inat18'], train_images=8142 + 3)
    monkeypatch.setitem(BENCHMARKS, 'lt/inat18', inat)
    labels = [*range(8142), 77, 77, 4000]
    images = [{'id': i, 'file_name': f'train_val2018/Aves/{label}/{i}.jpg'} for i, label in enumerate(labels)]
    notes = [{'image_id': i, 'category_id': label} for i, label in enumerate(labels)]
    (tmp_path / 'train2018.json').write_text(json.dumps({'images': images, 'annotations': notes}))
    names, _ = convert_module.class_names('inat18', 'cosine', {}, tmp_path / 'train2018.json', None)
    assert names[:2] == ['77', '4000'] and sorted(map(int, names)) == list(range(8142))


def test_names_of_cifar100_are_alphabetical():
    assert len(set(CIFAR100_NAMES)) == 100 and list(CIFAR100_NAMES) == sorted(CIFAR100_NAMES)
    assert (CIFAR100_NAMES[0], CIFAR100_NAMES[47], CIFAR100_NAMES[99]) == ('apple', 'maple_tree', 'worm')


def test_rows_name_our_benchmarks():
    assert {row.dataset for row in ROWS.values()} == {'lt/cifar10', 'lt/cifar100', 'lt/imagenet', 'lt/inat18'} <= set(
        BENCHMARKS)


# --- the script -------------------------------------------------------------------------------------------------------
def student_file(state):
    """What DeiT-LT saves beside the weights: a path, accuracies by NumPy, a second set of weights."""
    args = argparse.Namespace(
        **CIFAR_100, model='deit_base_distilled_patch16_224', output_dir=Path('deit_out'), drw=1100, aa='rand-m9',
        lr=2.5e-4, cls_num_list=[np.int64(500), np.int64(5)], categories=[36, 71], opt_betas=None, distributed=True)
    return {
        'model': state,
        'optimizer': {'state': {0: {'step': torch.tensor(3.)}}, 'param_groups': [{'lr': 1e-5, 'params': [0]}]},
        'lr_scheduler': {'base_values': [2.5e-4], 'noise_range': None}, 'epoch': 1150,
        'model_ema': {key: torch.zeros_like(value) for key, value in state.items()}, 'scaler': {'scale': 65536.},
        'args': args, 'best_acc_avg': 55.6, 'head_acc_avg': np.float64(72.8), 'tail_acc_avg': np.float32(31.4)}


def teacher_file(state):
    return {
        'epoch': 200, 'arch': 'resnet32', 'state_dict': state, 'best_acc1': torch.tensor(45.4),
        'optimizer': {'state': {0: {'momentum_buffer': torch.zeros(2)}}, 'param_groups': []}}


def run(*args):
    return convert_main([str(arg) for arg in args])


@torch.no_grad()
@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'old'])
def test_student_file_becomes_a_model_that_timm_creates(tmp_path, capsys, zipped):
    state, out = student(), tmp_path / 'hub' / 'out'
    torch.save(student_file(state), tmp_path / 'student.pth', _use_new_zipfile_serialization=zipped)
    assert run(tmp_path / 'student.pth', out, '--architecture', 'deit_lt_tiny') == 0
    printed = capsys.readouterr().out.strip().splitlines()
    assert "'model' (not 'model_ema'" in '\n'.join(printed)
    report = json.loads(printed[-1])
    assert report == {
        'architecture': 'deit_lt_tiny', 'kind': 'student', 'num_classes': 100, 'benchmark': 'cifar100_if100',
        'class_order': 'list', 'parameters': sum(value.numel() for value in state.values()), 'tensors': len(state),
        'sha256': file_sha256(out / 'model.safetensors'), 'dropped_keys': 0}
    assert {path.name for path in out.iterdir()} == {'model.safetensors', 'config.json'}
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1

    model = timm.create_model(f'local-dir:{out}', pretrained=True).eval()
    expected = sum(student_logits(state, images())) / 2
    torch.testing.assert_close(model(images()), expected, rtol=1e-4, atol=1e-4)
    cfg = model.pretrained_cfg
    assert cfg['label_names'] == list(CIFAR100_NAMES) and cfg['tag'] == 'cifar100_if100'
    assert (tuple(cfg['mean']), cfg['interpolation'], cfg['crop_pct']) == ((.485, .456, .406), 'bicubic', .875)
    overlay = dict(file=str(out / 'model.safetensors'), num_classes=100)
    named = timm.create_model('deit_lt_tiny', pretrained=True, img_size=32, pretrained_cfg_overlay=overlay).eval()
    assert torch.equal(named(images()), model(images()))


@torch.no_grad()
@pytest.mark.parametrize('kind', ['linear', 'cosine', 'paco'])
def test_teacher_file_becomes_a_model_that_timm_creates(tmp_path, capsys, kind):
    encoder, out = cifar_encoder(), tmp_path / 'out'
    if kind == 'paco':
        state = paco(encoder, width=64, dim=32, queue=64, num_classes=10)
    else:
        state = {**teacher_of(kind), **encoder}
    torch.save(teacher_file(with_prefix(state)), tmp_path / 'teacher.pth.tar')
    assert run(tmp_path / 'teacher.pth.tar', out, '--benchmark', 'cifar10_if50') == 0
    report = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert (report['kind'], report['tensors'] + report['dropped_keys']) == (kind, len(state))

    logits = cosine_logits if kind == 'cosine' else linear_logits
    expected = logits(state, cifar_features(encoder, images()), 'linear')
    model = timm.create_model(f'local-dir:{out}', pretrained=True).eval()
    torch.testing.assert_close(model(images()), expected, rtol=1e-4, atol=1e-4)
    overlay = dict(file=str(out / 'model.safetensors'), num_classes=10)
    named = timm.create_model(
        'resnet32_cifar', pretrained=True, cosine=kind == 'cosine', pretrained_cfg_overlay=overlay).eval()
    assert torch.equal(named(images()), model(images()))

    config = json.loads((out / 'config.json').read_text())
    assert config['architecture'] == 'resnet32_cifar'
    assert config['model_args'].get('cosine', False) == (kind == 'cosine')
    assert config['label_names'] == list(BENCHMARKS['lt/cifar10'].class_names)
    cfg = config['pretrained_cfg']
    assert (cfg['mean'], cfg['std'], cfg['input_size']) == ([.4914, .4822, .4465], [.2023, .1994, .2010], [3, 32, 32])
    about = config['timm_deitlt']
    assert about['source_file'] == 'teacher.pth.tar'
    assert about['source_sha256'] == file_sha256(tmp_path / 'teacher.pth.tar')
    assert (about['kind'], about['benchmark']) == (kind, 'cifar10_if50')


@torch.no_grad()
def test_resnet50_teacher_of_inat_keeps_its_own_normalisation(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(convert_module, 'class_names', lambda *args: ([str(i) for i in range(8142)], 'list'))
    state = resnet50_encoder()
    state['fc.weight'] = torch.randn(2048, 8142)
    torch.save(teacher_file(with_prefix(state)), tmp_path / 'teacher.pth.tar')
    assert run(tmp_path / 'teacher.pth.tar', tmp_path / 'out', '--benchmark', 'inat18') == 0
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1])['architecture'] == 'resnet50_cosine'
    model = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True).eval()
    assert tuple(model.pretrained_cfg['mean']) == (.466, .471, .380) and model.pretrained_cfg['crop_pct'] == .875
    expected = cosine_logits(state, resnet50_features(state, images(64)), 'fc')
    torch.testing.assert_close(model(images(64)), expected, rtol=1e-4, atol=1e-5)


class Malice:
    """Pickles to a call that would leave a trace."""

    def __init__(self, call, *args):
        self.reduced = call, args

    def __reduce__(self):
        return self.reduced


def refusal(capsys, *args):
    """The one line by which the script refuses."""
    assert run(*args) == 2
    error = capsys.readouterr().err.strip()
    assert '\n' not in error and error.startswith('convert.py: error: ')
    return error


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'old'])
@pytest.mark.parametrize('call, name', [
    (os.system, 'posix.system'), (eval, 'eval'), (open, 'open'), (Path.touch, 'getattr'), (pickle.loads, 'loads'),
    (exec, 'exec'), (os.mkdir, 'posix.mkdir'),
])
def test_malicious_pickle_is_refused_and_not_executed(tmp_path, capsys, call, name, zipped):
    marker = tmp_path / 'marker'
    arguments = {
        os.system: f'touch {marker}', Path.touch: marker, open: (str(marker), 'w'), os.mkdir: str(marker),
        pickle.loads: pickle.dumps(Malice(os.mkdir, str(marker)))}
    argument = arguments.get(call, f'open({str(marker)!r}, "w")')
    malice = Malice(call, *argument) if isinstance(argument, tuple) else Malice(call, argument)
    file = {**teacher_file(teacher_of('linear')), 'best_acc1': malice}
    torch.save(file, tmp_path / 'teacher.pth.tar', _use_new_zipfile_serialization=zipped)
    error = refusal(capsys, tmp_path / 'teacher.pth.tar', tmp_path / 'out', '--benchmark', 'cifar10_if50')
    assert name in error and 'is refused and was not executed' in error
    assert not marker.exists() and not (tmp_path / 'out').exists()
    call(*malice.reduced[1])
    assert marker.exists()  # else the test would show nothing


def test_pickled_network_and_numpy_object_are_refused(tmp_path, capsys):
    torch.save(torch.nn.Linear(2, 2), tmp_path / 'a.pth')
    assert 'torch.nn.modules.linear.Linear' in refusal(capsys, tmp_path / 'a.pth', tmp_path / 'out')
    scalar = np.float64(1).__reduce__()[0]
    torch.save({'model': Malice(scalar, np.dtype('O'), b'12345678')}, tmp_path / 'b.pth')
    assert 'not a plain number' in refusal(capsys, tmp_path / 'b.pth', tmp_path / 'out')


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'old'])
@pytest.mark.parametrize('share', [0., .01, .5, .999])
def test_truncated_file_is_refused(tmp_path, capsys, zipped, share):
    torch.save(teacher_file(teacher_of('linear')), tmp_path / 'whole', _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / 'whole').read_bytes()
    (tmp_path / 'cut').write_bytes(whole[:int(len(whole) * share)])
    error = refusal(capsys, tmp_path / 'cut', tmp_path / 'out', '--benchmark', 'cifar10_if50')
    assert 'truncated, or not a checkpoint' in error and not (tmp_path / 'out').exists()


@pytest.mark.parametrize('content, words', [
    (b'<html>expired link</html>', 'truncated, or not a checkpoint'),
    (b'PK\x03\x04 not a zip', 'truncated, or not a checkpoint'),
    ([1, 2], 'holds a list'),
    ({'weights': 1, 'epoch': 2}, 'has the keys weights, epoch'),
    ({'model': {'a': 1}}, 'Not a state dict: found 1 int'),
    ({'state_dict': {}}, 'Not a state dict: found nothing'),
    ({'conv1.weight': torch.zeros(3)}, '1 tensors such as conv1.weight'),
])
def test_what_is_no_checkpoint_is_refused(tmp_path, capsys, content, words):
    path = tmp_path / 'file.pth'
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    assert words in refusal(capsys, path, tmp_path / 'out')


def test_contradicting_flags_and_damaged_weights_are_refused(tmp_path, capsys):
    path, out = tmp_path / 'teacher.pth.tar', tmp_path / 'out'
    state = teacher_of('linear')
    torch.save(teacher_file(state), path)
    assert 'cifar10_if100 or cifar10_if50: choose one by --benchmark' in refusal(capsys, path, out)
    assert 'contradicts the file' in refusal(capsys, path, out, '--benchmark', 'imagenet_lt')
    assert '--architecture resnet20_cifar contradicts' in refusal(
        capsys, path, out, '--benchmark', 'cifar10_if50', '--architecture', 'resnet20_cifar')
    assert 'There is no file' in refusal(capsys, tmp_path / 'nothing', out)
    for change, words in (
            ({'bn1.weight': torch.full((16,), float('nan'))}, 'bn1.weight holds NaN or Inf'),
            ({'more.weight': torch.zeros(1)}, 'more.weight is left over'),
    ):
        torch.save(teacher_file({**state, **change}), path)
        assert words in refusal(capsys, path, out, '--benchmark', 'cifar10_if50')
    assert not out.exists()


def test_only_a_converted_model_is_overwritten_and_only_when_asked(tmp_path, capsys):
    path, out = tmp_path / 'teacher.pth.tar', tmp_path / 'out'
    flags = ('--benchmark', 'cifar10_if50')
    torch.save(teacher_file(teacher_of('linear')), path)
    out.mkdir()
    assert run(path, out, *flags) == 0  # an empty folder is free
    before = (out / 'model.safetensors').read_bytes()
    torch.save(teacher_file(teacher_of('linear')), path)  # other weights
    assert 'is not empty' in refusal(capsys, path, out, *flags)
    assert (out / 'model.safetensors').read_bytes() == before
    assert run(path, out, *flags, '--overwrite') == 0
    assert (out / 'model.safetensors').read_bytes() != before
    (out / 'notes.txt').write_text('mine')
    assert 'is not empty' in refusal(capsys, path, out, *flags, '--overwrite')
    assert 'is a file' in refusal(capsys, path, out / 'notes.txt', *flags, '--overwrite')


@pytest.mark.parametrize('crash', ['save_file', 'save_config_for_hf'])
def test_crash_leaves_the_old_model_or_no_config(tmp_path, monkeypatch, crash):
    path, out = tmp_path / 'teacher.pth.tar', tmp_path / 'out'
    flags = ('--benchmark', 'cifar10_if50', '--overwrite')
    old = teacher_of('linear')
    torch.save(teacher_file(old), path)
    assert run(path, out, *flags) == 0
    torch.save(teacher_file(teacher_of('linear')), path)

    def crashes(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(convert_module, crash, crashes)
    with pytest.raises(KeyboardInterrupt):
        run(path, out, *flags)
    kept = load_file(out / 'model.safetensors')
    if crash == 'save_file':
        assert torch.equal(kept['conv1.weight'], old['conv1.weight']) and (out / 'config.json').is_file()
    else:
        assert {file.name for file in out.iterdir()} == {'model.safetensors'}
    monkeypatch.undo()
    assert run(path, out, *flags) == 0
    assert timm.create_model(f'local-dir:{out}', pretrained=True).num_classes == 10


def test_script_runs_as_users_run_it(tmp_path):
    path = tmp_path / 'teacher.pth.tar'
    torch.save(teacher_file(teacher_of('cosine', num_classes=100)), path)
    done = run_script(path, tmp_path / 'out', '--benchmark', 'cifar100_if100', script='hfhub/convert.py')
    assert last_json(done)['benchmark'] == 'cifar100_if100'


def test_help_names_what_can_be_given():
    usage = convert_parser().format_help()
    assert all(name in usage for name in ('student.pth', '--benchmark', '--list-file', '--class-order', '--overwrite'))
