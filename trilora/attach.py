"""Adapters onto a module tree and off again, leaving it as it was, bit for bit."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from torch import Tensor, nn

from .errors import TargetError
from .layers import AdapterLayer


class Switch:
    """Turns attached adapters off and on, as the frozen base's own prediction needs it."""

    def __init__(self) -> None:
        self.on = True

    @contextmanager
    def turned(self, on: bool) -> Iterator[None]:
        """On or off within the block."""
        before, self.on = self.on, on
        try:
            yield
        finally:
            self.on = before

    def off(self) -> AbstractContextManager[None]:
        """The bare base within the block."""
        return self.turned(False)


def _adding(layer: AdapterLayer, switch: Switch) -> Callable[..., Tensor | None]:
    def hook(_module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor) -> Tensor | None:
        return output + layer(inputs[0] if inputs else named["input"]) if switch.on else None

    return hook


@contextmanager
def attached(root: nn.Module, layers: Mapping[str, AdapterLayer]) -> Iterator[Switch]:
    """Within the block each named module's output is base(x) + adapter(x) (paper, Eq. 6).

    No weight, buffer, attribute or forward method of `root` is touched: adapters are forward hooks.

    Args:
        root: any module tree.
        layers: module path below `root` -> adapter layer.

    Raises:
        TargetError: a path that `root` does not have.
    """
    handles = []
    switch = Switch()
    try:
        for path, layer in layers.items():
            try:
                module = root.get_submodule(path)
            except AttributeError:
                raise TargetError(
                    f"The model has no layer {path!r}, so no adapter can sit there. "
                    "The adapter was made for another architecture: use the base model that it was trained on."
                ) from None
            handles.append(module.register_forward_hook(_adding(layer, switch), with_kwargs=True))
        yield switch
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def standing_in(
    root: nn.Module, layers: Mapping[str, AdapterLayer], switch: Switch
) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Gives a context in which these layers act in place of those of the switch; outside of it they do nothing.

    Raises:
        TargetError: a path that `root` does not have.
    """
    with attached(root, layers) as own:
        own.on = False

        @contextmanager
        def shown() -> Iterator[None]:
            with switch.off(), own.turned(True):
                yield

        yield shown
