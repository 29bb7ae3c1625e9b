import pytest
import timm
import torch
from timm.data import resolve_data_config
from timm.layers import PatchDropout, create_feature_extractor, get_graph_node_names
from timm.optim import create_optimizer_v2

import timm_deitlt.models
from timm_deitlt.models import DeiTLT

VARIANTS = {'deit_lt_tiny': 192, 'deit_lt_small': 384, 'deit_lt_base': 768}
SMALL = {'img_size': 32, 'patch_size': 8, 'depth': 3, 'num_classes': 10}
NARROW = {'embed_dim': 48, 'num_heads': 3}

variants = pytest.mark.parametrize('variant', VARIANTS)


def twin(variant):
    """Name of timm's distilled DeiT of the same size."""
    return f'{variant.replace("_lt_", "_")}_distilled_patch16_224'


def create(variant, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(variant, **{**SMALL, **kwargs}).eval()


def images(size=32, channels=3):
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))


def test_timm_lists_every_variant():
    assert timm.list_models(module='deit_lt') == sorted(VARIANTS)
    tagged = timm.list_models('deit_lt_*', include_tags=True)
    assert {name.split('.')[0] for name in tagged} == set(VARIANTS) and f'{min(VARIANTS)}.imagenet_lt' in tagged


@variants
def test_cfg_is_the_papers_test_protocol(variant):
    model = create(f'{variant}.imagenet_lt')
    config = resolve_data_config(model=model)
    assert isinstance(model, DeiTLT)
    assert (config['input_size'], config['crop_pct'], config['interpolation']) == ((3, 224, 224), 0.875, 'bicubic')
    assert int(config['input_size'][-1] / config['crop_pct']) == 256
    assert (config['mean'], config['std']) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert model.pretrained_cfg['classifier'] == ('head', 'head_dist')


@variants
def test_parameters_are_those_of_timms_distilled_deit(variant):
    ours, theirs = (timm.create_model(name, device='meta') for name in (f'{variant}.imagenet_lt', twin(variant)))
    assert ours.num_classes == 1000
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


@pytest.mark.parametrize('variant, count', [
    ('deit_lt_tiny', 5_563_400), ('deit_lt_small', 21_743_432), ('deit_lt_base', 85_953_992),
])
def test_number_of_parameters_with_a_hundred_classes(variant, count):
    model = timm.create_model(f'{variant}.cifar100_if100', device='meta')
    assert sum(p.numel() for p in model.parameters()) == count


@variants
def test_weights_of_timms_distilled_deit_give_the_same_logits(variant):
    ours, theirs = create(variant), create(twin(variant))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
        assert not torch.allclose(ours(images()), theirs(images()))
        ours.load_state_dict(theirs.state_dict(), strict=True)
        assert torch.equal(ours(images()), theirs(images()))


@variants
def test_mean_of_the_experts_is_what_evaluation_returns(variant):
    model = create(variant, **NARROW)
    cls_logits, dist_logits = model.forward_experts(images())
    assert cls_logits.shape == dist_logits.shape == (2, 10)
    assert not torch.allclose(cls_logits, dist_logits)
    assert torch.equal((cls_logits + dist_logits) / 2, model(images()))


def test_experts_are_what_distilled_training_returns():
    model = create('deit_lt_tiny').train()
    experts = model.forward_experts(images())
    assert torch.equal((experts[0] + experts[1]) / 2, model(images()))
    model.set_distilled_training(True)
    assert all(torch.equal(a, b) for a, b in zip(experts, model(images()), strict=True))


def test_experts_without_classifier_are_the_tokens():
    model = create('deit_lt_tiny', num_classes=0)
    tokens = model.forward_features(images())
    cls_token, dist_token = model.forward_experts(images())
    assert torch.equal(cls_token, tokens[:, 0])
    assert torch.equal(dist_token, tokens[:, 1])
    assert torch.equal(model(images()), (cls_token + dist_token) / 2)
    model.reset_classifier(7)
    assert [logits.shape for logits in model.forward_experts(images())] == [(2, 7), (2, 7)]


@variants
@pytest.mark.parametrize('options, size', [
    ({'in_chans': 1}, 32),
    ({'num_classes': 7}, 32),
    ({'img_size': 48, 'patch_size': 4}, 48),
    ({'drop_path_rate': 0.2, 'drop_rate': 0.1, 'proj_drop_rate': 0.1}, 32),
    ({'embed_dim': 24, 'depth': 4, 'num_heads': 2}, 32),
    ({'dynamic_img_size': True}, 40),
    ({'patch_drop_rate': .5}, 32),
])
def test_every_option_of_timms_deit_works(variant, options, size):
    model = create(variant, **options)
    assert model(images(size, options.get('in_chans', 3))).shape == (2, options.get('num_classes', 10))
    assert model.embed_dim == options.get('embed_dim', VARIANTS[variant])
    assert len(model.blocks) == options.get('depth', 3)


def test_drop_path_grows_with_depth():
    model = create('deit_lt_tiny', drop_path_rate=0.2)
    rates = [getattr(block.drop_path1, 'drop_prob', 0.) for block in model.blocks]
    assert rates == pytest.approx([0., 0.1, 0.2])


@pytest.mark.parametrize('rate', [.25, .5, .9])
def test_patch_dropout_keeps_both_tokens_and_as_many_patches_as_timms(rate):
    model = create('deit_lt_tiny', patch_drop_rate=rate, embed_dim=24, num_heads=2, depth=1).train()
    model.set_distilled_training(True)
    seen = []
    model.patch_drop.register_forward_hook(lambda module, args, output: seen.append((*args, output)))
    for _ in range(20):
        model(images())
    kept = PatchDropout(rate).train()(torch.zeros(2, 1 + 16, 24)).shape[1] - 1
    for before, after in seen:
        assert torch.equal(after[:, :2], before[:, :2])
        assert after.shape == (2, 2 + kept, 24)
    assert len(seen) == 20 and any(not torch.equal(after[:, 2:], seen[0][1][:, 2:]) for _, after in seen)
    assert torch.equal(model.eval().patch_drop(before), before)


def test_unknown_option_is_an_error():
    with pytest.raises(TypeError, match='not_an_option'):
        create('deit_lt_tiny', not_an_option=1)


@variants
def test_features_only_returns_the_last_three_maps(variant):
    features = create(variant, features_only=True, depth=5)
    assert features.feature_info.channels() == [VARIANTS[variant]] * 3
    assert [f.shape for f in features(images())] == [(2, VARIANTS[variant], 4, 4)] * 3
    assert len(create(variant, features_only=True, out_indices=(0, 2))(images())) == 2


@variants
def test_intermediates_end_in_the_features(variant):
    model = create(variant)
    tokens, maps = model.forward_intermediates(images(), norm=True)
    assert torch.equal(tokens, model.forward_features(images()))
    assert len(maps) == 3
    torch.testing.assert_close(maps[-1].flatten(2).transpose(1, 2), tokens[:, 2:])


@variants
def test_script_equals_eager_for_logits_and_experts(variant):
    with timm.set_scriptable(True):
        model = create(variant, **NARROW)
    scripted = torch.jit.script(model)
    with torch.no_grad():
        torch.testing.assert_close(scripted(images()), model(images()))
        experts, expected = scripted.forward_experts(images()), model.forward_experts(images())
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(experts, expected, strict=True))


@variants
def test_fx_graph_equals_eager(variant):
    model = create(variant, **NARROW)
    last = get_graph_node_names(model)[1][-1]
    graph = create_feature_extractor(model, [last])
    torch.testing.assert_close(graph(images())[last], model(images()))


@variants
def test_checkpointing_gives_the_same_gradient(variant):
    gradients = []
    for enable in (False, True):
        model = create(variant, **NARROW).train()
        model.set_distilled_training(True)
        model.set_grad_checkpointing(enable)
        sum(logits.pow(2).sum() for logits in model(images())).backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@variants
def test_tokens_and_positions_are_free_of_weight_decay(variant):
    model = create(variant)
    free, decayed = create_optimizer_v2(model, 'adamw', lr=1e-3, weight_decay=0.05).param_groups
    assert (free['weight_decay'], decayed['weight_decay']) == (0., 0.05)
    free = {id(p) for p in free['params']}
    for name, parameter in model.named_parameters():
        expected = parameter.ndim == 1 or name in ('cls_token', 'dist_token', 'pos_embed')
        assert (id(parameter) in free) is expected, name


def test_checkpoint_of_another_size_and_class_count_loads(tmp_path):
    """Positions are resampled and both heads dropped: the filter and the names of the classifiers are wired."""
    model = create('deit_lt_tiny')
    torch.save(model.state_dict(), tmp_path / 'weights.pth')
    overlay = {'file': str(tmp_path / 'weights.pth'), 'num_classes': 10}
    same = create('deit_lt_tiny', pretrained=True, pretrained_cfg_overlay=overlay)
    assert torch.equal(same(images()), model(images()))

    other = create('deit_lt_tiny', img_size=48, num_classes=5, pretrained=True, pretrained_cfg_overlay=overlay)
    assert other.pos_embed.shape == (1, 2 + 36, 192)
    assert torch.equal(other.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight)
    assert [logits.shape for logits in other.forward_experts(images(48))] == [(2, 5), (2, 5)]


@variants
def test_tag_of_the_digits_makes_a_model_of_their_size(variant):
    model = timm.create_model(f'{variant}.digits_if10', device='meta')
    assert model.num_classes == 10 and model.pos_embed.shape[1] == 2 + (32 // 16) ** 2
    assert model(torch.empty(1, 3, 32, 32, device='meta')).shape == (1, 10)


def test_public_names_of_the_package():
    assert set(timm_deitlt.models.__all__) == {
        'CosineLinear', 'DeiTLT', 'ResNetCifar', 'ResNetCosine', 'set_cosine_classifier'}
