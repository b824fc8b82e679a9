"""`by_layer`: which module and operator of a PyTorch model the joules of a block went to.

Forward hooks tell which module runs, and a dispatch mode sees every operator that reaches the
dispatcher. At each of these moments the process's CPU time since the last one, helper threads
included, is charged to what ran: so the charges add up to the CPU time of the block. What the hooks
cost themselves is counted apart: the time in them, and for every call the time to get there and
back, which is measured beforehand on calls that do nothing. PyTorch's own profiler counts wall
time, and one thread's.

FLOPs are those of `torch.utils.flop_counter` (a multiply and an add are two); operators that it does
not know, which are the cheap ones, count none. Bytes are those of the tensors an operator reads and
writes: what would pass between memory and processor if no cache held them from before.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from negawatt.errors import require
from negawatt.hotspots.hotspots import Hotspots
from negawatt.hotspots.looking import Looked
from negawatt.hotspots.tally import Key, Tally
from negawatt.meter import Meter, Station

HOOKS = Key("the hooks", "rest")
_BACKWARD = Key("backward", "stage")
_GATHERING = ("embedding", "index", "index_select", "gather")
"""Operators that read only some rows of their first argument."""
_SAME_MEMORY = ("_unsafe_view", "detach", "alias")
"""Operators that move nothing though their schema does not say that they are views."""


@contextmanager
def by_layer(model: Any, title: str = "", *, station: Station | None = None) -> Iterator[Looked]:
    """Measure the block and share its joules over `model`'s layers and operators by CPU time.

    ::

        with by_layer(model) as looked:
            with looked.stage("prefill"):
                model(ids)
        print(looked.hotspots.flat()[0])

    Operators of a backward pass are shown together under ``backward``. Work on a GPU is not split:
    the device's joules are a part of their own.

    Args:
        model: a `torch.nn.Module`.
        title: what the result is called; by default the model's class.
        station: the sensors to use; by default all that can be trusted here.

    Raises:
        MissingDependency: torch is not installed.
    """
    watch, meter = Watch(), Meter(station)

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        with watch.stage(name), meter.stage(name):
            yield

    looked = Looked(stage)
    with meter, watch.on(model):
        yield looked
    tally = watch.tally()
    tally.cpu_s += max(0.0, meter.measurement.cpu_s - tally.total_cpu_s())  # putting the hooks on and off
    name = title or type(model).__name__
    looked.found(Hotspots.share(name, tally, meter.measurement, looking_cpu_s=watch.looking_cpu_s))


@dataclass(frozen=True)
class _Detour:
    """CPU seconds that a call costs more for being looked at, besides the time in our own code.

    Attributes:
        around_s: of an operator, charged to the module it is called in.
        within_s: of an operator, charged to itself.
        module_s: of a module's call, half charged to where it is called and half to itself.
    """

    around_s: float = 0.0
    within_s: float = 0.0
    module_s: float = 0.0


class Watch:
    """Counts CPU time, FLOPs and bytes by stage, module and operator while it is on a model."""

    def __init__(self, detour: _Detour | None = None) -> None:
        self._torch = require("torch", extra="transformers")
        self._flops = _flop_counters()
        self._detour = detour or _measured_detour()
        self._root = Tally(Key("all", "whole"))
        self._here = [self._root]
        self._last_s = 0.0
        self.looking_cpu_s = 0.0

    @contextmanager
    def on(self, model: Any) -> Iterator[None]:
        """Look at `model` for as long as the block lasts; may be entered again."""
        with ExitStack() as stack:
            for path, module in model.named_modules():
                key = Key(_short(path) or type(module).__name__, "module", type(module).__name__)
                before = module.register_forward_pre_hook(self._entering(key), prepend=True)
                after = module.register_forward_hook(self._leaving, always_call=True)
                stack.callback(before.remove)
                stack.callback(after.remove)
            self._here = [self._root]
            self._last_s = time.process_time()
            stack.enter_context(_mode(self._operator))
            yield
            self._charge()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Name a part of what is looked at."""
        self._charge()
        self._here.append(self._here[-1].part(Key(name, "stage")))
        try:
            yield
        finally:
            self._charge()
            self._here.pop()

    def tally(self) -> Tally:
        """What was counted; its total is the CPU time of the blocks."""
        whole = Tally(self._root.key)
        whole.merge(self._root)
        whole.add([HOOKS], self.looking_cpu_s, 0)
        return whole

    def _charge(self, detour_s: float = 0.0) -> float:
        """Charge what was used since the last moment, less the detour, to what ran; return the moment."""
        now_s = time.process_time()
        used_s = now_s - self._last_s
        detour_s = min(detour_s, used_s)
        self.looking_cpu_s += detour_s
        self._here[-1].cpu_s += used_s - detour_s
        self._last_s = now_s
        return now_s

    def _looked(self, since_s: float) -> None:
        self._last_s = time.process_time()
        self.looking_cpu_s += self._last_s - since_s

    def _entering(self, key: Key) -> Callable[[Any, Any], None]:
        def enter(module: Any, arguments: Any) -> None:
            now_s = self._charge(self._detour.module_s / 2)
            part = self._here[-1].part(key)
            part.count += 1
            self._here.append(part)
            self._looked(now_s)

        return enter

    def _leaving(self, module: Any, arguments: Any, result: Any) -> None:
        now_s = self._charge(self._detour.module_s / 2)
        self._here.pop()
        self._looked(now_s)

    def _operator(self, operator: Any, arguments: Any, options: Any) -> Any:
        now_s = self._charge(self._detour.around_s)
        where = self._here[-1]
        if self._torch._C._current_graph_task_id() != -1:
            where = where.part(_BACKWARD)
        part = where.part(Key(str(operator._overloadpacket), "operator"))
        self._here.append(part)
        self._looked(now_s)
        try:
            result = operator(*arguments, **options)
        finally:
            now_s = self._charge(self._detour.within_s)
            self._here.pop()
        part.count += 1
        count = self._flops.get(operator._overloadpacket)
        if count is not None:
            part.flops = (part.flops or 0.0) + count(*arguments, **options, out_val=result)
        moved = self._moved(operator, arguments, options, result)
        part.moved_bytes = (part.moved_bytes or 0.0) + moved
        self._looked(now_s)
        return result

    def _moved(self, operator: Any, arguments: Any, options: Any, result: Any) -> float:
        name = operator._overloadpacket.__name__
        if operator.is_view or name in _SAME_MEMORY:
            return 0.0
        written = self._bytes(result)
        if name in _GATHERING:
            return 2 * written + self._bytes(arguments[1:])
        return written + self._bytes(arguments) + self._bytes(tuple(options.values()))

    def _bytes(self, value: Any) -> float:
        if isinstance(value, self._torch.Tensor):
            n_bytes = float(value.numel() * value.element_size())
            # An expanded tensor shows the same memory more than once.
            return n_bytes if value.layout != self._torch.strided else min(n_bytes, _stored(value))
        if isinstance(value, (list, tuple)):
            return sum(map(self._bytes, value))
        return 0.0


@cache
def _measured_detour() -> _Detour:
    """Look at calls that do nothing, and at the same calls unlooked at; the median of several rounds."""
    torch = require("torch", extra="transformers")
    calls, rounds = 100, 7
    tensor, module = torch.empty(1), torch.nn.Identity()
    found: list[_Detour] = []
    with torch.no_grad():
        for _ in range(rounds):
            plain_s = [_cpu_s(lambda: tensor.view(1), calls), _cpu_s(lambda: module(tensor), calls)]
            watch = Watch(_Detour())
            with watch.on(torch.nn.Identity()):
                _cpu_s(lambda: tensor.view(1), calls)
            around_s = watch._root.cpu_s / calls
            within_s = sum(part.cpu_s for part in watch._root.inside.values()) / calls
            watch = Watch(_Detour())
            with watch.on(module):
                _cpu_s(lambda: module(tensor), calls)
            module_s = sum(part.cpu_s for part in watch._root.walk()) / calls - plain_s[1]
            # What the operator and the call of it cost anyway stays with the operator.
            found.append(_Detour(around_s, max(0.0, within_s - plain_s[0]), max(0.0, module_s)))
    middle = [
        statistics.median(getattr(d, name) for d in found) for name in ("around_s", "within_s", "module_s")
    ]
    return _Detour(*middle)


def _cpu_s(call: Callable[[], object], calls: int) -> float:
    begun_s = time.process_time()
    for _ in range(calls):
        call()
    return (time.process_time() - begun_s) / calls


def _stored(tensor: Any) -> float:
    try:
        return float(tensor.untyped_storage().nbytes())
    except (RuntimeError, NotImplementedError):  # a tensor without memory of its own, such as a fake one
        return float("inf")


def _short(path: str) -> str:
    """``layers.3`` of ``model.layers.3``: a number alone tells nothing."""
    parts = path.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() and len(parts) > 1 else parts[-1]


def _mode(see: Callable[[Any, Any, Any], Any]) -> Any:
    """A dispatch mode that hands every operator to `see`."""
    dispatch = require("torch.utils._python_dispatch", extra="transformers")

    class Mode(dispatch.TorchDispatchMode):  # type: ignore[misc, name-defined]  # torch is not typed here
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            options = kwargs or {}
            if func not in elementary:
                # In inference mode operators made of others arrive whole; look at what they are made of.
                with self:
                    result = func.decompose(*args, **options)
                if result is not NotImplemented:
                    return result
                elementary.add(func)
            return see(func, args, options)

    elementary: set[Any] = set()
    return Mode()


def _flop_counters() -> dict[Any, Callable[..., float]]:
    """FLOPs of an operator from its arguments and its result, by operator."""
    torch = require("torch", extra="transformers")
    counter = require("torch.utils.flop_counter", extra="transformers")
    known = dict(counter.flop_registry)

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> float:
        return float(counter.sdpa_flop_count(query.shape, key.shape, value.shape))

    known[torch.ops.aten._scaled_dot_product_flash_attention_for_cpu] = attention
    return known
