"""Initialisations of attention against NumPy, and what they make a ViT attend to."""
import copy

import numpy as np
import pytest
import timm
import torch

from timm_deitlt.models.initialization import INITIALIZATIONS, initialize

WIDTH, HEADS = 48, 3


def vit(**kwargs):
    torch.manual_seed(0)
    return timm.create_model(
        'deit_lt_tiny', num_classes=5, **{
            'img_size': 32, 'patch_size': 4, 'embed_dim': WIDTH, 'depth': 2, 'num_heads': HEADS, **kwargs})


def truncated(matrix, rank):
    u, s, vh = np.linalg.svd(matrix)
    return u[:, :rank] * s[:rank] @ vh[:rank]


def noise():
    return torch.empty(WIDTH, WIDTH).uniform_(-(3 / WIDTH) ** .5, (3 / WIDTH) ** .5).double().numpy()


def test_mimetic_products_equal_the_published_formulas():
    model = vit()
    torch.manual_seed(1)
    initialize(model, 'mimetic')
    torch.manual_seed(1)
    rank = WIDTH // HEADS
    for block in model.blocks:
        query, key, value = block.attn.qkv.weight.detach().double().numpy().reshape(3, WIDTH, WIDTH)
        for head in range(HEADS):
            rows = slice(head * rank, (head + 1) * rank)
            expected = truncated(.7 * noise() + .7 * np.eye(WIDTH), rank)
            assert np.allclose(query[rows].T @ key[rows], expected, atol=1e-5)
        expected = .4 * noise() - .4 * np.eye(WIDTH)
        assert np.allclose(value.T @ block.attn.proj.weight.detach().double().numpy().T, expected, atol=1e-5)


def test_conditioned_projections_have_the_best_condition_number():
    model = vit()
    initialize(model, 'conditioned')
    for block in model.blocks:
        query, key, value = block.attn.qkv.weight.chunk(3)
        eye = torch.eye(WIDTH)
        assert torch.equal(value, eye)
        assert torch.allclose(query @ query.T, eye, atol=1e-5) and torch.allclose(key @ key.T, eye, atol=1e-5)
        assert not torch.allclose(query, key)


@pytest.mark.parametrize('how', INITIALIZATIONS)
def test_all_but_attention_and_positions_stays_and_a_seed_repeats(how):
    model = vit()
    before = copy.deepcopy(model.state_dict())
    states = []
    for _ in range(2):
        torch.manual_seed(1)
        initialize(model, how)
        states.append(copy.deepcopy(model.state_dict()))
    changed = {name for name, value in before.items() if not torch.equal(value, states[0][name])}
    per_block = {'attn.qkv.weight'} | ({'attn.proj.weight'} if how == 'mimetic' else set())
    assert changed == {'pos_embed'} | {f'blocks.{block}.{name}' for block in range(2) for name in per_block}
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_positions_are_sines_and_cosines_on_the_patches_and_nothing_on_the_tokens():
    model = vit(img_size=(16, 32))
    initialize(model, 'mimetic')
    tokens = model.pos_embed[0, :-32]
    assert len(tokens) == 2 and not tokens.any()
    bands = WIDTH // 4
    for index, patch in enumerate(model.pos_embed[0, -32:].tolist()):
        frequencies = [10000 ** (-band / bands) for band in range(bands)]
        angles = [place * f for place in divmod(index, 8) for f in frequencies]
        assert np.allclose(patch, [*np.sin(angles), *np.cos(angles)], atol=1e-5)
    assert model.pos_embed.requires_grad and 'pos_embed' in model.no_weight_decay()


def test_mimetic_tokens_attend_to_their_neighbours():
    model = vit(depth=6, embed_dim=192)
    initialize(model, 'mimetic')
    with torch.no_grad():
        block = model.blocks[0]
        tokens = block.norm1(model.pos_embed[0, 2:])
        query, key, _ = (part.unflatten(1, (HEADS, -1)).transpose(0, 1) for part in block.attn.qkv(tokens).chunk(3, -1))
        attention = (query @ key.mT * block.attn.scale).softmax(dim=-1).mean(dim=0)
    places = torch.cartesian_prod(torch.arange(8.), torch.arange(8.))
    distance = torch.cdist(places, places)
    assert (attention * distance).sum(-1).mean() < .6 * distance.mean()


def test_what_cannot_be_initialised_is_refused():
    with pytest.raises(ValueError, match='expected one of'):
        initialize(vit(), 'impulse')
    with pytest.raises(ValueError, match='leave --init out'):
        initialize(timm.create_model('resnet20_cifar'), 'mimetic')
    with pytest.raises(ValueError, match='multiple of 4'):
        initialize(vit(embed_dim=42), 'mimetic')
