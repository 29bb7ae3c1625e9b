"""Run timm's own tests on the models and optimizers that this package registers.

    python tests/timm_own.py TIMM_TESTS_DIR [pytest options]

TIMM_TESTS_DIR is the `tests` folder of the source distribution of the installed timm. Every test of `test_models.py`
and `test_optim.py` runs that is parametrized with one of our names, under whatever argument name. Ends with 1 when one
fails, or when one of our names meets no test.

Most tests of `test_optim.py` put gradients into `p.grad` by hand and call `step()` without a closure. SAM refuses that,
as it needs the gradient at a second point. Here, and only here, such a `step()` is `step(closure)` with a closure that
leaves the gradients as the test set them, in both passes. Ascent, restored weights and the base optimizer's step are
our own code, so what these tests ask of state, groups, precision and learning rates is tested on SAM itself.
"""
import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm

# registers our names, before timm's tests list what is registered
import timm_deitlt.models  # noqa: F401
from timm_deitlt.optim import SAM

# FEAT_INTER_FILTERS in timm's tests lists by module the models that return intermediate features
OUR_MODULES = ('deit_lt', 'resnet_cifar', 'resnet_cosine')
OUR_MODELS = (
    'deit_lt_tiny', 'deit_lt_small', 'deit_lt_base',
    'resnet20_cifar', 'resnet32_cifar', 'resnet44_cifar', 'resnet56_cifar', 'resnet50_cosine',
)
OUR_OPTIMIZERS = ('samadamw', 'samsgd')


class OurNames:
    """pytest plugin that keeps the items about our names and counts the tests that each name meets."""

    def __init__(self) -> None:
        self.names = {*OUR_MODELS, *OUR_OPTIMIZERS}
        self.tests: Counter[str] = Counter(dict.fromkeys(self.names, 0))
        self.unlisted = sorted(set(timm.list_models(module=OUR_MODULES)) - self.names)
        timm.list_models = _with_our_modules(timm.list_models)
        SAM.step = _with_gradients_by_hand(SAM.step)

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        ours, others = [], []
        for item in items:
            params = getattr(getattr(item, 'callspec', None), 'params', {})
            named = self.names.intersection(_names(list(params.values())))
            (ours if named else others).append(item)
            self.tests.update(named)
        config.hook.pytest_deselected(items=others)
        items[:] = ours


def _names(value: Any) -> Iterator[str]:
    """The words among a test's arguments, without the tag of a pretrained model."""
    if isinstance(value, str):
        yield value.split('.')[0]
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _names(item)


def _with_gradients_by_hand(step):
    return lambda self, closure=None: step(self, closure or (lambda: None))


def _with_our_modules(list_models):
    def listed(*args, module='', **kwargs):
        if isinstance(module, list | tuple):
            module = (*module, *OUR_MODULES)
        return list_models(*args, module=module, **kwargs)

    return listed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('timm_tests_dir', type=Path)
    args, pytest_args = parser.parse_known_args()
    files = [args.timm_tests_dir / 'test_models.py', args.timm_tests_dir / 'test_optim.py']
    for file in files:
        if not file.is_file():
            parser.error(f'{file} does not exist; give the tests folder of timm {timm.__version__}\'s source.')

    plugin = OurNames()
    options = ['-q', '-p', 'no:cacheprovider', '-W', 'ignore::pytest.PytestUnknownMarkWarning']
    code = pytest.main([*options, *map(str, files), *pytest_args], plugins=[plugin])
    for name, count in sorted(plugin.tests.items()):
        print(f'{name}: {count} tests')
    missed = sorted(name for name in plugin.names if not plugin.tests[name])
    if missed:
        print(f'timm\'s tests know nothing of: {", ".join(missed)}')
    if plugin.unlisted:
        print(f'registered, but not listed in OUR_MODELS: {", ".join(plugin.unlisted)}')
    return 1 if code or missed or plugin.unlisted else 0


if __name__ == '__main__':
    sys.exit(main())
