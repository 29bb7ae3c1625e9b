"""A model for other runtimes: ONNX, and a program of torch.export."""
import logging
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import torch
from torch import Tensor, nn

from ..engine.trainer import expert_logits

_logger = logging.getLogger(__name__)

ONNX, PROGRAM = 'model.onnx', 'model.pt2'
# Largest difference of a logit between the runtimes
_TOLERANCE = 1e-4
_NEEDED = ('onnx', 'onnxscript', 'onnxruntime')


class Answers(nn.Module):
    """The logits of a network's experts, `[B, classes]` each, of images `[B, C, H, W]`: mean, then CLS and DIST.

    Args:
        network: A classifier.
        experts: Those that were trained; of a single one the mean is all there is.
    """

    def __init__(self, network: nn.Module, experts: Sequence[str]):
        super().__init__()
        self.network = network
        self.experts = tuple(experts)
        self.names = ('mean', 'cls', 'dist') if 'dist' in experts else ('mean',)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        logits = expert_logits(self.network, images, self.experts)
        return tuple(logits[name] for name in self.names)


def check_onnx() -> None:
    """Refuse before any work if a package is missing.

    Raises:
        ValueError: Naming it.
    """
    missing = [name for name in _NEEDED if not find_spec(name)]
    if missing:
        raise ValueError(f"--onnx needs {', '.join(missing)}: pip install 'timm_deitlt[export]'.")


def write_onnx(network: nn.Module, experts: Sequence[str], path: Path) -> None:
    """Write an ONNX file with a dynamic batch and the outputs of `Answers`, and compare it with PyTorch.

    Raises:
        ValueError: If onnxruntime gives logits that differ by more than 1e-4.
    """
    import onnxruntime
    answers = Answers(network, experts).eval()
    # an example of one image would make the batch a constant
    with torch.no_grad(), redirect_stdout(StringIO()):
        program = torch.onnx.export(
            answers, (_noise(network, 2),), dynamo=True, input_names=['images'], output_names=list(answers.names),
            dynamic_shapes={'images': {0: torch.export.Dim('batch')}}, verbose=False)
    graph = program.model.graph
    for value in (value for node in graph for value in node.outputs):
        if value.name in answers.names and value not in graph.outputs:
            value.name = f'inner_{value.name}'  # such as that of a pooling, which is a mean too
    program.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    _compare(answers, lambda images: session.run(list(answers.names), {'images': images.numpy()}), path)


def write_program(network: nn.Module, experts: Sequence[str], path: Path) -> None:
    """Write a program of torch.export with a dynamic batch and the outputs of `Answers`; `torch.export.load` reads it.

    Raises:
        ValueError: If it gives logits that differ by more than 1e-4.
    """
    answers = Answers(network, experts).eval()
    with torch.no_grad():
        program = torch.export.export(
            answers, (_noise(network, 2),), dynamic_shapes={'images': {0: torch.export.Dim('batch')}})
    torch.export.save(program, path)
    module = torch.export.load(path).module()
    _compare(answers, module, path)


def _noise(network: nn.Module, batch: int) -> Tensor:
    return torch.randn(batch, *network.pretrained_cfg['input_size'], generator=torch.Generator().manual_seed(batch))


@torch.no_grad()
def _compare(answers: Answers, other, path: Path) -> None:
    for batch in (1, 2, 5):
        images = _noise(answers.network, batch)
        for name, ours, theirs in zip(answers.names, answers(images), other(images), strict=True):
            difference = (ours - torch.as_tensor(theirs)).abs().max().item()
            if not difference <= _TOLERANCE:
                raise ValueError(
                    f'{path.name} gives other logits of {name} than PyTorch, by up to {difference:.2g}: it is not '
                    'exported.')
    _logger.info(f'{path.name} gives the logits of PyTorch, to {_TOLERANCE:g}.')
