"""A model as a program that runs without Python or this package: ONNX, or torch.export."""
import logging
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.trainer import expert_logits
from ..evaluation.fusion import fuse
from ..models._timm import TimmModel

_logger = logging.getLogger(__name__)

# Largest difference of a logit between PyTorch and another runtime
_TOLERANCE = 1e-4


def noise(network: TimmModel, batch: int = 2) -> Tensor:
    """Images of noise, always the same, `[batch, C, H, W]`."""
    size = network.pretrained_cfg['input_size']
    return torch.randn(batch, *size, generator=torch.Generator().manual_seed(batch))


class Answers(nn.Module):
    """Images `[B, C, H, W]` in, logits of the experts out, `[B, classes]` each: mean, CLS and DIST.

    Args:
        network: A classifier.
        experts: The experts that were trained. A network with a single expert has only the mean.
        fusion: If not 'mean', the log-probabilities of this fusion follow.
        class_counts: Training images of each class, for the fusion.
    """

    def __init__(
            self, network: TimmModel, experts: Sequence[str], fusion: str = 'mean', class_counts: Sequence[int] = ()):
        super().__init__()
        self.network = network
        self.experts = tuple(experts)
        self.fusions = () if fusion == 'mean' else (fusion,)
        self.class_counts = list(class_counts)
        self.names = (*(('mean', 'cls', 'dist') if 'dist' in experts else ('mean',)), *self.fusions)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        logits = expert_logits(self.network, images, self.experts)
        if self.fusions:
            logits = fuse(logits, self.fusions, self.class_counts)
        return tuple(logits[name] for name in self.names)


def check_onnx() -> None:
    """Refuse, before any work, if a package is missing.

    Raises:
        ValueError: Naming the packages.
    """
    missing = [name for name in ('onnx', 'onnxscript', 'onnxruntime') if not find_spec(name)]
    if missing:
        raise ValueError(f"--onnx needs {', '.join(missing)}: pip install 'timm_deitlt[export]'.")


def write_onnx(answers: Answers, path: Path) -> None:
    """Write an ONNX file for any batch size, and compare it with PyTorch.

    Raises:
        ValueError: If onnxruntime gives logits that differ by more than 1e-4.
    """
    import onnxruntime
    # with an example of one image, the batch size would become a constant
    with torch.no_grad(), redirect_stdout(StringIO()):
        program: Any = torch.onnx.export(
            answers, (noise(answers.network),), dynamo=True, input_names=['images'], output_names=list(answers.names),
            dynamic_shapes={'images': {0: torch.export.Dim('batch')}}, verbose=False)
    graph = program.model.graph
    for value in (value for node in graph for value in node.outputs):
        if value.name in answers.names and value not in graph.outputs:
            value.name = f'inner_{value.name}'  # such as a pooling, which is called mean too
    program.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    _compare(answers, lambda images: session.run(list(answers.names), {'images': images.numpy()}), path)


def write_program(answers: Answers, path: Path) -> None:
    """Write a program of torch.export for any batch size, and compare it with PyTorch.

    Raises:
        ValueError: If the loaded program gives logits that differ by more than 1e-4.
    """
    with torch.no_grad():
        program = torch.export.export(
            answers, (noise(answers.network),), dynamic_shapes={'images': {0: torch.export.Dim('batch')}},
            strict=False)
    torch.export.save(program, path)
    module = torch.export.load(path).module()
    _compare(answers, module, path)


@torch.no_grad()
def _compare(answers: Answers, other: Callable[[Tensor], Sequence[Any]], path: Path) -> None:
    for batch in (1, 2, 5):
        images = noise(answers.network, batch)
        for name, ours, theirs in zip(answers.names, answers(images), other(images), strict=True):
            difference = (ours - torch.as_tensor(theirs)).abs().max().item()
            if not difference <= _TOLERANCE:
                raise ValueError(
                    f'{path.name} and PyTorch give logits of {name} that differ by up to {difference:.2g}; at most '
                    f'{_TOLERANCE:g} is allowed. Nothing was exported.')
    _logger.info(f'{path.name} gives the same logits as PyTorch, to {_TOLERANCE:g}.')
