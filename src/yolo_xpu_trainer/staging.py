"""A process group for XPUs where PyTorch has no XCCL: tensors are copied to the host, where gloo works on them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["NAME", "register"]

NAME = "xpu_gloo"
"""What `torch.distributed` calls it."""


def register() -> str:
    """Make it known to `torch.distributed`, in this process, and return its name."""
    backends: Any = torch.distributed.Backend
    if NAME not in backends.backend_list:
        backends.register_backend(NAME, _create, devices=["cpu", "xpu"])
    return NAME


def _create(store: Any, rank: int, size: int, timeout: timedelta) -> Any:
    from torch._C._distributed_c10d import ProcessGroupGloo

    return _group_class()(ProcessGroupGloo(store, rank, size, timeout))  # type: ignore[arg-type]


def _group_class() -> Any:
    """Return the group's class: PyTorch's are there only where it was built with them."""
    from torch._C._distributed_c10d import ProcessGroup, ProcessGroupGloo, ReduceOp
    from torch._C._distributed_c10d import Work as BaseWork

    class Work(BaseWork):
        """An operation that is under way, until what came of it is on the device."""

        def __init__(self, future: Any) -> None:
            super().__init__()
            self._future = future

        def wait(self, timeout: timedelta = timedelta(0)) -> bool:
            self._future.wait()
            return True

        def is_completed(self) -> bool:
            return bool(self._future.done())

        def get_future(self) -> Any:
            return self._future

    class Group(ProcessGroup):
        """gloo, for tensors of an XPU as well as of the host.

        The first argument of each operation is what it writes to, but for `send`.
        """

        def __init__(self, gloo: Any) -> None:
            super().__init__(gloo.rank(), gloo.size())  # type: ignore[call-arg]
            self._gloo = gloo
            # C++ holds no reference to the Python part of what is under way; nothing was tried on older releases.
            self._latest: deque[Any] = deque(maxlen=8)

        def getBackendName(self) -> str:  # noqa: N802 - PyTorch's name
            return NAME

        def barrier(self, *args: Any, **options: Any) -> Any:
            return self._gloo.barrier()

        def send(self, tensors: list[torch.Tensor], *args: Any) -> Any:
            return self._gloo.send([tensor.cpu() for tensor in tensors], *args)

        def _staged(self, name: str, *args: Any) -> Any:
            averaged = 0
            options = args[-1]
            if getattr(options, "reduceOp", None) == ReduceOp.AVG:  # gloo adds up, in whichever release
                options.reduceOp = ReduceOp.SUM
                averaged = self.size()
            on_host = tree_map(lambda one: one.detach().cpu() if isinstance(one, torch.Tensor) else one, args)
            work = getattr(self._gloo, name)(*on_host)
            pairs = list(zip(tree_leaves(args[0]), tree_leaves(on_host[0]), strict=True))

            def back(done: Any) -> Any:
                done.value()  # raises what went wrong
                with torch.inference_mode():  # this is gloo's thread, and tensors of validation take writes in it only
                    for tensor, host in pairs:
                        if averaged:
                            host.div_(averaged)
                        if tensor is not host:
                            tensor.copy_(host)
                return tree_leaves(args[0])

            under_way = Work(work.get_future().then(back))
            self._latest.append(under_way)
            return under_way

    def staged(name: str) -> Callable[..., Any]:
        def operation(self: Any, *args: Any) -> Any:
            return self._staged(name, *args)

        operation.__name__ = name
        return operation

    for name in _STAGED:
        if hasattr(ProcessGroupGloo, name):
            setattr(Group, name, staged(name))
    return Group


# Until 2.14 `torch.distributed` asks for `_allgather_base` and so on, in 2.15 for `all_gather_single` and so on.
_STAGED = (
    "allreduce",
    "allreduce_coalesced",
    "broadcast",
    "reduce",
    "allgather",
    "_allgather_base",
    "all_gather_single",
    "gather",
    "gather_single",
    "scatter",
    "reduce_scatter",
    "_reduce_scatter_base",
    "reduce_scatter_single",
    "alltoall_base",
    "all_to_all_single",
    "recv",
)
