"""The best low-rank adapter of a difference W_tuned - W_base, layer by layer."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from .combine import Track
from .cutting import Report, Row, said_of
from .errors import TriLoRAError
from .factors import Factors, energy_of
from .files import Adapter
from .targets import is_linear, select

CHOICES = ("attention", "attention + mlp", "all linear", "all linear + convolutions")
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def layers_of(network: nn.Module, choice: str) -> list[str]:
    """Paths of the layers below `network` that a choice of `CHOICES` names.

    Raises:
        TargetError: there are none, or the architecture is unknown to the presets.
    """
    if choice != CHOICES[-1]:
        return list(select(network, choice))
    modules = network.named_modules()
    return [path for path, module in modules if is_linear(module) or isinstance(module, CONVOLUTIONS)]


def extract(
    changes: Mapping[str, Callable[[], Tensor]],
    find: Callable[[Tensor], Factors],
    metadata: Mapping[str, str],
    track: Track = iter,
) -> tuple[Adapter, Report]:
    """An adapter whose deltas approximate the changes; a layer that did not change is left out.

    Args:
        changes: layer name in the file -> a function that gives W_tuned - W_base, (out, *in); asked for one at a time.
        find: the approximation of one change, `factors.nearest` or `nearest_holding`.
        metadata: of the adapter.
        track: shows progress.

    Raises:
        TriLoRAError: a change that holds NaN or inf, or no change at all.
    """
    layers, rows = {}, []
    for name in track(changes):
        change = changes[name]()
        if not change.isfinite().all():
            raise TriLoRAError(f"The difference in layer {name} holds NaN or inf: one of the models is damaged.")
        if not change.any():
            continue
        layers[name] = find(change).to("cpu")
        full = min(change.shape[0], change[0].numel())
        energy = float(change.float().norm()) ** 2
        rows.append(Row(name, layers[name].rank, full, energy, energy_of(layers[name].sigma)))
    if not layers:
        raise TriLoRAError(
            f"The two models are the same in all {len(changes)} chosen layers, so there is nothing to extract. "
            "Connect the model that was tuned to tuned, or choose more layers."
        )
    same = len(changes) - len(layers)
    notes = (f"{same} of {len(changes)} layers are the same in both models and were left out",) if same else ()
    report = Report(tuple(rows), notes)
    return Adapter(layers, said_of(metadata, max(row.rank for row in rows), report.share)), report
