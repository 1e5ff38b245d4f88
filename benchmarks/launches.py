"""Count of the kernels that a function would launch on a GPU, without one: on tensors of the device `meta`.

Meta tensors have shapes and no values. So a count takes little time and memory at any size, and a function that waits
for a value of the device fails. Counted are dispatched operators that read or write a meta tensor, copies from the
host among them. Not counted are views, allocations, operators without elements, and operators on the host. An operator
in `SEVERAL` counts as many times as it launches kernels. The number on a GPU depends on the kernels of its libraries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NO_KERNELS = {"_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
SEVERAL = {
    "constant_pad_nd": 2,  # a constant, a copy
    "_fft_r2c": 2,  # passes of a transform of a thousand samples
    "_fft_c2r": 3,  # and a copy of the input, which the transform overwrites
    "cumsum": 2,  # and a conversion
}


class LaunchCounter(TorchDispatchMode):
    """Context that counts launches by operator in `launches`, and operators on the host in `on_host`."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.on_host = 0

    def __torch_dispatch__(
        self, operator: Any, types: Any, arguments: tuple = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        result = operator(*arguments, **(keywords or {}))
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        tensors = outputs + [leaf for leaf in tree_leaves((arguments, keywords)) if isinstance(leaf, torch.Tensor)]
        name = operator.overloadpacket.__name__
        if operator.is_view or name in NO_KERNELS or not any(output.numel() for output in outputs):
            return result
        if any(tensor.device.type == "meta" for tensor in tensors):
            self.launches[name] += SEVERAL.get(name, 1)
        else:
            self.on_host += 1
        return result


def count_launches(function: Callable[[], object]) -> LaunchCounter:
    """Launches of one call of a function whose tensors of the device are on `meta`, after another call."""
    function()  # fills caches
    counter = LaunchCounter()
    with counter:
        function()
    return counter
