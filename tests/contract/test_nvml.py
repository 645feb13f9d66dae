"""The names that Convoy uses of `pynvml` are those of the installed one: without a GPU nothing else would notice."""

import inspect
import typing

import pynvml
import pytest

from orchestrator.gang.agent.nvml_library import GpuMemory, Nvml, Utilization

pytestmark = pytest.mark.contract


def functions() -> list[str]:
    return [name for name, value in vars(Nvml).items() if name.startswith("nvml") and callable(value)]


def test_every_constant_is_there_and_a_number() -> None:
    constants = [name for name in typing.get_type_hints(Nvml) if name != "NVMLError"]
    assert len(constants) == 9
    assert [name for name in constants if not isinstance(getattr(pynvml, name, None), int)] == []
    assert issubclass(pynvml.NVMLError, Exception)


@pytest.mark.parametrize("name", functions())
def test_every_function_takes_as_many_values(name: str) -> None:
    ours = list(inspect.signature(getattr(Nvml, name)).parameters.values())[1:]
    signature = inspect.signature(inspect.unwrap(getattr(pynvml, name)))
    signature.bind(*range(len(ours)))  # TypeError: too many, or too few


def test_structures_have_the_fields() -> None:
    for ours, theirs in ((Utilization, pynvml.c_nvmlUtilization_t), (GpuMemory, pynvml.c_nvmlMemory_t)):
        fields = {name for name, *_ in theirs._fields_}
        assert set(typing.get_type_hints(ours)) <= fields


def test_without_a_driver_it_raises_what_is_caught() -> None:
    """On a machine with one it says nothing."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return
    pynvml.nvmlShutdown()
