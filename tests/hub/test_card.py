"""The model card says what was measured, of every kind of model, and breaks on no name."""
import copy
import re
import statistics
from dataclasses import replace

import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from timm.models._hub import save_for_hf

from timm_deitlt.hub.card import Card, model_card
from timm_deitlt.hub.source import public_name

COLUMNS = ('top1', 'head', 'mid', 'tail', 'balanced')
SHOTS = {
    'rule': 'given cuts: head is the 3 most frequent classes, tail the 3 rarest',
    'boundaries': [3, 7],
    'head': {'classes': 3, 'train_images': 331, 'test_images': 102},
    'mid': {'classes': 4, 'train_images': 182, 'test_images': 136},
    'tail': {'classes': 3, 'train_images': 55, 'test_images': 102},
    'missing_classes': [],
}
DATA = {
    'name': 'lt/digits',
    'imbalance_factor': 10.,
    'split_seed': 0,
    'fingerprint': '23aad8200c07dd44ea8a02974a8d192ed65f26f31253cecfdb7d492822a0ff77',
    'evaluated_on': 'the test images',
}
COUNTS = [140, 108, 83, 64, 50, 38, 30, 23, 18, 14]


def figures(*values):
    return dict(zip(COLUMNS, values, strict=True))


METRICS = {
    'mean': figures(95.29411764705883, 100., 98.52941176470588, 86.27450980392159, 95.29411764705883),
    'cls': figures(92.94117647058823, 100., 98.52941176470588, 78.43137254901961, 92.94117647058825),
    'dist': figures(93.52941176470588, 98.03921568627452, 96.32352941176471, 85.29411764705883, 93.5),
    'teacher': {
        'name': 'resnet32_sam',
        'source': 'trained',
        'path': '/home/someone/cache/model.safetensors',
        **figures(97.94117647058823, 100., 98.52941176470588, 95.09803921568628, 97.94117647058825),
    },
    'shots': SHOTS,
    'data': {**DATA, 'train_counts': COUNTS, 'test_counts': [34] * 10, 'class_names': list('0123456789')},
    'model': 'deit_lt_tiny',
    'epochs': 22,
    'epochs_trained': 22,
    'seed': 42,
    'seconds': 241.5,
    'versions': {
        'timm_deitlt': '0.1.0', 'git': 'e888594948d7', 'timm': '1.0.31', 'torch': '2.14.1', 'python': '3.11.7',
        'machine': 'x86_64, 2 cores',
    },
}
STUDENT_ARGS = dict(img_size=[32, 32], patch_size=8, embed_dim=48, depth=2, num_heads=3)
STUDENT = {
    'architecture': 'deit_lt_tiny',
    'num_classes': 10,
    'label_names': list('0123456789'),
    'pretrained_cfg': {
        'input_size': [3, 32, 32], 'fixed_input_size': True, 'interpolation': 'bicubic', 'crop_pct': 1.0,
        'mean': [.3058] * 3, 'std': [.3764] * 3, 'num_classes': 10, 'first_conv': 'patch_embed.proj',
        'classifier': ['head', 'head_dist'],
    },
    'model_args': STUDENT_ARGS,
    'timm_deitlt': {
        'kind': 'student', 'benchmark': 'digits_if10', 'data': DATA, 'class_counts': COUNTS, 'shots': SHOTS,
        'experts': ['mean', 'cls', 'dist'], 'version': '0.1.0', 'architecture': 'deit_lt_tiny',
        'weights_sha256': 'ab' * 32,
        'training': {'epochs': 22, 'seed': 42, 'git': 'e888594948d7'},
    },
}
ABOUT = Card(
    config={},
    metrics={},
    repo_id='someone/deit_lt_tiny.digits_if10',
    license='apache-2.0',
    dataset_name='long-tailed scikit-learn digits',
    evaluation='python validate.py hf-hub:someone/deit_lt_tiny.digits_if10 --dataset lt/digits',
    num_params=1_234_567,
    command='python train.py --model deit_lt_tiny --teacher resnet32_sam',
    registered='deit_lt_tiny.digits_if10',
)


def changed(original, **changes):
    """A deep copy; a key such as `data__name` is one inside another."""
    result = copy.deepcopy(original)
    for path, value in changes.items():
        *outer, last = path.split('__')
        place = result
        for key in outer:
            place = place[key]
        place[last] = value
    return result


def converted(config, metrics):
    """The same as a released file that was converted, which no training of ours is known of."""
    info = {**config['timm_deitlt'], 'source_file': 'c10_student.pth', 'source_sha256': 'cd' * 32, 'training': None}
    if metrics is None:
        info.update(data=None, class_counts=None, shots=None)
    unknown = dict(teacher=None, epochs=None, epochs_trained=None, seed=None, seconds=None)
    return {**config, 'timm_deitlt': info}, {**metrics, **unknown} if metrics else {}


CNN = changed(
    STUDENT, architecture='resnet20_cifar', timm_deitlt__architecture='resnet20_cifar', model_args={'cosine': True},
    pretrained_cfg__classifier='fc',
    pretrained_cfg__first_conv='conv1', pretrained_cfg__fixed_input_size=False, timm_deitlt__kind='teacher',
    timm_deitlt__experts=['mean', 'cls'])
PLAIN = changed(STUDENT, timm_deitlt__experts=['mean', 'cls'])
ONE_EXPERT = changed(METRICS, cls=METRICS['mean'], dist=None, teacher=None)
VARIANTS = {
    'student': (STUDENT, METRICS),
    'plain': (PLAIN, ONE_EXPERT),
    'labels': (STUDENT, changed(METRICS, teacher=None)),
    'cnn': (CNN, ONE_EXPERT),
    'converted': converted(STUDENT, METRICS),
    'converted_cnn': converted(CNN, ONE_EXPERT),
    'unmeasured': converted(STUDENT, None),
}


def card(config, metrics, **given):
    return model_card(replace(ABOUT, config=config, metrics=metrics, **given))


def card_of(variant, **given):
    return card(*VARIANTS[variant], **given)


def section(card, title):
    found = re.search(rf'^## {title}\n(.*?)(?=^## |\Z)', card.text, flags=re.M | re.S)
    return found[1].strip() if found else None


def row(card, title, label):
    """Cells of a row of a section's table."""
    rows = [re.split(r'(?<!\\)\|', line)[1:-1] for line in section(card, title).splitlines() if line.startswith('|')]
    assert len({len(cells) for cells in rows}) == 1
    found, = ([cell.strip() for cell in cells[1:]] for cells in rows if cells[0].strip() == label)
    return found


def strings(value):
    if isinstance(value, dict):
        return [text for item in value.items() for part in item for text in strings(part)]
    return [text for item in value for text in strings(item)] if isinstance(value, list) else [value]


def python_code(card):
    return re.search(r'```python\n(.*?)```', card.text, flags=re.S)[1]


@pytest.mark.parametrize('variant', VARIANTS)
def test_front_matter_survives_reading_back_and_holds_nothing_empty(variant):
    card = card_of(variant)
    data = ModelCard(str(card)).data.to_dict()
    assert data == card.data.to_dict() == yaml.safe_load(str(card).split('---')[1])
    assert not [text for text in strings(data) if text is None or isinstance(text, str) and not text.strip()]
    assert data['license'] == 'apache-2.0' and data['library_name'] == 'timm' and data['metrics'] == ['accuracy']
    assert data['pipeline_tag'] == 'image-classification'
    assert not {'base_model', 'datasets', 'license_name', 'license_link', 'model_name'} & data.keys()


@pytest.mark.parametrize('variant', VARIANTS)
def test_only_a_student_of_a_teacher_network_is_tagged_as_distilled(variant):
    tags = card_of(variant).data.tags
    assert tags[:3] == ['image-classification', 'timm', 'long-tailed']
    assert tags[3:] == (['knowledge-distillation'] if variant in ('student', 'converted', 'unmeasured') else [])


@pytest.mark.parametrize('variant', [name for name in VARIANTS if name != 'unmeasured'])
def test_model_index_holds_every_expert_and_group_as_measured(variant):
    metrics, results = VARIANTS[variant][1], card_of(variant).data.eval_results
    experts = ['mean', 'cls', 'dist'] if metrics['dist'] else ['mean']
    found = {(result.metric_args.get('expert', 'mean'), result.metric_args['group']): result for result in results}
    assert len(results) == len(found) == 4 * len(experts)
    for expert in experts:
        for group in ('all', 'head', 'mid', 'tail'):
            result = found[expert, group]
            assert result.metric_value == pytest.approx(metrics[expert]['top1' if group == 'all' else group], abs=5e-5)
            assert result.metric_name.endswith(f', {group} (%)') and result.metric_type == 'accuracy'
            assert ('expert' in result.metric_name) == (len(experts) > 1)
            assert result.metric_args.get('seed') == metrics['seed']
    assert len({result.metric_name for result in results}) == len(results)


def test_model_index_names_data_and_counts():
    results = {result.metric_name: result for result in card_of('student').data.eval_results}
    tail, everything = results['Top-1 DIST expert, tail (%)'], results['Top-1 mean of experts, all (%)']
    assert (tail.dataset_type, tail.dataset_name) == ('lt/digits', 'long-tailed scikit-learn digits')
    assert (tail.dataset_config, tail.dataset_split) == ('digits_if10', 'test')
    assert tail.dataset_args == {'imbalance_factor': 10., 'split_seed': 0, 'fingerprint': DATA['fingerprint']}
    assert tail.metric_args == {
        'expert': 'dist', 'group': 'tail', 'classes': 3, 'train_images': 55, 'min_train_images_per_class': 14,
        'max_train_images_per_class': 23, 'test_images': 102, 'seed': 42}
    assert everything.metric_args['train_images'] == sum(COUNTS) and everything.metric_args['test_images'] == 340


@pytest.mark.parametrize('evaluated_on, split', [
    ('the validation images', 'validation'),
    ("split 'val'", 'val'),
    ('10 % of the training images, held out', 'held-out'),
])
def test_card_says_what_was_evaluated(evaluated_on, split):
    config = changed(STUDENT, timm_deitlt__data__evaluated_on=evaluated_on)
    made = card(config, changed(METRICS, data__evaluated_on=evaluated_on))
    assert {result.dataset_split for result in made.data.eval_results} == {split}
    assert f'Evaluated on {evaluated_on}.' in section(made, 'Results')


def test_figures_of_a_later_evaluation_name_what_it_evaluated():
    metrics = changed(METRICS, data__evaluated_on="split 'val'")
    assert "Evaluated on split 'val'." in section(card(STUDENT, metrics), 'Results')


def test_hub_dataset_and_other_licence_reach_the_front_matter():
    data = card_of(
        'student', license='other', license_name='our-terms', license_link='LICENSE',
        datasets=('uoft-cs/cifar10', 'a/b')).data
    assert (data.license, data.license_name, data.license_link) == ('other', 'our-terms', 'LICENSE')
    assert data.datasets == ['uoft-cs/cifar10', 'a/b']
    assert {result.dataset_type for result in data.eval_results} == {'uoft-cs/cifar10'}


def test_tables_hold_the_figures_with_one_decimal():
    card = card_of('student')
    assert row(card, 'Results', 'train images') == ['568', '331', '182', '55', '']
    assert row(card, 'Results', 'test images') == ['340', '102', '136', '102', '']
    for title, label, expert in (
            ('Results', 'mean of both', 'mean'), ('Results', 'CLS', 'cls'), ('Results', 'DIST', 'dist'),
            ('Teacher', 'resnet32_sam', 'teacher')):
        assert row(card, title, label) == [f'{METRICS[expert][key]:.1f}' for key in COLUMNS]
    assert 'n = 1, seed 42' in section(card, 'Results') and ABOUT.evaluation in section(card, 'Results')


def other_run(seed, shift):
    run = changed(METRICS, seed=seed)
    for name in ('mean', 'cls', 'dist', 'teacher'):
        run[name].update({key: run[name][key] - shift * (1 + place) for place, key in enumerate(COLUMNS)})
    return run


def test_further_seeds_give_mean_and_standard_deviation():
    runs = [METRICS, other_run(1, .7), other_run(2, -.4)]
    card = card_of('student', others=runs[1:])
    for title, label, expert in (('Results', 'DIST', 'dist'), ('Teacher', 'resnet32_sam', 'teacher')):
        values = [[run[expert][key] for run in runs] for key in COLUMNS]
        assert row(card, title, label) == [f'{sum(v) / 3:.1f} ± {statistics.stdev(v):.1f}' for v in values]
    assert row(card, 'Results', 'DIST, seed 42') == [f'{METRICS["dist"][key]:.1f}' for key in COLUMNS]
    assert 'n = 3 runs (seeds 42, 1, 2)' in card.text and 'weights of seed 42' in card.text
    assert 'n = 1' not in card.text and 'means over the seeds' in section(card, 'Limits')
    own = [result.metric_value for result in card.data.eval_results]
    assert own == [result.metric_value for result in card_of('student').data.eval_results]


def test_runs_of_different_commits_are_told():
    other = changed(METRICS, seed=1, versions__git='0123456789ab')
    assert 'different commits: `0123456789ab`, `e888594948d7`' in card_of('student', others=[other]).text


@pytest.mark.parametrize('variant, phrase', [
    ('student', 'learned the predictions of a teacher, `resnet32_sam`'),
    ('plain', 'A plain Vision Transformer'),
    ('labels', 'Both of its tokens, CLS and DIST, learned the labels'),
    ('cnn', 'An image classifier (`resnet20_cifar`)'),
    ('converted', 'The weights were released by'),
    ('converted_cnn', 'The weights were released by'),
    ('unmeasured', 'The weights were released by'),
])
def test_every_kind_of_model_is_told_as_what_it_is(variant, phrase):
    card = card_of(variant)
    introduction = card.text.split('## ')[0]
    assert phrase in introduction and 'https://arxiv.org/abs/2404.02900' in introduction
    assert bool(section(card, 'Teacher')) == (variant == 'student')
    as_teacher = f'--teacher resnet20 --teacher-checkpoint hf-hub:{ABOUT.repo_id}\n'
    assert (as_teacher in section(card, 'Use')) == (variant in ('cnn', 'converted_cnn'))
    assert ('forward_experts' in card.text) == (variant in ('student', 'labels', 'converted', 'unmeasured'))
    assert ('CLS' in section(card, 'Limits')) == (variant in ('student', 'labels', 'converted'))
    assert 'None' not in card.text and '/home/' not in card.text
    titles = re.findall(r'^## (.*)$', card.text, flags=re.M)
    assert titles == [
        'Results', 'Use', 'Model details', 'Training', *(['Teacher'] if variant == 'student' else []), 'Limits',
        'Files', 'Citation']


def test_converted_model_claims_no_training_of_ours():
    for variant in ('converted', 'unmeasured'):
        training = section(card_of(variant), 'Training')
        assert '`c10_student.pth`, sha256 `' + 'cd' * 32 in training
        assert not re.search('epochs|seed 42|train.py|e888594948d7', training)
        assert 'args.yaml' not in section(card_of(variant), 'Files')
    assert 'authors chose its epoch on the test images' in section(card_of('converted'), 'Limits')
    assert 'may have chosen its epoch' in section(card_of('converted_cnn'), 'Limits')


def test_unmeasured_model_gives_no_figure_but_the_way_to_one():
    card = card_of('unmeasured')
    assert 'model-index' not in card.data.to_dict()
    assert 'Nobody has measured these weights' in section(card, 'Results')
    assert ABOUT.evaluation in section(card, 'Results') and '|' not in section(card, 'Results')
    assert 'is not known' in section(card, 'Limits') and 'metrics.json' not in section(card, 'Files')


def test_run_without_evaluation_images_keeps_its_training():
    metrics = changed(METRICS, mean=None, cls=None, dist=None, teacher={'name': 'resnet32_sam', 'source': 'cache'})
    made = card(STUDENT, metrics)
    training = section(made, 'Training')
    assert 'Nobody has measured' in made.text and '22 epochs, seed 42' in training and '4 min 2 s' in training
    teacher = section(made, 'Teacher')
    assert '`resnet32_sam`' in teacher and 'trained earlier' in teacher and not made.data.eval_results


def test_exported_model_that_is_measured_again_keeps_its_teacher_and_its_training():
    config = changed(STUDENT, timm_deitlt__teacher={'name': 'resnet32_sam', 'source': 'trained', 'top1': 97.9})
    made = card(config, changed(METRICS, teacher=None, epochs=None, epochs_trained=None, seed=None, seconds=None))
    assert 'predictions of a teacher, `resnet32_sam`' in made.text and 'knowledge-distillation' in made.data.tags
    assert '22 epochs, seed 42' in section(made, 'Training') and '|' not in section(made, 'Teacher')
    assert 'n = 1, seed 42' in section(made, 'Results') and 'None' not in made.text


@pytest.mark.parametrize('source, words', [
    ('trained', 'trained for this run'), ('cache', 'trained earlier'), ('file', 'given as a file'),
    ('hub', 'taken from the Hub'),
])
def test_card_says_where_the_teacher_came_from(source, words):
    metrics = changed(METRICS, teacher__source=source)
    del metrics['teacher']['path']  # which is not published
    made = card(STUDENT, metrics)
    assert '`resnet32_sam`' in section(made, 'Teacher') and words in section(made, 'Teacher')
    assert ('including the training of the teacher' in made.text) == (source == 'trained')


def test_card_gives_the_id_of_a_teacher_of_the_hub():
    teacher = section(card(STUDENT, changed(METRICS, teacher__path='hf-hub:me/teacher')), 'Teacher')
    assert '`hf-hub:me/teacher`' in teacher


def test_limits_state_the_comparisons_as_measured():
    limits = section(card_of('student'), 'Limits')
    assert 'worse than frequent ones: 86.3 % on the tail, 100.0 % on the head' in limits
    assert '102 evaluation images, so one image more or less changes this figure by about 1.0 points' in limits
    assert 'better than CLS alone (78.4 %) and better than DIST alone (85.3 %)' in limits
    assert 'worse overall (95.3 % against 97.9 %) and worse on the tail (86.3 % against 95.1 %)' in limits
    assert 'n = 1' in limits
    turned = changed(
        METRICS, mean__head=80., cls__tail=METRICS['mean']['tail'], dist__tail=90., teacher__top1=90.,
        teacher__tail=METRICS['mean']['tail'])
    limits = section(card(STUDENT, turned), 'Limits')
    assert 'better than frequent ones: 86.3 % on the tail, 80.0 % on the head' in limits
    assert 'as good as CLS alone (86.3 %) and worse than DIST alone (90.0 %)' in limits
    assert 'better overall (95.3 % against 90.0 %) and as good on the tail (86.3 % against 86.3 %)' in limits


def test_training_says_how_to_do_it_again():
    training = section(card_of('student'), 'Training')
    assert '568 images of 10 classes, from 140 of the most frequent class to 14 of the rarest' in training
    assert '0 (140), 1 (108)' in training and 'tail 3 classes of 23 to 14 images' in training
    assert f'seed 0, fingerprint of the images `{DATA["fingerprint"]}`' in training
    assert '22 epochs, seed 42' in training and '4 min 2 s' in training and ABOUT.command in training
    assert '**Trained with:** timm_deitlt 0.1.0 (commit e888594948d7)' in training and '**Code' not in training
    later = changed(METRICS, eval_images_per_second=100., versions__git='abc')
    training = section(card(STUDENT, later), 'Training')
    assert '**Measured with:** timm_deitlt 0.1.0 (commit abc)' in training
    assert 'commit `e888594948d7` of `timm_deitlt`' in training
    cached = changed(METRICS, teacher__source='cache', seconds=4000, epochs_trained=20)
    training = section(card(STUDENT, cached, command=None), 'Training')
    assert '20 of 22 epochs, seed 42\n' in training and '1 h 6 min\n' in training and '```' not in training


def test_own_class_names_cannot_break_the_card():
    names = ['a|b', '*bold*', '<b>tag</b>', 'two\nlines', '`code`', '[link](x)', '_under_', 'snake_case', 'C:\\x', '$1']
    shots = changed(SHOTS, rule='thirds | of *all*', missing_classes=list(range(10)))
    metrics = changed(METRICS, data__class_names=names, shots=shots, teacher__name='a|b', teacher__path='hf-hub:`a`')
    config = changed(STUDENT, label_names=names, timm_deitlt__shots=shots, model_args={'act': '``'})
    made = card(
        config, metrics, dataset_name='birds | <of> the north', command='train ```now```', plots=('a_[b] c.png',))
    assert row(made, 'Teacher', r'a\|b')[0] == '97.9' and len(row(made, 'Results', 'CLS')) == 5
    assert '`` hf-hub:`a` ``' in section(made, 'Teacher') and '``` act=`` ```' in section(made, 'Model details')
    assert '````bash\ntrain ```now```\n````' in section(made, 'Training')
    assert section(made, 'Plots') == r'![a \[b\] c](plots/a_%5Bb%5D%20c.png)'
    escaped = [
        r'a\|b', r'\*bold\*', r'\<b\>tag\</b\>', 'two lines', r'\`code\`', r'\[link\](x)', r'\_under\_', 'snake_case',
        r'C:\\x', r'\$1']
    listed = [f'{name} ({count})' for name, count in zip(escaped, COUNTS, strict=True)]
    assert ', '.join(listed) in section(made, 'Training')
    assert f'no evaluation images and do not count: {", ".join(escaped)}.' in section(made, 'Results')
    assert r'trained on birds \| \<of\> the north by' in made.text
    assert ModelCard(str(made)).data.eval_results[0].dataset_name == 'birds | <of> the north'


@pytest.mark.parametrize('name', ['/home/someone/my_birds', '~/my_birds', '../my_birds', 'D:\\data\\my_birds'])
def test_own_data_is_named_without_its_folder(name):
    assert public_name(name) == 'my_birds'
    assert public_name('lt/digits') == 'lt/digits' and public_name('torch/cifar10') == 'torch/cifar10'


def test_two_classes_make_a_card_without_mid():
    group = {'classes': 1, 'train_images': 9, 'test_images': 5}
    shots = {'rule': 'thirds', 'boundaries': [1, 1], 'head': group, 'tail': group, 'missing_classes': []}
    shots['mid'] = {'classes': 0, 'train_images': 0, 'test_images': 0}
    metrics = changed(
        ONE_EXPERT, mean__mid=None, data__train_counts=[9, 9], data__class_names=['cat', 'dog'], shots=shots)
    config = changed(
        CNN, num_classes=2, label_names=['cat', 'dog'], timm_deitlt__class_counts=[9, 9], timm_deitlt__shots=shots)
    made = card(config, metrics)
    assert row(made, 'Results', 'this model')[2] == '-' and len(made.data.eval_results) == 3
    assert '**Groups:** head 1 class of 9 images; tail 1 class of 9 images' in section(made, 'Training')
    assert '.topk(2)' in python_code(made)


def test_many_classes_are_shortened_and_those_without_images_are_dashes():
    counts = list(range(30, 0, -1))
    shots = changed(SHOTS, boundaries=[10, 20], tail={'classes': 10, 'train_images': 55, 'test_images': 0})
    shots['missing_classes'] = list(range(20, 30))
    metrics = changed(METRICS, data__train_counts=counts, data__class_names=[f'c{i}' for i in range(30)], shots=shots)
    for expert in ('mean', 'cls', 'dist', 'teacher'):
        metrics[expert]['tail'] = None
    config = changed(STUDENT, num_classes=30, timm_deitlt__class_counts=counts, timm_deitlt__shots=shots)
    made = card(config, metrics)
    assert 'c4 (26), ... (20 more) ..., c25 (5)' in section(made, 'Training')
    assert row(made, 'Results', 'CLS')[3] == '-' and 'on the tail' not in section(made, 'Limits')
    assert len(made.data.eval_results) == 9 and 'tail' not in {r.metric_args['group'] for r in made.data.eval_results}


def test_operations_are_those_of_a_count_by_hand():
    patches, width, depth = (32 // 8) ** 2, 48, 2
    tokens = patches + 2
    block = tokens * 12 * width ** 2 + 2 * tokens ** 2 * width
    by_hand = patches * 3 * 8 ** 2 * width + depth * block + 2 * width * 10
    assert f'**GMACs:** {by_hand / 1e9:.2g}\n' in section(card_of('student'), 'Model details')


def test_model_that_cannot_be_counted_has_a_card_without_operations():
    made = card(changed(STUDENT, architecture='a_model_of_a_plugin'), METRICS)
    assert 'GMACs' not in made.text and '**Parameters (M):** 1.2' in made.text


def test_plots_files_and_citation_are_there():
    made = card_of('student', plots=('accuracy_by_shot.png', 'two words.png'))
    assert '![accuracy by shot](plots/accuracy_by_shot.png)' in section(made, 'Plots')
    assert '(plots/two%20words.png)' in section(made, 'Plots')
    files = section(made, 'Files')
    assert '`model.safetensors`' in files and f'sha256 `{"ab" * 32}`' in files
    assert section(made, 'Citation').startswith('```bibtex\n') and 'Rangwani, Harsh' in section(made, 'Citation')


@pytest.mark.parametrize('variant', VARIANTS)
def test_the_template_leaves_no_braces_and_no_double_blank_lines(variant):
    text = card_of(variant).text
    assert '{%' not in text and '{#' not in text and '}}' not in text.replace('{{DeiT-LT}', '')
    assert not re.search(r'\n\n\n|[^\n]\n```\w|\n\|---.*\n\n', text)


def test_the_card_says_whose_answer_is_another_than_the_mean():
    words = 'predict by `mean_adjusted`, as in training'
    config = copy.deepcopy(VARIANTS['student'][0])
    config['timm_deitlt']['fusion'] = 'mean_adjusted'
    text = card(config, *VARIANTS['student'][1:]).text
    assert words in text and '\n\n\n' not in text
    assert "timm_deitlt.load_model('hf-hub:me/mine').predict(" in text.replace(ABOUT.repo_id, 'me/mine')
    assert 'prediction (mean_adjusted)' not in text, 'it was not measured'
    fused = changed(METRICS, fusion={'mean_adjusted': figures(97., 99., 98., 96.1, 97.)})
    made = card(config, fused)
    assert row(made, 'Results', 'prediction (mean_adjusted)')[:2] == ['97.0', '99.0']
    assert 'On the tail the prediction (mean_adjusted) (96.1 %) is better than CLS alone' in made.text
    assert 'the student is worse overall (97.0 % against 97.9 %) and better on the tail' in made.text
    results = made.data.eval_results
    assert results[0].metric_name == 'Top-1 mean_adjusted, all (%)' and results[0].metric_value == 97
    assert 'as in training' not in card_of('student').text


@pytest.mark.parametrize('variant', VARIANTS)
def test_code_of_the_card_compiles(variant):
    compile(python_code(card_of(variant)), 'card', 'exec')
    assert f"timm.create_model('{ABOUT.registered}', pretrained=True)" in section(card_of(variant), 'Use')


@pytest.mark.parametrize('variant', ['student', 'plain', 'cnn'])
def test_code_of_the_card_runs_and_its_probabilities_are_those_of_the_answer(variant, tmp_path, monkeypatch, capsys):
    config = VARIANTS[variant][0]
    torch.manual_seed(0)
    cfg = {**config['pretrained_cfg'], 'architecture': config['architecture']}
    model = timm.create_model(config['architecture'], pretrained_cfg=cfg, num_classes=10, **config['model_args']).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if variant == 'plain' and name.startswith('head_dist'):
                parameter.zero_()
            elif parameter.ndim == 2:
                parameter.normal_(std=.2)
    save_for_hf(
        model, tmp_path / 'model', model_args=config['model_args'], safe_serialization=True,
        model_config={'label_names': [f'digit {label}' for label in range(10)]})
    Image.new('RGB', (40, 40), 'orange').save(tmp_path / 'image.png')
    monkeypatch.chdir(tmp_path)
    code = python_code(card_of(variant)).replace(f'hf-hub:{ABOUT.repo_id}', 'local-dir:model')
    ran = {}
    exec(code, ran)
    with torch.inference_mode():
        expected = model.forward_experts(ran['images'])[0] if variant == 'plain' else model(ran['images'])
    assert torch.allclose(ran['logits'], expected, atol=1e-6)
    best = expected[0].softmax(dim=0).max(dim=0)
    assert capsys.readouterr().out.splitlines()[0] == f'digit {best.indices}: {best.values:.1%}'
