import copy

import pytest
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.data import resolve_data_config
from timm.layers import create_feature_extractor, get_graph_node_names
from timm.models import group_parameters

from timm_deitlt.benchmarks import CATALOGUE
from timm_deitlt.models import CosineLinear, ResNetCifar, set_cosine_classifier

BLOCKS = {'resnet20_cifar': 3, 'resnet32_cifar': 5, 'resnet44_cifar': 7, 'resnet56_cifar': 9}

variants = pytest.mark.parametrize('variant', BLOCKS)
both_classifiers = pytest.mark.parametrize('cosine', [False, True], ids=['linear', 'cosine'])


def create(variant='resnet20_cifar', **kwargs):
    """Model in eval mode whose BatchNorm statistics differ from the defaults."""
    torch.manual_seed(0)
    model = timm.create_model(variant, **{'num_classes': 10, **kwargs}).train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, kwargs.get('in_chans', 3), 16, 16))
    return model.eval()


def images(size=32, channels=3):
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))


def test_timm_lists_every_variant():
    assert timm.list_models(module='resnet_cifar') == sorted(BLOCKS)
    tagged = timm.list_models('resnet*_cifar', include_tags=True)
    assert {name.split('.')[0] for name in tagged} == set(BLOCKS) and 'resnet32_cifar.cifar100_if100_sam' in tagged


@variants
@both_classifiers
def test_cfg_is_cifars_and_the_tag_of_an_ldam_teacher_brings_its_cosine_classifier(variant, cosine):
    model = timm.create_model(f'{variant}.cifar100_if100_{"sam" if cosine else "paco_sam"}')
    config = resolve_data_config(model=model)
    assert isinstance(model, ResNetCifar)
    assert model.num_classes == 100 and isinstance(model.get_classifier(), CosineLinear if cosine else nn.Linear)
    assert (config['input_size'], config['crop_pct'], config['interpolation']) == ((3, 32, 32), 1., 'bicubic')
    assert (config['mean'], config['std']) == ((.4914, .4822, .4465), (.2023, .1994, .2010))
    assert not timm.create_model(variant).cosine


@pytest.mark.parametrize('variant, parameters', [
    ('resnet20_cifar', 269_722), ('resnet32_cifar', 464_154), ('resnet44_cifar', 658_586), ('resnet56_cifar', 853_018),
])
def test_depth_and_number_of_parameters(variant, parameters):
    model = timm.create_model(variant, num_classes=10)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == 6 * BLOCKS[variant] + 2 == int(variant[6:8])
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_shortcut_keeps_every_second_pixel_and_adds_zero_channels():
    block = create().layer2[0]
    assert not list(block.shortcut.parameters())
    x = torch.rand(1, 16, 5, 6)
    with torch.no_grad():
        block.bn2.weight.zero_()
        block.bn2.bias.zero_()
    out = block(x)
    assert out.shape == (1, 32, 3, 3)
    for channel in range(32):
        for row in range(3):
            for column in range(3):
                inside = 8 <= channel < 24
                expected = x[0, channel - 8, 2 * row, 2 * column] if inside else torch.tensor(0.)
                assert out[0, channel, row, column] == expected


def plain_block(state, prefix, x, stride):
    def conv_bn(x, index, stride):
        x = F.conv2d(x, state[f'{prefix}.conv{index}.weight'], stride=stride, padding=1)
        norm = [state[f'{prefix}.bn{index}.{name}'] for name in ('running_mean', 'running_var', 'weight', 'bias')]
        return F.batch_norm(x, *norm)

    out = conv_bn(conv_bn(x, 1, stride).clamp(min=0), 2, 1)
    if stride == 2:
        zeros = torch.zeros(len(x), x.shape[1] // 2, *out.shape[2:])
        x = torch.cat([zeros, x[:, :, ::2, ::2], zeros], dim=1)
    return (out + x).clamp(min=0)


def test_forward_equals_plain_recomputation():
    model = create()
    state, x = model.state_dict(), images()
    out = F.conv2d(x, state['conv1.weight'], padding=1)
    norm = [state[f'bn1.{name}'] for name in ('running_mean', 'running_var', 'weight', 'bias')]
    out = F.batch_norm(out, *norm).clamp(min=0)
    for stage in (1, 2, 3):
        for block in range(3):
            out = plain_block(state, f'layer{stage}.{block}', out, 2 if stage > 1 and block == 0 else 1)
    out = out.mean((2, 3)) @ state['fc.weight'].T + state['fc.bias']
    torch.testing.assert_close(model(x), out)


@variants
@both_classifiers
@pytest.mark.parametrize('options, size', [
    ({}, 32), ({'in_chans': 1}, 32), ({'num_classes': 7}, 64), ({'global_pool': 'catavgmax', 'drop_rate': 0.2}, 33),
])
def test_every_option_works(variant, cosine, options, size):
    model = create(variant, cosine=cosine, **options)
    x = images(size, options.get('in_chans', 3))
    assert model(x).shape == (2, options.get('num_classes', 10))
    features = model.forward_features(x)
    assert features.shape[1] == model.num_features == 64
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size)
    assert torch.equal(model.get_classifier()(pooled), model(x))


def test_unknown_option_is_an_error():
    with pytest.raises(TypeError, match='not_an_option'):
        create(not_an_option=1)


@both_classifiers
def test_reset_keeps_the_kind_of_classifier_and_the_pooling(cosine):
    model = create(cosine=cosine, global_pool='max').to(torch.float64)
    kind = type(model.get_classifier())
    assert kind is (CosineLinear if cosine else nn.Linear)
    pooled = model.forward_features(images().double()).amax((2, 3))
    model.reset_classifier(0)
    assert torch.equal(model(images().double()), pooled)
    model.reset_classifier(4)
    assert type(model.get_classifier()) is kind
    assert model.get_classifier().weight.dtype == torch.float64
    assert not model.get_classifier().training
    assert model(images().double()).shape == (2, 4)
    model.reset_classifier(0, '')
    assert model(images().double()).shape == (2, 64, 8, 8)


@variants
def test_features_only_returns_stem_and_stages(variant):
    features = create(variant, features_only=True)
    assert features.feature_info.channels() == [16, 16, 32, 64]
    assert features.feature_info.reduction() == [1, 1, 2, 4]
    for getter in (features, create(variant, features_only=True, feature_cls='getter')):
        assert [f.shape for f in getter(images())] == [(2, 16, 32, 32), (2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8)]


@variants
def test_intermediates_end_in_the_features(variant):
    model = create(variant)
    features, maps = model.forward_intermediates(images())
    assert torch.equal(features, model.forward_features(images()))
    assert torch.equal(features, maps[-1])
    assert torch.equal(model.forward_intermediates(images(), [1], stop_early=True)[0], maps[1])
    with pytest.raises(ValueError, match='NLC'):
        model.forward_intermediates(images(), output_fmt='NLC')


@pytest.mark.parametrize('index', range(4))
def test_pruned_model_ends_at_the_kept_feature_and_uses_every_parameter(index):
    model = create()
    expected = model.forward_intermediates(images(), [index], intermediates_only=True)[0]
    pruned = copy.deepcopy(model)
    assert pruned.prune_intermediate_layers([index]) == [index]
    features = pruned.forward_features(images())
    assert torch.equal(features, expected)
    assert pruned.num_features == features.shape[1]
    features.sum().backward()
    assert all(p.grad is not None for p in pruned.parameters())
    pruned.reset_classifier(5, 'avg')
    assert pruned(images()).shape == (2, 5)


@both_classifiers
def test_script_and_fx_equal_eager(cosine):
    model = create(cosine=cosine)
    expected = model(images())
    torch.testing.assert_close(torch.jit.script(model)(images()), expected)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(images()), expected)
    last = get_graph_node_names(model)[1][-1]
    graph = torch.jit.script(create_feature_extractor(model, [last]))
    torch.testing.assert_close(graph(images())[last], expected)


def test_checkpointing_gives_the_same_gradient():
    gradients = []
    for enable in (False, True):
        model = create()
        model.set_grad_checkpointing(enable)
        model.train()(images()).pow(2).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_layers_are_grouped_by_block_and_stage():
    model = create()
    fine = group_parameters(model, model.group_matcher(), reverse=True)
    assert fine['conv1.weight'] == fine['bn1.bias'] == 0
    assert [fine[f'layer{s}.{b}.conv1.weight'] for s in (1, 2, 3) for b in range(3)] == list(range(1, 10))
    assert fine['fc.weight'] == 10
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert [coarse[name] for name in ('conv1.weight', 'layer1.0.bn1.weight', 'layer3.2.bn2.bias', 'fc.bias')] == [
        0, 1, 3, 4]


def test_convolutions_start_with_he_variance():
    torch.manual_seed(0)
    for module in timm.create_model('resnet56_cifar').modules():
        if isinstance(module, nn.Conv2d) and module.in_channels >= 32:
            assert module.weight.std().item() == pytest.approx((2 / module.weight[0].numel()) ** 0.5, rel=0.05)


def test_init_weights_sets_every_tensor():
    model = create(cosine=True)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.copy_(torch.full_like(tensor, torch.nan if tensor.is_floating_point() else 7))
    model.init_weights()
    assert torch.isfinite(model(images())).all()


def test_cosine_checkpoint_holds_a_weight_only():
    linear, cosine = create().state_dict(), create(cosine=True).state_dict()
    assert linear.keys() - cosine.keys() == {'fc.bias'}
    assert cosine['fc.weight'].shape == linear['fc.weight'].shape == (10, 64)


def test_cosine_logits_equal_plain_recomputation():
    torch.manual_seed(0)
    layer = CosineLinear(5, 3, dtype=torch.float64)
    x = torch.randn(2, 5, dtype=torch.float64)
    logits = layer(x)
    for i, feature in enumerate(x.tolist()):
        for c, weight in enumerate(layer.weight.tolist()):
            dot = sum(a * b for a, b in zip(feature, weight, strict=True))
            lengths = sum(a * a for a in feature) ** 0.5 * sum(b * b for b in weight) ** 0.5
            assert logits[i, c].item() == pytest.approx(dot / lengths, abs=1e-12)


def test_cosine_logits_ignore_the_lengths_of_features_and_weights():
    torch.manual_seed(0)
    layer = CosineLinear(64, 10)
    torch.testing.assert_close(layer.weight.norm(dim=1), torch.ones(10))
    x = torch.randn(4, 64)
    logits = layer(x)
    assert logits.abs().max() <= 1
    with torch.no_grad():
        layer.weight.mul_(torch.rand(10, 1) + 0.5)
    torch.testing.assert_close(layer(30 * x), logits)


def test_cosine_normalises_half_precision_in_single():
    torch.manual_seed(0)
    layer = CosineLinear(64, 10)
    x = torch.randn(4, 64)
    expected = layer(x)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        logits = layer(x.bfloat16())
        assert logits.dtype == torch.bfloat16
        assert torch.equal(layer(torch.zeros(1, 64, dtype=torch.bfloat16)), torch.zeros(1, 10, dtype=torch.bfloat16))
    torch.testing.assert_close(logits.float(), expected, atol=0.01, rtol=0)
    # the length of such a feature does not fit into half precision
    with torch.no_grad():
        half = layer.half()(6e4 * torch.ones(1, 64, dtype=torch.float16))
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), CosineLinear.forward(layer.float(), torch.ones(1, 64)), atol=2e-3, rtol=0)


@pytest.mark.parametrize('name, classifier, size', [
    ('resnet20_cifar', 'fc', 32), ('test_resnet', 'fc', 64), ('test_convnext', 'head.fc', 64),
    ('test_vit', 'head', 160),
])
def test_any_timm_model_takes_a_cosine_classifier(name, classifier, size):
    model = timm.create_model(name, num_classes=6).double().eval()
    width = model.get_submodule(classifier).in_features
    assert set_cosine_classifier(model) is model
    cosine = model.get_submodule(classifier)
    assert isinstance(cosine, CosineLinear)
    assert cosine.weight.shape == (6, width)
    assert cosine.weight.dtype == torch.float64
    assert not cosine.training
    assert model(images(size).double()).abs().max() <= 1
    assert f'{classifier}.bias' not in model.state_dict()
    assert set_cosine_classifier(model).get_submodule(classifier) is cosine


@pytest.mark.parametrize('model, reason', [
    (lambda: timm.create_model('deit_tiny_distilled_patch16_224', depth=1), r"\('head', 'head_dist'\)"),
    (lambda: create(features_only=True), 'names None'),
    (lambda: create(num_classes=0), 'is Identity'),
    (lambda: nn.Linear(2, 2), 'names None'),
])
def test_model_without_one_linear_classifier_is_refused(model, reason):
    with pytest.raises(ValueError, match=reason):
        set_cosine_classifier(model())


@pytest.mark.parametrize('name', [name for name in CATALOGUE if name.startswith('resnet20_cifar.')])
def test_every_tag_says_how_large_the_last_feature_map_is(name):
    cfg = timm.get_pretrained_cfg(name)
    features = timm.create_model(name, device='meta').forward_features(torch.empty(1, *cfg.input_size, device='meta'))
    assert tuple(features.shape[-2:]) == cfg.pool_size
