"""A GPU without a GPU: counts the memory, host waits, copies and kernels of code that runs on it.

`fake_gpu.cpp` is a CUDA device that does nothing, for builds of torch without CUDA. With torch's
FakeTensorMode, which computes shapes, dtypes and devices but no values, the code runs on `cuda:0`
with its real sizes: CUDA's autocast, the thread of backward passes, and errors for mixed devices.
A `Meter` sees every operator. What it cannot see: values, times, the memory of the CUDA context, of
libraries and of fragmentation, and what NCCL, Inductor and FSDP2 do.

The library must be there before torch is loaded, so measurements run in a process of their own:
`run_on_fake_gpu("module:function", arguments)`.
"""

import contextlib
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_suffix(".cpp")
GIB = 2**30
BLOCK_BYTES = 512  # CUDA's allocator rounds up to these
ATTENTION = F.scaled_dot_product_attention
aten = torch.ops.aten
MODE = FakeTensorMode(allow_non_fake_inputs=True)  # one: caches keep tensors, which cannot mix

# Operators that start no kernel: they change what a tensor says about the same memory, or ask.
VIEWS = (
    *("alias", "as_strided", "detach", "expand", "permute", "select", "slice", "split", "squeeze"),
    *("t", "transpose", "unbind", "unsqueeze", "view", "_unsafe_view", "_reshape_alias", "unfold"),
    *("chunk", "diagonal", "split_with_sizes", "lift_fresh", "empty", "empty_like", "new_empty"),
    *("empty_strided", "new_empty_strided", "device", "is_same_size", "_local_scalar_dense"),
    *("is_pinned", "set_", "resize_", "_has_same_storage_numel"),
)


def why_not() -> str | None:
    """Reason why there is no fake GPU here; None if there is one."""
    if torch.version.cuda is not None or torch.version.hip is not None:
        return "this build of torch has a GPU device of its own"
    if sys.platform != "linux":
        return "libraries are preloaded on Linux only"
    return None if shutil.which("c++") else "there is no C++ compiler"


def library(folder: Path) -> Path:
    """The compiled `fake_gpu.cpp` in a folder; the first process that asks compiles it."""
    from torch.utils.cpp_extension import include_paths, library_paths

    text = SOURCE.read_text() + torch.__version__ + str(torch.__file__)
    built = folder / f"fake_gpu.{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(built.with_suffix(".lock")):
        if not built.exists():
            unfinished = built.with_suffix(".part")
            options = [
                *("-std=c++20", "-O0", "-shared", "-fPIC", str(SOURCE), "-o", str(unfinished)),
                *(f"-I{path}" for path in include_paths()),
                *(f"-L{path}" for path in library_paths()),
                *(f"-Wl,-rpath,{path}" for path in library_paths()),
                *("-lc10", "-ltorch_cpu"),
            ]
            subprocess.run(["c++", *options], check=True)
            unfinished.rename(built)
    return built


def run_on_fake_gpu(function: str, arguments: Any, folder: Path) -> Any:
    """Result of a function in a process that has a fake GPU.

    Args:
        function: `module:function` of tests/support; it takes and returns JSON.
        arguments: Its only argument.
        folder: Folder for the compiled library.
    """
    paths = [str(ROOT), str(ROOT / "tests" / "support"), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "LD_PRELOAD": str(library(folder)),
        "PYTHONPATH": os.pathsep.join(paths),
        "WANDB_MODE": "disabled",
    }
    command = [sys.executable, str(Path(__file__)), function, json.dumps(arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(
            f"{function}({arguments}):\n{done.stdout[-2000:]}{done.stderr[-6000:]}"
        )
    return json.loads(done.stdout.splitlines()[-1])


class Meter(TorchDispatchMode):
    """Counts what the operators below it do to a GPU.

    Memory is that of living storages. A host wait is an operator that cannot return before the
    device has done all work so far: reading a value, counting (`nonzero`), checking the error of
    linear algebra, or a copy that blocks. Values do not exist: a bool reads as True, a number as 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self.waits: Counter[str] = Counter()  # by place in the code
        self.copies: Counter[str] = Counter()  # from the host, that do not block
        self.kernels = 0
        self._storages: dict[int, weakref.ref[Any]] = {}
        self._lock = threading.Lock()

    def reset(self) -> None:
        """Counts from zero; what is alive stays so."""
        self.peak_bytes = self.live_bytes
        self.waits, self.copies, self.kernels = Counter(), Counter(), 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        on_device = any(tensor.device.type == "cuda" for tensor in given)
        if func in (aten._local_scalar_dense.default, aten.is_nonzero.default):
            if on_device:
                self.waits[f"value read at {_place()}"] += 1
            kind = given[0].dtype
            return True if kind == torch.bool else 0.0 if kind.is_floating_point else 0
        if on_device and func is aten.nonzero.default:
            self.waits[f"rows counted at {_place()}"] += 1
            return args[0].new_empty((args[0].numel(), args[0].ndim), dtype=torch.int64)
        if on_device and func is aten.index.Tensor and _is_mask(args[1]):
            self.waits[f"rows counted at {_place()}"] += 1
            return args[0].flatten(0, args[1][0].ndim - 1).clone()  # all are True
        if func is aten._linalg_check_errors.default:
            if on_device:
                self.waits[f"linear algebra checked at {_place()}"] += 1
            return None
        result = func(*args, **kwargs)
        made = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
        if func in (aten._to_copy.default, aten.copy_.default):
            self._copy(func, args, kwargs, made)
        elif on_device or any(tensor.device.type == "cuda" for tensor in made):
            self.kernels += func._schema.name.split("::")[-1] not in VIEWS
        for tensor in made:
            self._see(tensor)
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        return result

    def _copy(self, func: Any, args: Any, kwargs: Any, made: list[Tensor]) -> None:
        source, target = args[0], made[0]
        asynchronous = kwargs.get("non_blocking", False)
        if func is aten.copy_.default:
            source, asynchronous = args[1], len(args) > 2 and args[2]
        kinds = source.device.type, target.device.type
        if "cuda" not in kinds:
            return
        where = f"{str(source.dtype)[6:]} {list(source.shape)} at {_place()}"
        if kinds == ("cpu", "cuda"):
            (self.copies if asynchronous else self.waits)[f"copy to the device of {where}"] += 1
        elif kinds == ("cuda", "cpu"):
            self.waits[f"copy to the host of {where}"] += 1
        else:
            self.kernels += 1

    def _see(self, tensor: Tensor) -> None:
        if tensor.device.type != "cuda":
            return
        storage = tensor.untyped_storage()
        key, num_bytes = storage._cdata, _rounded(storage)
        if key in self._storages:
            return

        def free(_: Any) -> None:
            if self._storages.pop(key, None) is not None:
                self.live_bytes -= num_bytes

        self._storages[key] = weakref.ref(storage, free)
        self.live_bytes += num_bytes


def held_bytes(values: Iterable[Any]) -> int:
    """Memory on the device that some values hold, those that are tensors."""
    tensors = (v for v in values if isinstance(v, Tensor) and v.device.type == "cuda")
    storages = {storage._cdata: storage for storage in (t.untyped_storage() for t in tensors)}
    return sum(map(_rounded, storages.values()))


def _rounded(storage: torch.UntypedStorage) -> int:
    return -(-storage.nbytes() // BLOCK_BYTES) * BLOCK_BYTES


def _is_mask(indices: list[Tensor | None]) -> bool:
    return len(indices) == 1 and indices[0] is not None and indices[0].dtype == torch.bool


def _place() -> str:
    """Innermost line of the project that is running, else of Lightning or torch."""
    frame: FrameType | None = sys._getframe(1)
    other = ""
    while frame is not None:
        name = frame.f_code.co_filename
        for part in ("vatt", "datamodules"):
            if name.startswith(str(ROOT / part)):
                return f"{Path(name).relative_to(ROOT)}:{frame.f_lineno} {frame.f_code.co_name}"
        if not other and not name.startswith(str(Path(__file__).parent)) and "torch/" not in name:
            other = f"{'/'.join(Path(name).parts[-2:])}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return other or "torch"


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Attention by the kernel that CUDA chooses: flash without a mask, else memory-efficient."""
    if query.device.type != "cuda":
        return ATTENTION(query, key, value, attn_mask, dropout_p, scale=scale)
    if attn_mask is None and query.dtype in (torch.bfloat16, torch.float16):
        return aten._scaled_dot_product_flash_attention.default(
            query, key, value, dropout_p, False, False, scale=scale
        )[0]
    if attn_mask is not None:
        attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2]).to(query.dtype)
    return aten._scaled_dot_product_efficient_attention.default(
        query, key, value, attn_mask, torch.is_grad_enabled(), dropout_p, False, scale=scale
    )[0]


@contextlib.contextmanager
def fake_gpu() -> Iterator[Meter]:
    """Context in which tensors are fake and `cuda:0` exists; gives the meter."""
    F.scaled_dot_product_attention = _attention
    FakeTensor.__deepcopy__ = lambda tensor, _: tensor.detach().clone()  # torch's copies values
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda *_, **__: True
    state = torch.zeros(16, dtype=torch.uint8)
    torch.cuda.get_rng_state = lambda *_: state  # a copy of the host's seed and offset: no wait
    torch.cuda.set_rng_state = lambda *_: None
    torch.cuda.get_device_name = lambda *_: "NVIDIA H100 80GB HBM3"
    torch.cuda.manual_seed_all = lambda *_: None
    torch.nn.init.trunc_normal_ = lambda tensor, **_: tensor  # it draws until all values fit
    meter = Meter()
    with MODE, meter:
        yield meter


if __name__ == "__main__":
    torch.set_num_threads(1)
    module, name = sys.argv[1].split(":")
    print(json.dumps(getattr(importlib.import_module(module), name)(json.loads(sys.argv[2]))))
