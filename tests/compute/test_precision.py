"""auto is bf16 where the device has instructions for it, and fp32 elsewhere; what is named is done."""

import pytest
import torch

from blip_core.compute import precision
from blip_core.compute.precision import autocast, native_bf16, resolved


@pytest.fixture
def processor(monkeypatch):
    """Sets what instructions this CPU has."""

    def has(**capabilities):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "amx_bf16": False, "avx512_bf16": False} | capabilities)
        native_bf16.cache_clear()
        precision._warn.cache_clear()

    yield has
    native_bf16.cache_clear()
    precision._warn.cache_clear()


def product(name: str) -> torch.dtype:
    with autocast(name):
        return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


@pytest.mark.parametrize("has", [{"amx_bf16": True}, {"avx512_bf16": True}, {"avx2": False, "bf16": True}])
def test_auto_takes_bf16_where_it_is_native(processor, has):
    processor(**has)
    assert resolved("auto") == "bf16" and product("auto") == torch.bfloat16


def test_auto_is_fp32_where_bf16_is_emulated(processor):
    processor()
    assert resolved("auto") == "fp32" and product("auto") == torch.float32


def test_what_is_named_is_done_and_told_once(processor, caplog):
    processor()
    assert [product(name) for name in ("fp32", "bf16", "bf16")] == [torch.float32, torch.bfloat16, torch.bfloat16]
    assert [r.message for r in caplog.records if "no instructions" in r.message] == [
        "precision is bf16, for which this cpu has no instructions: fp32 may be many times faster; auto chooses"
    ]


def test_a_gpu_says_itself_whether_it_has_bf16(processor, monkeypatch):
    processor(amx_bf16=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert resolved("auto") == "fp32"
