"""The text of a model card, section by section."""
import statistics
from typing import Any
from urllib.parse import quote

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from ..evaluation import GROUPS
from ..utils.words import duration_in_words
from . import markdown as md
from .card_facts import EXPERTS, Facts, model_name

__all__ = ['card_text']

_PAPER = '[DeiT-LT](https://arxiv.org/abs/2404.02900)'
_AUTHORS = '[its authors](https://github.com/val-iisc/DeiT-LT)'
_COLUMNS = {'top1': 'overall', 'head': 'head', 'mid': 'mid', 'tail': 'tail', 'balanced': 'balanced'}
_MOST_CLASSES_LISTED = 12
# Arguments of a model that the card gives in words
_SHOWN = ('num_classes', 'in_chans', 'img_size', 'global_pool')
_CITATION = '''```bibtex
@inproceedings{rangwani2024deitlt,
  title = {{DeiT-LT}: Distillation Strikes Back for Vision Transformer Training on Long-Tailed Datasets},
  author = {Rangwani, Harsh and Mondal, Pradipto and Mishra, Mayank and Asokan, Ashish Ramayee and Babu, R. Venkatesh},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  pages = {23396--23406},
  year = {2024}
}
```'''


def card_text(facts: Facts) -> str:
    """The text below the front matter."""
    sections = {
        'Results': _results,
        'Use': _use,
        'Model details': _details,
        'Training': _training,
        'Teacher': _teacher,
        'Limits': _limits,
        'Plots': _plots,
        'Files': _files,
        'Citation': lambda _: _CITATION,
    }
    texts = [_introduction(facts)]
    texts += [f'## {title}\n\n{text}' for title, write in sections.items() if (text := write(facts))]
    return '\n\n'.join(texts)


def _introduction(facts: Facts) -> str:
    architecture, data = md.code(facts.architecture), md.escape(facts.dataset_name)
    if not facts.student:
        text = (
            f'An image classifier ({architecture}) trained on {data}, made to be a teacher for {_PAPER} (CVPR 2024): '
            'a Vision Transformer with two experts learns from it on the same data.')
    elif not facts.two_experts:
        text = (
            f'A plain Vision Transformer ({architecture}) trained on the labels of {data} without a teacher: the '
            f'baseline of {_PAPER} (CVPR 2024).')
    elif facts.metrics and not facts.teacher and not facts.converted:
        text = (
            f'A Vision Transformer ({architecture}) whose two tokens, CLS and DIST, both learned the labels of {data}: '
            f'{_PAPER} (CVPR 2024) without a teacher. The answer is the mean of their logits.')
    else:
        teacher = f', {md.code(facts.teacher["name"])},' if facts.teacher else ''
        text = (
            f'A Vision Transformer ({architecture}) trained on {data} by {_PAPER} (CVPR 2024). It holds two experts: '
            f'the CLS token learned the labels, the DIST token what a teacher{teacher} says of the images. The method '
            'makes CLS the expert of the frequent classes and DIST that of the rare ones; the answer is the mean of '
            'their logits.')
    if facts.converted:
        text += f' The weights were released by {_AUTHORS}; here they are converted, and trained no further.'
    link = '[timm](https://github.com/huggingface/pytorch-image-models)'
    return f'# {md.escape(model_name(facts.about))}\n\n{text} It is a model of {link}, with the plugin `timm_deitlt`.'


def _results(facts: Facts) -> str:
    if not facts.measured:
        return (
            'Nobody has measured these weights with this code, so there are no figures here. To measure them:\n\n'
            + md.block('bash', facts.about.evaluation))
    table = [['', *_COLUMNS.values()]]
    for key in ('classes', 'train_images', 'test_images'):
        counts = [facts.shots[group][key] for group in GROUPS]
        table.append([key.replace('_', ' '), *(f'{count:,}' for count in (sum(counts), *counts)), ''])
    table += [[label, *_cells(facts, expert)] for expert, label in facts.experts.items()]
    if len(facts.runs) > 1:
        own = Facts(facts.config, facts.metrics, (), facts.about)
        table += [
            [f'{label}, seed {facts.metrics["seed"]}', *_cells(own, expert)] for expert, label in facts.experts.items()]
    return '\n\n'.join([
        'Top-1 accuracy in percent: *overall* counts every image alike, the other columns every class alike.',
        md.table(table),
        f'{_number_of_runs(facts)} Evaluated on {md.escape(facts.data["evaluated_on"])}. Groups of classes: '
        f'{md.escape(facts.shots["rule"].split(": ", 1)[-1])}.{_missing_classes(facts)} To repeat the figures:',
        md.block('bash', facts.about.evaluation),
    ])


def _number_of_runs(facts: Facts) -> str:
    if facts.converted:
        return f'One checkpoint (n = 1), measured with {_versions(facts)}.'
    seeds = ', '.join(str(run['seed']) for run in facts.runs)
    if len(facts.runs) == 1:
        return f'One run (n = 1, seed {seeds}), measured after its last epoch.'
    commits = sorted({run['versions']['git'] for run in facts.runs})
    return (
        f'Mean ± standard deviation of n = {len(facts.runs)} runs (seeds {seeds}) on the same images, each measured '
        f'after its last epoch. These weights are those of seed {facts.metrics["seed"]}; their own figures come last.'
        + (f' The runs are of different commits: {", ".join(map(md.code, commits))}.' if len(commits) > 1 else ''))


def _missing_classes(facts: Facts) -> str:
    labels = facts.shots['missing_classes']
    if not labels:
        return ''
    names = [md.escape(facts.class_names[label]) for label in labels[:_MOST_CLASSES_LISTED]]
    more = f' and {len(labels) - len(names):,} more' if len(labels) > len(names) else ''
    return f' Left out for want of evaluation images: {", ".join(names)}{more}.'


def _use(facts: Facts) -> str:
    hub_id, config, name = f'hf-hub:{facts.about.repo_id}', facts.config, facts.about.registered
    mode = 'L' if facts.cfg['input_size'][0] == 1 else 'RGB'
    logits = ['    logits = model(images)']
    if facts.two_experts:
        logits[0] += '  # the mean of both experts'
        if facts.architecture.startswith('deit_lt'):
            logits.append('    cls_logits, dist_logits = model.forward_experts(images)  # each by itself')
    elif isinstance(facts.cfg.get('classifier'), (list, tuple)):
        logits = ['    logits = 2 * model(images)  # timm halves them: it averages CLS with the unused DIST head, zero']
    named = bool(config.get('label_names'))
    code = '\n'.join([
        'import timm',
        'import timm_deitlt  # registers its models with timm',
        'import torch',
        'from PIL import Image',
        '',
        f"model = timm.create_model('{hub_id}', pretrained=True).eval()",
        'data_config = timm.data.resolve_model_data_config(model)',
        'transform = timm.data.create_transform(**data_config, is_training=False)',
        '',
        f"images = transform(Image.open('image.png').convert('{mode}')).unsqueeze(0)",
        'with torch.inference_mode():',
        *logits,
        *(["names = model.pretrained_cfg['label_names']"] if named else []),
        f'for probability, label in zip(*logits[0].softmax(dim=0).topk({min(5, config["num_classes"])})):',
        "    print(f'{" + ('names[label]' if named else 'label') + "}: {probability:.1%}')",
    ])
    parts = ['In a checkout of `timm_deitlt`:', md.block('bash', 'pip install -e .'), md.block('python', code)]
    if name:
        parts.append(f"By its name, where it is listed: `timm.create_model('{name}', pretrained=True)`.")
    if config['architecture'] != facts.architecture:
        parts.append(
            'Without `timm_deitlt`, timm alone loads it in the same way, and so does '
            f"`transformers.pipeline('image-classification', '{facts.about.repo_id}')`; the answer is the mean of both "
            'experts.')
    if not facts.student:
        teacher = facts.architecture.removesuffix('_cifar')
        parts += [
            'As the teacher of a student, with the other flags of the student and its data:',
            md.block('bash', f'python train.py --teacher {teacher} --teacher-checkpoint {hub_id}')]
    return '\n\n'.join(parts)


def _details(facts: Facts) -> str:
    config, cfg = facts.config, facts.cfg
    channels, height, width = cfg['input_size']
    images = [f'{height} x {width} pixels', f'{channels} channel' + 's' * (channels > 1)]
    images += [f'{name} {cfg[name]}' for name in ('interpolation', 'crop_pct') if name in cfg]
    args = ', '.join(f'{name}={value}' for name, value in config.get('model_args', {}).items() if name not in _SHOWN)
    gmacs = _gmacs(config)
    return md.bullets([
        f'**Architecture:** {md.code(config["architecture"])}' + (f' with {md.code(args)}' if args else ''),
        f'**Parameters (M):** {md.short(facts.about.num_params / 1e6)}',
        f'**GMACs:** {md.short(gmacs)}' if gmacs else '',
        f'**Images:** {", ".join(images)}',
        f'**Normalisation:** mean {md.numbers(cfg["mean"])}, standard deviation {md.numbers(cfg["std"])}',
        f'**Classes:** {config["num_classes"]:,}',
    ])


def _gmacs(config: dict[str, Any]) -> float | None:
    cfg = config['pretrained_cfg']
    args = {'num_classes': config['num_classes'], 'in_chans': cfg['input_size'][0], **config.get('model_args', {})}
    # the meta device is exact: the counter overlooks the fused attention of CPUs
    try:
        model = timm.create_model(config['architecture'], pretrained_cfg=cfg, device='meta', **args).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.empty(1, *cfg['input_size'], device='meta'))
    except (AssertionError, RuntimeError, TypeError, ValueError):
        return None  # some models of timm cannot be made without memory
    return counter.get_total_flops() / 2e9


def _training(facts: Facts) -> str:
    info, data, metrics, counts = facts.info, facts.data, facts.metrics, facts.class_counts
    training = {**(info.get('training') or {}), **{key: value for key, value in metrics.items() if value is not None}}
    source = f' ({md.code(facts.data_name)})' if facts.data_name else ''
    lines = [f'**Data:** {md.escape(facts.dataset_name)}{source}']
    if counts:
        lines[0] += (
            f', {sum(counts):,} images of {len(counts):,} classes, from {max(counts):,} of the most frequent to '
            f'{min(counts):,} of the rarest (imbalance factor {max(counts) / min(counts):.4g})')
        lines.append(f'**Images per class:** {_class_counts(facts)}')
    if facts.groups:
        lines.append('**Groups:** ' + '; '.join(
            f'{group} {len(images):,} class{"es" if len(images) > 1 else ""} of {max(images):,}'
            + (f' to {min(images):,}' if min(images) < max(images) else '') + ' images'
            for group, images in facts.groups.items() if images))
    if data.get('fingerprint'):
        lines.append(f'**Split:** seed {data["split_seed"]}, fingerprint of the images {md.code(data["fingerprint"])}')
    if facts.converted:
        sha256 = f', sha256 {md.code(info["source_sha256"])}' if info.get('source_sha256') else ''
        lines.append(f'**Released file:** {md.code(info["source_file"])}{sha256}')
        return 'Trained by those who released it; the data is described as this code makes it.\n\n' + md.bullets(lines)
    schedule = [f'{training["epochs"]} epochs'] if 'epochs' in training else []
    if training.get('epochs_trained', training.get('epochs')) != training.get('epochs'):
        schedule[0] = f'{training["epochs_trained"]} of {training["epochs"]} epochs'
    schedule += [f'seed {training["seed"]}'] if 'seed' in training else []
    if 'seconds' in training:
        teacher_too = (facts.teacher or {}).get('source') == 'trained'
        schedule.append(duration_in_words(training['seconds']) + (', its teacher included' if teacher_too else ''))
    lines.append(f'**Schedule:** {", ".join(schedule)}' if schedule else '')
    if metrics:
        validated = 'eval_images_per_second' in metrics  # later, by validate.py
        lines.append(f'**{"Measured by" if validated else "Code"}:** {_versions(facts)}')
    elif training.get('git'):
        lines.append(f'**Code:** `timm_deitlt` {info["version"]}, commit {md.code(training["git"])}')
    return md.bullets(lines) + (f'\n\n{md.block("bash", facts.about.command)}' if facts.about.command else '')


def _class_counts(facts: Facts) -> str:
    named = sorted(zip(facts.class_names, facts.class_counts, strict=True), key=lambda pair: -pair[1])
    listed = [f'{md.escape(name)} ({count:,})' for name, count in named]
    if len(listed) > _MOST_CLASSES_LISTED:
        listed[5:-5] = [f'... ({len(listed) - 10:,} more) ...']
    return ', '.join(listed)


def _versions(facts: Facts) -> str:
    versions = dict(facts.metrics['versions'])
    git, machine = versions.pop('git'), versions.pop('machine')
    words = [f'{name} {version}' for name, version in versions.items()]
    words[0] += f' (commit {git})' if git != 'unknown' else ''
    return md.escape(f'{", ".join(words)}, on {machine}')


def _teacher(facts: Facts) -> str:
    teacher = facts.teacher
    if not teacher:
        return ''
    origin = {
        'trained': 'trained for this run, on the same training images',
        'cache': 'trained earlier on the same training images, by the recipe of that name',
        'hub': 'taken from the Hub',
        'file': 'given as a file',
    }.get(teacher['source'], 'of which the figures do not say where it came from')
    if str(teacher.get('path')).startswith('hf-hub:'):
        origin = f'taken from {md.code(teacher["path"])}'
    text = f'{md.code(teacher["name"])}, {origin}.'
    if teacher.get('top1') is None:
        return text
    rows = [['', *_COLUMNS.values()], [md.escape(teacher['name']), *_cells(facts, 'teacher')]]
    return f'{text} On the same evaluation images:\n\n{md.table(rows)}'


def _limits(facts: Facts) -> str:
    return md.bullets([
        *(_measured_limits(facts) if facts.measured else ['How well it recognises rare classes is not known.']),
        f'It knows {facts.config["num_classes"]:,} classes, and gives every image one of them whatever it shows. It is '
        'meant for research on long-tailed data; it was not examined for decisions about people or for safety, so '
        'evaluate it yourself before any such use.',
    ])


def _measured_limits(facts: Facts) -> list[str]:
    over = '' if len(facts.runs) == 1 else ' (means over the seeds)'
    head, tail = facts.mean('mean', 'head'), facts.mean('mean', 'tail')
    images = facts.shots['tail']['test_images']
    lines = []
    if None not in (head, tail):
        words = md.compare(tail, head, 'worse than', 'as well as', 'better than')
        lines.append(
            f'Rare classes are recognised {words} frequent ones: {tail:.1f} on the tail, {head:.1f} on the head{over}. '
            f'The tail has {images:,} evaluation images' + (
                f', so one image more or less is about {100 / images:.1f} points.' if images <= 1000 else '.'))
    if facts.two_experts and tail is not None:
        words = []
        for expert in ('cls', 'dist'):
            alone = facts.mean(expert, 'tail')
            order = md.compare(tail, alone, 'worse than', 'as good as', 'better than')
            words.append(f'{order} {EXPERTS[expert]} alone ({alone:.1f})')
        lines.append(f'On the tail the mean of both experts ({tail:.1f}) is {" and ".join(words)}{over}.')
    words = []
    for key, where in (('top1', 'overall'), ('tail', 'on the tail')):
        own, teacher = facts.mean('mean', key), facts.mean('teacher', key)
        if None not in (own, teacher):
            order = md.compare(own, teacher, 'worse', 'as good', 'better')
            words.append(f'{order} {where} ({own:.1f} against {teacher:.1f})')
    if words:
        lines.append(f'Next to its teacher the student is {" and ".join(words)}{over}.')
    if facts.converted:
        lines.append('n = 1, and its authors ' + (
            'chose its epoch on the test images: the figures lean high.' if facts.student else
            'may have chosen its epoch on the test images: the figures would then lean high.'))
    elif len(facts.runs) == 1:
        lines.append('One run (n = 1): how far another seed would move these figures was not measured.')
    return lines


def _plots(facts: Facts) -> str:
    titles = {name: name.rsplit('.', 1)[0].replace('_', ' ') for name in facts.about.plots}
    return '\n\n'.join(f'![{md.escape(title)}](plots/{quote(name)})' for name, title in titles.items())


def _files(facts: Facts) -> str:
    return md.bullets([
        f'`model.safetensors`, sha256 `{facts.about.weights_sha256}`',
        '`config.json`: architecture, images, class names, data',
        '`metrics.json`: these figures, by class too' if facts.measured else '',
        '`args.yaml`: every setting of the training' if facts.info.get('training') else '',
    ])


def _cells(facts: Facts, row: str) -> list[str]:
    cells = []
    for key in _COLUMNS:
        figures, mean = facts.figures(row, key), facts.mean(row, key)
        spread = f' ± {statistics.stdev(figures):.1f}' if mean is not None and len(figures) > 1 else ''
        cells.append('-' if mean is None else f'{mean:.1f}{spread}')
    return cells
