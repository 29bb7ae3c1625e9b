"""Settings that follow from the images, for whoever gives no others."""
import logging

import numpy as np
import pytest
import yaml
from conftest import ROOT, last_json, run_script
from PIL import Image

from timm_deitlt.cli.commands import survey_of, warn_without_recipe
from timm_deitlt.data.survey import survey
from timm_deitlt.run.advice import too_few_updates
from timm_deitlt.settings.checks import validate_args
from timm_deitlt.settings.layers import load_recipe, parse_args
from timm_deitlt.settings.recipe_rules import FACTS, read_rules, rules_that_hold

COMMAND = ['-c', 'own_data', '--data-dir', 'images']


def settings(images, side, *flags, command=COMMAND):
    return parse_args([*command, *flags], survey=lambda args: {'images': images, 'side': side})


@pytest.mark.parametrize(('images', 'side', 'expected'), [
    (40, 28, ('deit_lt_tiny', 32, 8, 1200, None, 'both')),
    (100, 28, ('deit_lt_tiny', 32, 8, 600, None, 'both')),
    (250, 28, ('deit_lt_tiny', 32, 32, 600, None, 'both')),
    (2478, 64, ('deit_lt_tiny', 64, 64, 400, None, 'both')),
    (9999, 100, ('deit_lt_tiny', 128, 128, 300, 'rand-m9-mstd0.5-inc1', None)),
    (115_846, 500, ('deit_lt_small', 224, 512, 300, 'rand-m9-mstd0.5-inc1', None))])
def test_own_data_follows_the_images(images, side, expected):
    args = settings(images, side)
    assert (args.model, args.img_size, args.global_batch_size, args.epochs, args.aa, args.drw_on) == expected
    updates = images // args.global_batch_size * args.epochs
    assert updates > 3600 and args.global_batch_size % args.batch_size == 0
    assert args.crop_pct == (1. if args.train_crop_mode == 'pad' else None), 'evaluated at the scale of training'


def test_every_line_of_a_packaged_rule_can_hold_and_makes_settings_that_fit_together():
    for lines in load_recipe('own_data').rules:
        assert not lines[-1].below and lines[-1].distils is None and all(rule.below and rule.why for rule in lines[:-1])
        bounds = [[rule.below.get(fact, float('inf')) for fact in FACTS] for rule in lines]
        assert bounds == sorted(bounds), 'from the narrowest to the widest'
        for rule in lines:
            facts = {name: bound - 1 for name, bound in rule.below.items()} | {'distils': bool(rule.distils)}
            assert rules_that_hold([lines], facts) == [rule]


def test_what_the_user_gives_wins_on_the_command_line_and_in_a_file(tmp_path):
    args = settings(250, 28, '--epochs', '7', '--model', 'deit_lt_base', '--grad-accum-steps', '2')
    assert (args.epochs, args.model, args.img_size) == (7, 'deit_lt_base', 32)
    assert args.global_batch_size is None and args.grad_accum_steps == 2
    assert args.sources['img_size'] == 'rules of own_data' and args.sources['epochs'] == 'command line'
    copy = tmp_path / 'mine.yaml'
    copy.write_text('epochs: 9\n' + (ROOT / 'timm_deitlt/recipes/own_data.yaml').read_text())
    mine = settings(250, 28, command=['-c', str(copy), '--data-dir', 'images'])
    assert (mine.epochs, mine.img_size) == (9, 32)


def test_images_that_cannot_be_looked_at_get_the_last_lines_as_does_the_recipe_in_a_program():
    assert vars(parse_args(COMMAND)) == vars(settings(10 ** 9, 10 ** 9))
    no_side = parse_args(COMMAND, survey=lambda args: {'images': 100})
    assert (no_side.img_size, no_side.epochs) == (224, 600)
    assert parse_args(['-c', 'own_data', '--dataset', 'hfds/here']).dataset == 'hfds/here', 'which needs no folder'


@pytest.mark.parametrize(('size', 'patch'), [(28, 4), (32, 4), (64, 8), (128, None), (224, None)])
def test_an_image_size_of_the_user_decides_the_patch_size(size, patch, caplog, tmp_path):
    caplog.set_level(logging.INFO)
    (tmp_path / 'mine.yaml').write_text(
        f'img_size: {size}\n' + (ROOT / 'timm_deitlt/recipes/own_data.yaml').read_text())
    for flags, config in (
            (['--img-size', str(size)], 'own_data'), (['--input-size', '3', str(size), str(size)], 'own_data'),
            ([], str(tmp_path / 'mine.yaml'))):
        args = settings(100, 64, *flags, command=['-c', config, '--data-dir', 'images'])
        assert (args.img_size or args.input_size[-1], args.model_kwargs.get('patch_size')) == (size, patch)
        assert f'The rules go by your image size of {size} px' in caplog.text
        assert patch is None or f"px: model_kwargs {{'patch_size': {patch}}}. Your" in caplog.text
        caplog.clear()


def test_model_kwargs_of_the_user_leave_the_patch_size_of_the_rules(caplog):
    caplog.set_level(logging.INFO)
    args = settings(100, 28, '--model-kwargs', 'depth=2', 'num_heads=3')
    assert args.model_kwargs == {'patch_size': 4, 'depth': 2, 'num_heads': 3}
    assert "smaller than 48 px: img_size 32, model_kwargs {'patch_size': 4}. Your own" in caplog.text
    caplog.clear()
    assert settings(100, 28, '--model-kwargs', 'patch_size=8').model_kwargs == {'patch_size': 8}
    assert 'smaller than 48 px: img_size 32. Your own' in caplog.text


def test_the_rules_choose_enough_updates():
    for images in (*range(4, 60, 3), *range(100, 12_000, 1_397)):
        args = settings(images, 64)
        for trained in {images, images - images // 6}:  # at most a sixth is held out
            trained -= trained % args.batch_size == 1
            assert too_few_updates('', trained, args.global_batch_size, args.epochs) is None, (images, trained)


def test_data_that_the_rules_do_not_look_at_are_told_what_to_give(caplog, tmp_path):
    caplog.set_level(logging.INFO)
    parse_args(['-c', 'own_data', '--dataset', 'hfds/here'], survey=survey_of)
    assert 'The rules of the recipe look at folders of images, not at hfds/here' in caplog.text
    assert '--global-batch-size 32 --batch-size 32 --epochs 600' in caplog.text and '--img-size 32' in caplog.text
    chosen = settings(999, 32)  # the message says what the rules would choose
    assert (chosen.global_batch_size, chosen.batch_size, chosen.epochs, chosen.img_size) == (32, 32, 600, 32)
    caplog.clear()
    images_of(tmp_path / 'a', [(30, 20)] * 3)
    parse_args(['-c', 'own_data', '--data-dir', str(tmp_path)], survey=survey_of)
    assert 'look at folders' not in caplog.text


def test_a_folder_without_a_recipe_is_told_of_own_data(caplog, tmp_path):
    (tmp_path / 'mine.yaml').write_text('epochs: 3')
    folder = ['--data-dir', str(tmp_path)]
    for argv, warned in (
            (folder, True), ([*folder, '--model', 'deit_lt_small', '--epochs', '9'], True), ([], False),
            ([*folder, '-c', 'own_data'], False), ([*folder, '-c', str(tmp_path / 'mine.yaml')], False),
            ([*folder, '--model', 'resnet32_cifar'], False), ([*folder, '--dataset', 'lt/cifar10'], False)):
        caplog.clear()
        warn_without_recipe(parse_args(argv))
        assert ('-c own_data' in caplog.text) == warned, argv


def test_the_reason_is_said_of_what_was_taken_alone(caplog):
    caplog.set_level(logging.INFO)
    settings(250, 28, '--img-size', '48', '--model-kwargs', 'patch_size=8')
    assert not [line for line in caplog.messages if 'smaller than' in line]
    assert any(line.startswith('There are fewer than 1000 images: global_batch_size 32, ') for line in caplog.messages)


@pytest.mark.parametrize(('rules', 'words'), [
    ('[1]', 'rules are named lists'), ('{size: {}}', 'rules are named lists'),
    ('{size: [{side_below: 4}]}', 'under "set"'),
    ('{size: [{px: 4, set: {}}]}', "unknown key 'px'; allowed are images_below, side_below, distils, set and why"),
    ('{size: [{distils: 1, set: {}}]}', 'distils is true or false, got 1'),
    ('{size: [{side_below: big, set: {}}]}', "a number, got 'big'"), ('{size: [{set: {epoch: 3}}]}', 'unknown setting'),
    ('{size: [{set: {epochs: three}}]}', 'expected a whole number')])
def test_rules_that_are_none_are_one_clear_error(tmp_path, rules, words):
    (tmp_path / 'mine.yaml').write_text(f'rules: {rules}')
    with pytest.raises(ValueError, match=words):
        load_recipe(str(tmp_path / 'mine.yaml'))


def test_conditions_of_a_line_hold_together():
    text = '{a: [{images_below: 5, side_below: 5, set: {epochs: 1}}, {set: {epochs: 2}}]}'
    lists = read_rules(yaml.safe_load(text), 'x')
    for facts, epochs in (({'images': 4, 'side': 4}, 1), ({'images': 4, 'side': 5}, 2), ({'images': 4}, 2), ({}, 2)):
        assert [rule.values['epochs'] for rule in rules_that_hold(lists, facts)] == [epochs]


def test_a_line_may_hold_only_where_a_network_teaches(tmp_path):
    (tmp_path / 'mine.yaml').write_text('teacher: resnet32_sam\nrules: {a: [{distils: true, set: {guidance: 2.5}}]}')
    command = ['-c', str(tmp_path / 'mine.yaml')]
    assert parse_args(command).guidance == parse_args([*command, '--teacher', 'resnet50']).guidance == 2.5
    for teacher in ('none', 'labels'):
        assert parse_args([*command, '--teacher', teacher]).guidance == 0


LEVERS = {'guidance', 'init', 'opt', 'muon_hidden_only', 'fusion', 'clip_grad', 'lr_base'}


@pytest.mark.parametrize(('flags', 'with_levers'), [
    ([], True), (['--teacher', 'resnet50_sam'], True), (['--img-size', '224'], True), (['--folds', '5'], True),
    (['--opt', 'adamw'], True), (['--lr-base', '5e-4'], True), (['--lr', '1e-4'], True), (['--guidance', '0'], True),
    (['--teacher', 'none'], False), (['--teacher', 'labels'], False), (['--pretrained'], False),
    (['--initial-checkpoint', __file__], False), (['--model', 'resnet32_cifar', '--teacher', 'none'], False)])
@pytest.mark.parametrize('images', [20, 150, 2000])
def test_the_levers_for_small_data_go_together_with_what_the_user_gives(images, flags, with_levers, caplog):
    caplog.set_level(logging.INFO)
    args = settings(images, 64, *flags)
    validate_args(args)
    taken = {name for name in LEVERS if args.sources[name] == 'rules of own_data'}
    given = {flag[2:].replace('-', '_') for flag in flags if flag.startswith('--')}
    assert taken == (LEVERS - given if with_levers else set()) - ({'muon_hidden_only'} if 'opt' in given else set())
    said = next((line for line in caplog.messages if line.startswith('On few images the student')), '')
    assert bool(said) == with_levers
    assert ('muon_hidden_only' in said) == (with_levers and 'opt' not in given)
    assert ('lr_base' in said) == (with_levers and not {'lr', 'lr_base'} & given)


def test_the_levers_of_the_rule_are_those_of_the_recipe_with_its_learning_rate():
    args, recipe = settings(2000, 64), load_recipe('default/small_data').values
    for name in LEVERS - {'lr_base'}:
        assert vars(args)[name] == recipe[name]
    assert args.lr_base * (recipe['batch_size'] / args.lr_base_size) ** .5 == pytest.approx(recipe['lr'], rel=1e-3)


def images_of(folder, sizes):
    folder.mkdir(parents=True)
    for number, size in enumerate(sizes):
        Image.new('RGB', size).save(folder / f'{number}.png')


def test_a_folder_is_surveyed_by_headers_alone(tmp_path):
    images_of(tmp_path / 'a', [(30, 20)] * 5)
    images_of(tmp_path / 'b', [(90, 400)] * 4)
    (tmp_path / 'b' / 'broken.png').write_bytes(b'no image at all')
    assert survey(tmp_path) == {'images': 10, 'side': 20}
    images_of(tmp_path / 'split' / 'train' / 'a', [(50, 60)])
    images_of(tmp_path / 'split' / 'val' / 'a', [(9, 9)] * 3)
    assert survey(tmp_path / 'split') == {'images': 1, 'side': 50}
    assert survey(tmp_path / 'nowhere') == {}
    (tmp_path / 'arrays' / 'a').mkdir(parents=True)
    np.save(tmp_path / 'arrays' / 'a' / '0.npy', np.zeros((13, 40, 50)))
    assert survey(tmp_path / 'arrays') == {}, 'no picture'
    assert survey(tmp_path / 'arrays', mode='array') == {'images': 1, 'side': 40}


def test_train_script_looks_at_the_folder(tmp_path):
    for name, count in (('ant', 12), ('bee', 5)):
        images_of(tmp_path / 'images' / name, [(28, 28)] * count)
    done = run_script('-c', 'own_data', '--data-dir', tmp_path / 'images', '--teacher', 'none', '--dry-run')
    plan = last_json(done)
    assert 'The images are smaller than 48 px: img_size 32' in done.stderr
    assert (plan['epochs'], plan['global_batch_size'], plan['drw_on'], plan['recipe']) == (3600, 8, 'cls', 'own_data')
