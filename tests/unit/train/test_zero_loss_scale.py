"""Small state of mixed precision: a dynamic loss scale is state, a fixed one is configuration."""

from types import SimpleNamespace

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaleConfig, LossScaler

from orchestrator.train.zero.zero_state import _loss_scale, loss_scale_holder, to_storage

pytestmark = pytest.mark.unit


def engine(**optimizer: object) -> SimpleNamespace:
    return SimpleNamespace(optimizer=SimpleNamespace(**optimizer))


def scaler() -> DynamicLossScaler:
    return DynamicLossScaler(
        init_scale=2.0**8, scale_window=4, min_scale=1.0, delayed_shift=2, consecutive_hysteresis=False
    )


def test_a_dynamic_scale_goes_on_where_it_was() -> None:
    trained = scaler()
    for _ in range(10):  # it doubles every fourth step without an overflow
        trained.update_scale(False)
    state = _loss_scale(engine(loss_scaler=trained))
    assert state == {"cur_scale": 2.0**10, "cur_iter": 10, "last_overflow_iter": -1, "cur_hysteresis": 2}
    restored = scaler()
    for key, value in state.items():
        setattr(restored, key, value)
    for _ in range(7):
        trained.update_scale(False)
        restored.update_scale(False)
        assert restored.cur_scale == trained.cur_scale
    assert trained.cur_scale == 2.0**12


def test_the_unfused_wrapper_keeps_its_scale_elsewhere() -> None:
    arguments = {"init_scale": 2.0**10, "scale_window": 5, "min_scale": 1.0}
    config = LossScaleConfig(torch.float16, True, 1.0, arguments)
    assert loss_scale_holder(engine(loss_scale_config=config)) is config
    assert _loss_scale(engine(loss_scale_config=config)) == {
        "cur_scale": 2.0**10,
        "cur_iter": 0,
        "last_overflow_iter": -1,
    }


def test_a_fixed_scale_is_not_state() -> None:
    assert _loss_scale(engine(loss_scaler=LossScaler(scale=128.0))) is None
    assert _loss_scale(engine(loss_scale_config=LossScaleConfig(torch.bfloat16, False, 1.0, None))) is None
    assert _loss_scale(engine()) is None


def test_tensors_go_to_storage_without_a_copy_and_bit_by_bit() -> None:
    master = torch.arange(6, dtype=torch.float32)
    assert to_storage(master[2:4]).ctypes.data == master[2:].data_ptr(), "host memory is not copied"
    half = torch.tensor([1.0, -2.5], dtype=torch.bfloat16)
    assert to_storage(half).tolist() == [0x3F80, 0xC020]
    assert to_storage(torch.tensor([True, False])).tolist() == [True, False]
