"""Measures of the mechanisms against plain loops, against timm, and at their known limits."""
import math

import pytest
import timm
import torch
from timm.layers import set_fused_attn, use_fused_attn
from timm.models.vision_transformer import ParallelScalingBlock, ParallelThingsBlock, VisionTransformer
from timm.utils import AttentionExtract

from timm_deitlt.analysis import (
    TeacherView,
    attention_maps,
    attention_rollout,
    divergence,
    effective_rank,
    energy_rank,
    mean_attention_distance,
    prefix_attention,
    token_features,
    uniform_attention_distance,
    watched_attention,
)

TINY = dict(img_size=(8, 12), patch_size=4, embed_dim=12, depth=2, num_heads=3, num_classes=5)
PREFIX, GRID = 2, (2, 3)


def student(seed=0, **kwargs):
    torch.manual_seed(seed)
    model = timm.create_model('deit_lt_tiny', **{**TINY, **kwargs})
    for name, parameter in model.named_parameters():  # far from the even attention of a fresh network
        torch.nn.init.normal_(parameter, mean=float('norm' in name and 'weight' in name), std=.5)
    return model.eval()


def some_images(n=4, seed=1):
    return torch.randn(n, 3, 8, 12, generator=torch.Generator().manual_seed(seed))


def random_attention(*shape, seed=0):
    return (3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).softmax(dim=-1)


def set_fused(model, fused):
    for block in model.blocks:
        block.attn.fused_attn = fused


def softmax(values):
    top = max(values)
    powers = [math.exp(value - top) for value in values]
    return [power / sum(powers) for power in powers]


# attention

def test_attention_is_what_plain_loops_make_of_the_input_of_each_block():
    model, images = student(), some_images(2)
    inputs = []
    for block in model.blocks:
        block.norm1.register_forward_hook(lambda module, args, output: inputs.append(output))
    maps = attention_maps(model, images)
    assert len(maps) == 2 and maps[0].shape == (2, 3, 8, 8)
    for block, x, attention in zip(model.blocks, inputs, maps, strict=True):
        weight, bias = block.attn.qkv.weight.tolist(), block.attn.qkv.bias.tolist()
        for b in range(2):
            rows = x[b].tolist()
            projected = [[sum(w * v for w, v in zip(line, row, strict=True)) + c
                          for line, c in zip(weight, bias, strict=True)] for row in rows]
            for head in range(3):
                queries = [row[4 * head:4 * head + 4] for row in projected]
                keys = [row[12 + 4 * head:12 + 4 * head + 4] for row in projected]
                for i, query in enumerate(queries):
                    scores = [sum(q * k for q, k in zip(query, key, strict=True)) / 2 for key in keys]
                    assert attention[b, head, i].tolist() == pytest.approx(softmax(scores), abs=1e-5)


@pytest.mark.parametrize('kwargs', [
    {}, dict(qk_norm=True, scale_attn_norm=True), dict(qkv_bias=False, init_values=.1)])
def test_attention_equals_what_timm_extracts_unfused(kwargs):
    before = use_fused_attn()
    try:
        set_fused_attn(False)
        model = student(**kwargs)
        images = some_images()
        extracted = AttentionExtract(model, method='hook')(images)
    finally:
        set_fused_attn(before)
    maps = attention_maps(model, images)
    assert list(extracted) == ['blocks.0.attn.attn_drop', 'blocks.1.attn.attn_drop']
    for ours, theirs in zip(maps, extracted.values(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.std() > .05, 'a network without preferences would show nothing'


@pytest.mark.parametrize('mask', ['bool', 'added', 'causal'])
def test_masks_are_respected(mask):
    model, images = student(), some_images()
    set_fused(model, False)
    seen = []
    for block in model.blocks:
        block.attn.attn_drop.register_forward_hook(lambda module, args, output: seen.append(output))
    generator = torch.Generator().manual_seed(0)
    allowed = (torch.rand(8, 8, generator=generator) > .4) | torch.eye(8, dtype=torch.bool)
    kwargs = {
        'bool': dict(attn_mask=allowed), 'causal': dict(is_causal=True),
        'added': dict(attn_mask=torch.randn(8, 8, generator=generator))}[mask]
    maps = []
    with torch.no_grad(), watched_attention(model, lambda _, attention: maps.append(attention)):
        model.forward_features(images, **kwargs)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(maps, seen, strict=True))
    hidden = {'bool': ~allowed, 'causal': torch.ones(8, 8).triu(1).bool(), 'added': torch.zeros(8, 8).bool()}[mask]
    assert not maps[0][..., hidden].any() and (maps[0][..., ~hidden] > 0).all()


def test_fused_and_unfused_attention_agree():
    model, images = student(), some_images()
    maps = {}
    for fused in (True, False):
        set_fused(model, fused)
        maps[fused] = attention_maps(model, images)
    for fused, plain in zip(maps[True], maps[False], strict=True):
        assert torch.allclose(fused, plain, atol=1e-5)
        assert torch.allclose(fused.sum(dim=-1), torch.ones(()), atol=1e-5)


@pytest.mark.parametrize('fused', [True, False])
def test_watching_changes_no_output(fused):
    model, images = student(), some_images()
    set_fused(model, fused)
    before = model(images)
    blocks = []
    with watched_attention(model, lambda block, attention: blocks.append(block)):
        during = model(images)
    assert blocks == [0, 1]
    assert torch.equal(before, during) and torch.equal(before, model(images))
    assert blocks == [0, 1], 'nothing is watched afterwards'


def test_hooks_and_modes_are_put_back_even_after_an_error():
    model = student(drop_rate=.5, drop_path_rate=.5, attn_drop_rate=.5).train()
    model.blocks[0].eval()
    maps = attention_maps(model, some_images())
    assert all(torch.equal(a, b) for a, b in zip(maps, attention_maps(model, some_images()), strict=True)), 'no dropout'
    token_features(model, some_images())
    with pytest.raises(AssertionError, match='height'):
        attention_maps(model, torch.zeros(1, 3, 5, 5))
    assert model.training and model.blocks[1].training and not model.blocks[0].training
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_rows_sum_to_one_under_autocast_too():
    with torch.autocast('cpu', dtype=torch.bfloat16):
        maps = attention_maps(student(), some_images())
    for attention in maps:
        assert attention.dtype == torch.float32
        assert torch.allclose(attention.sum(dim=-1), torch.ones(()), atol=1e-5)


@pytest.mark.parametrize('model', [
    lambda: timm.create_model('resnet20_cifar', num_classes=5),
    lambda: VisionTransformer(**TINY, block_fn=ParallelScalingBlock),
    lambda: VisionTransformer(**TINY, block_fn=ParallelThingsBlock),
    lambda: VisionTransformer(**{**TINY, 'num_heads': 2}, attn_layer='diff'),
    lambda: timm.create_model('swin_tiny_patch4_window7_224', num_classes=5, embed_dim=12, depths=(1,), num_heads=(3,)),
])
def test_models_without_plain_attention_are_refused_by_name(model):
    model = model()
    with pytest.raises(ValueError, match=f'^{type(model).__name__} has no blocks with the attention of a plain ViT'):
        attention_maps(model, torch.zeros(1, 3, 8, 12))


# distance

def slow_distance(attention, grid, patch_px, prefix):
    """Means over queries and images by plain loops."""
    places = [(row * patch_px[0], column * patch_px[1]) for row in range(grid[0]) for column in range(grid[1])]
    heads = []
    for head in range(attention.shape[1]):
        means = []
        for b in range(attention.shape[0]):
            for i, (y, x) in enumerate(places):
                weights = [attention[b, head, prefix + i, prefix + j].item() for j in range(len(places))]
                means.append(sum(
                    w * math.hypot(y - v, x - u) for w, (v, u) in zip(weights, places, strict=True)) / sum(weights))
        heads.append(sum(means) / len(means))
    return heads


@pytest.mark.parametrize('prefix, grid, patch_px', [(2, (2, 3), (4, 4)), (1, (3, 2), (5, 2)), (0, (1, 4), (16, 16))])
def test_mean_attention_distance_equals_plain_loops(prefix, grid, patch_px):
    length = prefix + grid[0] * grid[1]
    attention = random_attention(3, 2, length, length)
    found = mean_attention_distance(attention, grid, patch_px, prefix)
    assert found.tolist() == pytest.approx(slow_distance(attention, grid, patch_px, prefix), rel=1e-5)
    assert found.dtype == torch.float64


def test_uniform_attention_on_14_by_14_patches_of_16_px_reaches_116_and_a_half():
    uniform = torch.full((2, 3, 198, 198), 1 / 198)
    assert mean_attention_distance(uniform, (14, 14), 16, 2).tolist() == pytest.approx([116.4922] * 3, abs=1e-3)
    assert uniform_attention_distance((14, 14), (16, 16)) == pytest.approx(116.4922, abs=1e-4)


def test_attention_to_oneself_has_no_distance_and_to_the_neighbour_that_of_a_patch():
    itself = torch.eye(2 + 16).expand(1, 1, -1, -1)
    assert mean_attention_distance(itself, (4, 4), 8, 2).tolist() == [0.]
    right = torch.zeros(1, 1, 4, 4)
    right[..., [0, 1, 2, 3], [1, 0, 3, 2]] = 1.  # the other patch of the same row
    assert mean_attention_distance(right, (2, 2), (3, 7), 0).tolist() == [7.]


def test_what_prefix_tokens_see_and_get_does_not_count():
    attention = random_attention(2, 2, 8, 8)
    other = attention.clone()
    other[:, :, :PREFIX] = random_attention(2, 2, 2, 8, seed=1)
    # queries that give more to CLS and DIST, and to the patches in the same proportion
    other[:, :, PREFIX:, PREFIX:] *= .3
    other[:, :, PREFIX:, 0] += .7 * attention[:, :, PREFIX:, PREFIX:].sum(dim=-1)
    assert torch.allclose(
        mean_attention_distance(attention, GRID, 4, PREFIX), mean_attention_distance(other, GRID, 4, PREFIX))


def test_query_that_sees_no_patch_is_left_out():
    attention = random_attention(1, 1, 8, 8)
    blind = attention.clone()
    blind[0, 0, PREFIX] = torch.eye(8)[0]
    mean = mean_attention_distance(attention, GRID, 4, PREFIX).item()
    first = attention[0, 0, PREFIX, PREFIX:]
    distances = [math.hypot(4 * (i // 3), 4 * (i % 3)) for i in range(6)]
    of_first = sum(w * d for w, d in zip(first.tolist(), distances, strict=True)) / first.sum().item()
    assert mean_attention_distance(blind, GRID, 4, PREFIX).item() == pytest.approx((6 * mean - of_first) / 5, rel=1e-5)


def test_attention_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r'\[B, heads, 8, 8\], got \[1, 2, 7, 7\]'):
        mean_attention_distance(torch.zeros(1, 2, 7, 7), GRID, 4, PREFIX)


# maps

def slow_rollout(attentions, prefix):
    """Rows of the prefix tokens by plain loops, for one image."""
    length = attentions[0].shape[-1]
    rollout = [[float(i == j) for j in range(length)] for i in range(length)]
    for attention in attentions:
        mean = attention.mean(dim=0).tolist()
        mixed = [[(mean[i][j] + (i == j)) / 2 for j in range(length)] for i in range(length)]
        mixed = [[value / sum(row) for value in row] for row in mixed]
        rollout = [
            [sum(mixed[i][k] * rollout[k][j] for k in range(length)) for j in range(length)] for i in range(length)]
    return [[value / sum(row[prefix:]) for value in row[prefix:]] for row in rollout[:prefix]]


@pytest.mark.parametrize('prefix', [1, 2])
def test_rollout_equals_plain_loops(prefix):
    attentions = [random_attention(2, 3, 6, 6, seed=seed) for seed in range(3)]
    rollout = attention_rollout(attentions, prefix)
    assert rollout.shape == (2, prefix, 6 - prefix)
    for image in range(2):
        expected = slow_rollout([attention[image] for attention in attentions], prefix)
        for row, wanted in zip(rollout[image].tolist(), expected, strict=True):
            assert row == pytest.approx(wanted, abs=1e-6)


def test_rollout_goes_from_the_first_block_to_the_last():
    to_first, to_second = torch.zeros(2, 1, 1, 3, 3)
    to_first[..., 1], to_second[..., 2] = 1., 1.  # every token looks at one patch only
    # half of CLS is the second patch as the first block left it, which is half the first patch; of the other half,
    # CLS as the first block left it, half is the first patch
    rollout = attention_rollout([to_first, to_second], 1)
    assert rollout[0, 0].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert attention_rollout([to_second, to_first], 1)[0, 0].tolist() == pytest.approx([1 / 3, 2 / 3])


def test_rollout_of_uniform_attention_is_uniform():
    rollout = attention_rollout([torch.full((1, 2, 8, 8), 1 / 8)] * 4, PREFIX)
    assert torch.allclose(rollout, torch.full((1, 2, 6), 1 / 6))


def test_prefix_attention_is_the_mean_of_the_heads_over_the_patches():
    attention = random_attention(2, 3, 8, 8)
    rows = prefix_attention(attention, PREFIX)
    for b in range(2):
        for i in range(PREFIX):
            mean = [sum(attention[b, head, i, j].item() for head in range(3)) / 3 for j in range(PREFIX, 8)]
            assert rows[b, i].tolist() == pytest.approx([value / sum(mean) for value in mean], abs=1e-6)


def test_maps_without_blocks_or_prefix_tokens_are_refused():
    with pytest.raises(ValueError, match='at least one block'):
        attention_rollout([], 2)
    with pytest.raises(ValueError, match='there are 0'):
        prefix_attention(random_attention(1, 1, 4, 4), 0)


# tokens

def test_tokens_are_the_outputs_of_the_blocks_and_what_the_heads_get():
    model, images = student(), some_images()
    outputs = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, output: outputs.append(output))
    tokens = token_features(model, images)
    assert tokens.cls.shape == tokens.dist.shape == (2, 4, 12)
    for i, output in enumerate(outputs):
        assert torch.equal(tokens.cls[i], output[:, 0]) and torch.equal(tokens.dist[i], output[:, 1])
    logits = model.head(tokens.cls_norm), model.head_dist(tokens.dist_norm)
    for ours, theirs in zip(logits, model.forward_experts(images), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_register_is_not_taken_for_dist():
    model = VisionTransformer(**TINY, reg_tokens=2)
    tokens = token_features(model, some_images())
    assert tokens.cls.shape == (2, 4, 12) and tokens.dist is None and tokens.dist_norm is None
    assert attention_maps(model, some_images())[0].shape == (4, 3, 9, 9)


@pytest.mark.parametrize('model', [
    lambda: timm.create_model('resnet20_cifar', num_classes=5),
    lambda: VisionTransformer(**TINY, class_token=False, global_pool='avg')])
def test_models_without_a_cls_token_are_refused_by_name(model):
    model = model()
    with pytest.raises(ValueError, match=f'^{type(model).__name__} has no CLS token'):
        token_features(model, some_images())


def slow_singular_values(matrix):
    """One-sided Jacobi rotations: lengths of the columns once all are orthogonal."""
    columns = [list(column) for column in zip(*matrix, strict=True)]

    def dot(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True))

    for _ in range(60):
        for p in range(len(columns)):
            for q in range(p + 1, len(columns)):
                a, b, c = dot(columns[p], columns[p]), dot(columns[q], columns[q]), dot(columns[p], columns[q])
                if abs(c) < 1e-15:
                    continue
                tau = (b - a) / (2 * c)
                t = math.copysign(1, tau) / (abs(tau) + math.hypot(1, tau))
                cosine = 1 / math.hypot(1, t)
                columns[p], columns[q] = (
                    [cosine * x - cosine * t * y for x, y in zip(columns[p], columns[q], strict=True)],
                    [cosine * t * x + cosine * y for x, y in zip(columns[p], columns[q], strict=True)])
    return sorted((math.sqrt(dot(column, column)) for column in columns), reverse=True)


@pytest.mark.parametrize('energy', [.5, .9, .99])
def test_ranks_equal_plain_loops_for_each_block(energy):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 9, 5, generator=generator) * torch.tensor([3., 1., .5, .2, .05])
    for block, rank, effective in zip(
            features, energy_rank(features, energy).tolist(), effective_rank(features).tolist(), strict=True):
        values = slow_singular_values(block.double().tolist())
        total, reached, expected = sum(v * v for v in values), 0., 0
        while reached < energy * total:
            reached += values[expected] ** 2
            expected += 1
        assert rank == expected
        shares = [value / sum(values) for value in values]
        assert effective == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-9)


def orthogonal(n, k, seed=0):
    return torch.linalg.qr(torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]


@pytest.mark.parametrize('k', [1, 3, 8])
def test_rank_of_a_matrix_of_rank_k_is_k(k):
    flat = orthogonal(40, k) @ orthogonal(12, k, seed=1).T
    assert energy_rank(flat).item() == k
    assert effective_rank(flat).item() == pytest.approx(k, rel=1e-6)
    assert effective_rank(1e3 * flat).item() == pytest.approx(k, rel=1e-6), 'whatever their scale'


def test_rank_is_at_most_the_number_of_images():
    assert energy_rank(torch.randn(7, 100), energy=1.).item() <= 7
    assert effective_rank(torch.randn(7, 100)).item() <= 7


def test_rank_counts_what_all_images_share():
    varying = orthogonal(40, 3) - orthogonal(40, 3).mean(dim=0)
    features = varying @ orthogonal(12, 3, seed=1).T
    shared = features + torch.linspace(-1, 1, 12, dtype=torch.float64)
    assert energy_rank(features).item() == energy_rank(shared - shared.mean(dim=0)).item() == 3
    assert energy_rank(shared, energy=.9999999).item() == 4
    assert energy_rank(10 * shared + 40 * shared.mean(dim=0)).item() == 1, 'and may drown the rest'


def test_rank_of_nothing_is_none():
    assert energy_rank(torch.zeros(2, 4, 3)).tolist() == [0, 0]


def test_a_rank_of_no_energy_is_refused():
    with pytest.raises(ValueError, match='energy=0'):
        energy_rank(torch.ones(2, 2), energy=0)


def test_divergence_equals_plain_loops_for_each_block():
    cls, dist = torch.randn(2, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    for a, b, found in zip(cls.tolist(), dist.tolist(), divergence(cls, dist).tolist(), strict=True):
        cosines = [
            sum(x * y for x, y in zip(u, v, strict=True)) / (math.hypot(*u) * math.hypot(*v))
            for u, v in zip(a, b, strict=True)]
        assert found == pytest.approx(1 - sum(cosines) / 5, abs=1e-9)


def test_divergence_of_identical_orthogonal_and_opposite_tokens():
    tokens = torch.randn(6, 4)
    assert divergence(tokens, tokens).item() == pytest.approx(0, abs=1e-12)
    assert divergence(tokens, 3 * tokens).item() == pytest.approx(0, abs=1e-9)
    assert divergence(tokens, -tokens).item() == pytest.approx(2, abs=1e-9)
    assert divergence(torch.eye(4), torch.eye(4).roll(1, 0)).item() == 1
    assert divergence(torch.zeros(2, 3), torch.ones(2, 3)).item() == 1, 'eps keeps a zero token from being NaN'


# the teacher

def test_teacher_view_equals_plain_loops_over_batches_of_labels_and_mixtures():
    generator = torch.Generator().manual_seed(0)
    teacher, dist = 2 * torch.randn(2, 30, 5, generator=generator)
    mixed = torch.rand(10, 5, generator=generator).softmax(dim=-1)
    hard = torch.randint(5, (20,), generator=generator)
    view = TeacherView(tail=[1, 4], logit_scale=1.5)
    view.update(teacher[:20], hard, dist[:20])
    view.update(teacher[20:], mixed, dist[20:])
    labels = hard.tolist() + [row.index(max(row)) for row in mixed.tolist()]
    says = [row.index(max(row)) for row in teacher.tolist()]
    entropies = []
    for row in teacher.tolist():
        shares = softmax([1.5 * value for value in row])
        entropies.append(-sum(p * math.log(p) for p in shares))
    agreed = [a == row.index(max(row)) for a, row in zip(says, dist.tolist(), strict=True)]
    assert view.compute() == {
        'top1': pytest.approx(100 * sum(a == b for a, b in zip(says, labels, strict=True)) / 30),
        'entropy': pytest.approx(sum(entropies) / 30, rel=1e-6),
        'tail_share': pytest.approx(100 * sum(a in (1, 4) for a in says) / 30),
        'true_tail_share': pytest.approx(100 * sum(a in (1, 4) for a in labels) / 30),
        'agreement': pytest.approx(100 * sum(agreed) / 30),
        'num_views': 30,
    }


def test_entropy_is_that_of_all_classes_without_a_clue_and_nothing_with_certainty():
    blank, sure = TeacherView(tail=[0]), TeacherView(tail=[0], logit_scale=1e4)
    blank.update(torch.zeros(3, 8), torch.zeros(3, dtype=torch.int64))
    sure.update(torch.eye(8), torch.arange(8))
    assert blank.compute()['entropy'] == pytest.approx(math.log(8))
    assert sure.compute()['entropy'] == 0 and sure.compute()['top1'] == 100


def test_agreement_is_unknown_where_dist_was_not_compared():
    view = TeacherView(tail=[0])
    view.update(torch.eye(3), torch.arange(3), torch.eye(3))
    assert view.compute()['agreement'] == 100
    view.update(torch.eye(3), torch.arange(3))
    assert view.compute()['agreement'] is None


def test_teacher_that_was_shown_nothing_has_no_figures():
    with pytest.raises(ValueError, match='no image'):
        TeacherView(tail=[0]).compute()
