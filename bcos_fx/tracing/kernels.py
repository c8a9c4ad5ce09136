"""What reaches PyTorch's kernels by another way than its Python functions: TorchScript functions, C++ extensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from bcos_fx.tracing.recorder import Recorder


class KernelWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Hands kernel calls to the recorder; it ignores those that a recorded call makes itself."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._recorder = recorder

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: skipping the compiler's frames would import the compiler, which takes seconds."""
        return False

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self._recorder.unseen(func, tuple(args), kwargs or {})
