import pytest
import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_data_config

from timm_deitlt.models import CosineLinear, ResNetCosine


@pytest.fixture(scope='module')
def pair():
    """A resnet50_cosine and the resnet50 with the same weights, in eval mode, with BatchNorm statistics of its own."""
    torch.manual_seed(0)
    cosine = timm.create_model('resnet50_cosine', num_classes=7).eval()
    for module in cosine.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, .1)
            module.running_var.uniform_(.5, 1.5)
            torch.nn.init.uniform_(module.weight, .5, 1.5)
    linear = timm.create_model('resnet50', num_classes=7).eval()
    linear.load_state_dict({**cosine.state_dict(), 'fc.bias': torch.zeros(7)})
    return cosine, linear


def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_keys_are_those_of_resnet50_without_the_bias(pair):
    cosine, linear = pair
    theirs = {key: value.shape for key, value in linear.state_dict().items() if key != 'fc.bias'}
    assert {key: value.shape for key, value in cosine.state_dict().items()} == theirs


@torch.no_grad()
def test_logits_are_cosines_of_the_features_of_resnet50(pair):
    cosine, linear = pair
    features = linear.forward_head(linear.forward_features(images()), pre_logits=True)
    expected = torch.stack([F.cosine_similarity(features, row[None]) for row in cosine.fc.weight], dim=1)
    torch.testing.assert_close(cosine(images()), expected)
    assert not torch.allclose(linear(images()), expected, atol=1e-2)


def test_reset_classifier_keeps_the_kind():
    model = timm.create_model('resnet50_cosine', device='meta')
    assert isinstance(model, ResNetCosine)
    for num_classes, pool, width in ((5, None, 2048), (3, 'catavgmax', 4096)):
        model.reset_classifier(num_classes, pool)
        assert isinstance(model.get_classifier(), CosineLinear)
        assert model.get_classifier().weight.shape == (num_classes, width)
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), torch.nn.Identity)


def test_without_classes_the_model_gives_features():
    model = timm.create_model('resnet50_cosine', num_classes=0).eval()
    assert model(images()).shape == (2, 2048)
    assert not [key for key in model.state_dict() if key.startswith('fc')]


@pytest.mark.parametrize('tag, num_classes, mean, std, parameters', [
    ('imagenet_lt_sam', 1000, (.485, .456, .406), (.229, .224, .225), 25_556_032),
    ('inat18_sam', 8142, (.466, .471, .380), (.195, .194, .192), 40_182_848),
])
def test_cfg_is_that_of_the_teachers_images(tag, num_classes, mean, std, parameters):
    assert f'resnet50_cosine.{tag}' in timm.list_models('resnet50_cosine', include_tags=True)
    model = timm.create_model(f'resnet50_cosine.{tag}', device='meta')
    config = resolve_data_config(model=model)
    assert (model.num_classes, config['input_size'], config['crop_pct']) == (num_classes, (3, 224, 224), .875)
    assert (config['mean'], config['std'], config['interpolation']) == (mean, std, 'bilinear')
    assert model.pretrained_cfg['classifier'] == 'fc'
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
