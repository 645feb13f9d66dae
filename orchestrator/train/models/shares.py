"""Build a model of which this process holds only what it keeps of it, plus the parameters that are being written.

Fresh weights come from one random stream: transformers draws every parameter in its module's constructor and again when
it initialises the finished model, and each draw depends on all draws before it. Every rank therefore makes all draws,
as it does without ZeRO, but a parameter has memory only while something writes it. A parameter of the finished model
looks whole but is a single NaN in memory until it is given a share, so that nothing can train on wrong numbers.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode

from orchestrator.checkpoint.format.intervals import Range
from orchestrator.domain.devices.device import CUDA
from orchestrator.json_values import mapping, optional
from orchestrator.spec.job import JobSpec
from orchestrator.train.engine.process_memory import return_free_memory

RESIDENT_BYTES = 64 << 20
"""Parameters that may have memory at once, unless a single one is larger."""

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_SHARE = "_convoy_share"
_WHOLE_NEEDED = ("zero_quantized_weights", "zero_quantized_nontrainable_weights")


@dataclass(frozen=True)
class Keep:
    """What this process keeps of each parameter: one of `world_size` equal parts."""

    rank: int = 0
    world_size: int = 1
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where it is kept."""
    sharded: bool = False
    """ZeRO-3 takes the shares; otherwise the model itself gets them, which are whole then."""

    def part(self, elements: int) -> Range:
        """The elements of a flattened parameter that are kept. ZeRO-3 divides in the same way: rounded up, so that the
        last ranks may have less."""
        each = -(-elements // self.world_size)
        start = min(self.rank * each, elements)
        return Range(start, min(start + each, elements))

    def copy(self, parameter: torch.Tensor, into: torch.Tensor | None = None) -> torch.Tensor:
        """Shape [elements of the part], of a parameter that has memory; `into`: an earlier copy, to be overwritten."""
        part = self.part(parameter.numel())
        flat = parameter.detach().reshape(-1)[part.start : part.end]
        return flat.to(self.device, self.dtype, copy=True) if into is None else into.copy_(flat)

    def blank(self, parameter: torch.Tensor) -> torch.Tensor:
        """NaN in place of values that a restore fills in: one that is missed cannot train on in silence."""
        size = (len(self.part(parameter.numel())),)
        return torch.full(size, float("nan"), dtype=self.dtype, device=self.device)


def keep_for(spec: JobSpec, rank: int, world_size: int, device: torch.device) -> Keep | None:
    """What a rank keeps of the model on the host while it is built; None: all of it, in fp32.

    At stage 3 it keeps its share. At the other stages each parameter goes to its device in the training precision as
    soon as it is complete, so that a GPU's host keeps nothing. Partitions that DeepSpeed quantises or holds twice
    (hpZ) are made by DeepSpeed itself, of whole parameters.
    """
    zero = optional(mapping, spec.zero.deepspeed, "zero_optimization") or {}
    plain = zero.get("zero_hpz_partition_size", 1) == 1 and not any(zero.get(key) for key in _WHOLE_NEEDED)
    dtype = PRECISIONS[spec.train.precision]  # DeepSpeed makes its fp32 masters of the rounded values
    if spec.zero.stage == 3 and plain:
        return Keep(rank, world_size, dtype, sharded=True)
    if device.type == CUDA or dtype is not torch.float32:
        return Keep(dtype=dtype, device=device)
    return None


def construct_kept(construct: Callable[[], nn.Module], keep: Keep) -> nn.Module:
    """`construct()`, of which only what is kept remains in memory: bit for bit what it is without this.

    The largest parameter or `RESIDENT_BYTES` are the most that is needed besides. Raises RuntimeError if the
    initialisation reads or changes a part of a parameter long after it wrote the parameter: its value is gone then.
    """
    lending = _Lending(keep)
    with lending.active():
        model = construct()
    lending.settle(model)
    return model


def construct_bare(construct: Callable[[], nn.Module]) -> nn.Module:
    """`construct()`, whose parameters look whole but take no memory. Give them shares afterwards."""
    lending = _Lending(None)
    with lending.active():
        model = construct()
    lending.settle(model)
    return model


def give_shares(keep: Keep, shares: Iterable[tuple[nn.Parameter, torch.Tensor]]) -> None:
    """Attach what is kept of each parameter, as shape [elements of the part]."""
    for parameter, share in shares:
        if keep.sharded:
            setattr(parameter, _SHARE, share)
        else:
            parameter.data = share.view(parameter.shape)


def is_sharded(model: nn.Module) -> bool:
    """Whether the parameters have shares instead of memory of their own."""
    return any(hasattr(parameter, _SHARE) for parameter in model.parameters())


def take_share(parameter: nn.Parameter) -> torch.Tensor:
    """This rank's share, which the parameter then no longer refers to."""
    share: torch.Tensor = getattr(parameter, _SHARE)
    delattr(parameter, _SHARE)
    return share


@dataclass
class _Loan:
    """The memory of a parameter, and what was kept of it when it was taken away last."""

    tensor: torch.Tensor
    """Shares the parameter's storage, also if the parameter is given another one."""
    size_bytes: int
    share: torch.Tensor | None = None


class _Lending(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Gives parameters memory when an operation uses them, and takes it from those that were not used lately.

    Memory that is given again is full of NaN, as the old values are gone: what an operation does not overwrite shows.
    Vectors keep theirs until the end: they are small, and transformers copies biases when it ties weights.
    """

    def __init__(self, keep: Keep | None) -> None:
        """`keep`: None if the values are of no interest."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._keep = keep
        self._freed_bytes = 0
        """Since free memory was returned last."""
        self._registered: list[nn.Parameter] = []
        self._loans: dict[int, _Loan] = {}
        """By storage."""
        self._resident: dict[int, _Loan] = {}
        """Those that may have memory and may lose it, the least recently used first."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; True would import torch's compiler, which takes a second."""
        return False

    @contextmanager
    def active(self) -> Iterator[None]:
        """While the model is constructed."""
        hook = register_module_parameter_registration_hook(self._register)
        try:
            with self:
                yield
        finally:
            hook.remove()

    def settle(self, model: nn.Module) -> None:
        """Leave the model with what is kept, and nothing else in memory."""
        self._registered.extend(model.parameters())  # for those that were given another storage
        self._adopt()
        with torch.no_grad():
            for loan in self._loans.values():
                self._put_away(loan)
        shares = []
        for name, parameter in model.named_parameters():
            loan = self._loans[_key(parameter)]
            parameter.data = torch.full((), float("nan")).expand(parameter.shape)
            if loan.share is None:
                continue
            if bool(loan.share.isnan().any()):
                raise RuntimeError(f"the initialisation of {name} needs values that are no longer in memory")
            shares.append((parameter, loan.share))
        self._loans.clear()
        if self._keep is not None:
            give_shares(self._keep, shares)

    def __torch_dispatch__(
        self,
        func: object,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        self._adopt()
        self._lend({_key(tensor) for tensor in _tensors((args, kwargs))} & self._loans.keys())
        assert callable(func), "the operation"
        return func(*args, **(kwargs or {}))

    def _register(self, module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        # Operations called from here would be dispatched to this mode, so only note it.
        self._registered.append(parameter)

    @torch.no_grad()
    def _adopt(self) -> None:
        """Take charge of parameters that were registered since the last operation."""
        for parameter in self._registered:
            key = _key(parameter)
            if key not in self._loans:
                loan = _Loan(parameter.data, parameter.untyped_storage().nbytes())
                self._loans[key] = loan
                if parameter.dim() > 1:
                    # Also a parameter that nothing initialises may take memory: deterministic torch fills it.
                    self._release(max(0, RESIDENT_BYTES - loan.size_bytes))
                    self._resident[key] = loan
        self._registered.clear()

    @torch.no_grad()
    def _lend(self, keys: set[int]) -> None:
        if not keys:
            return
        used = {key: self._loans[key] for key in keys if self._loans[key].tensor.dim() > 1}
        for key in used:
            self._resident.pop(key, None)
        self._release(max(0, RESIDENT_BYTES - sum(loan.size_bytes for loan in used.values())))
        for loan in used.values():
            storage = loan.tensor.untyped_storage()
            if storage.nbytes() != loan.size_bytes:
                storage.resize_(loan.size_bytes)
                loan.tensor.fill_(float("nan"))
        self._resident |= used

    def _release(self, remaining_bytes: int) -> None:
        """Take memory away until at most so many bytes are left."""
        left = sum(loan.size_bytes for loan in self._resident.values())
        while left > remaining_bytes:
            loan = self._resident.pop(next(iter(self._resident)))
            self._put_away(loan)
            left -= loan.size_bytes

    def _put_away(self, loan: _Loan) -> None:
        """Keep what is kept of a parameter and free its memory, if it has any."""
        storage = loan.tensor.untyped_storage()
        if storage.nbytes() != loan.size_bytes:
            return
        if self._keep is not None:
            loan.share = self._keep.copy(loan.tensor, loan.share)
        storage.resize_(0)
        self._freed_bytes += loan.size_bytes
        if self._freed_bytes > RESIDENT_BYTES:
            return_free_memory()
            self._freed_bytes = 0


def _key(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _tensors(value: object) -> Iterator[torch.Tensor]:
    """All strided tensors among the arguments of an operation."""
    if isinstance(value, torch.Tensor):
        if value.layout is torch.strided:
            yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
