"""Which parameters timm's Muon takes, and which it leaves to its AdamW."""
import doctest

import pytest
import timm
import torch
from helpers import vit
from timm.optim import create_optimizer_v2

from timm_deitlt.optim import muon as muon_module
from timm_deitlt.optim.muon import left_to_adamw
from timm_deitlt.task.guidance import GuidedStudent
from timm_deitlt.task.paco_network import PaCoNet

OUTSIDE = {'head.weight', 'head_dist.weight', 'patch_embed.proj.weight'}


def matrices_of_muon(model, **kwargs):
    """Parameters that Muon took in a step, by name."""
    optimizer = create_optimizer_v2(model, 'muon', lr=.01, weight_decay=.05, **kwargs)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {name for name, parameter in model.named_parameters() if optimizer.state[parameter]['use_muon']}


def test_timm_takes_heads_and_patch_embedding_unless_they_are_left_to_adamw():
    every = matrices_of_muon(vit())
    assert every >= OUTSIDE, 'a new timm leaves them out itself: --muon-hidden-only has nothing to do'
    model = vit()
    hidden = matrices_of_muon(model, fallback_list=left_to_adamw(model), fallback_no_weight_decay=True)
    assert hidden == every - OUTSIDE
    assert all(name.startswith('blocks.') for name in hidden)


def test_what_guides_a_student_is_left_to_adamw_too():
    model = vit()
    plain = matrices_of_muon(model, fallback_list=left_to_adamw(model), fallback_no_weight_decay=True)
    student = GuidedStudent(vit(), channels=[16, 32, 64])
    hidden = matrices_of_muon(student, fallback_list=left_to_adamw(student), fallback_no_weight_decay=True)
    assert hidden == {f'model.{name}' for name in plain}


def test_the_projection_of_paco_is_left_to_adamw_too():
    model = PaCoNet(timm.create_model('resnet20_cifar', num_classes=5), 8)
    hidden = matrices_of_muon(model, fallback_list=left_to_adamw(model), fallback_no_weight_decay=True)
    assert hidden and all(name.startswith('model.layer') for name in hidden)


@pytest.mark.parametrize('name', ['resnet50', 'efficientnet_b0', 'convnext_atto'])
def test_first_layer_and_classifier_of_any_model_have_a_pattern(name):
    model = timm.create_model(name)
    patterns = [pattern.removesuffix('.*') for pattern in left_to_adamw(model)]
    assert all(list(model.get_submodule(pattern).parameters()) for pattern in patterns) and len(patterns) == 2


def test_examples_in_the_documentation_run():
    result = doctest.testmod(muon_module, extraglobs={'timm': timm})
    assert result.attempted and not result.failed
