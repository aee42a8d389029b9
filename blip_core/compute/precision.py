"""Which precision a model computes in: bf16 where the device has instructions for it, unless a parameter says otherwise."""

import functools
import logging

import torch

from blip_core.compute.distributed import device

log = logging.getLogger(__name__)
CPU_BF16 = ("amx_bf16", "avx512_bf16", "bf16")  # as torch.cpu.get_capabilities names the instructions


def autocast(precision: str) -> torch.autocast:
    """To bf16 on this process's device, or to nothing where `resolved` says fp32."""
    return torch.autocast(device().type, torch.bfloat16, enabled=resolved(precision) == "bf16")


def resolved(precision: str) -> str:
    """fp32 or bf16: what a parameter, which may also be auto, means on this process's device."""
    if precision == "auto":
        return "bf16" if native_bf16() else "fp32"
    if precision == "bf16" and not native_bf16():
        _warn()
    return precision


@functools.cache
def native_bf16() -> bool:
    """Whether the device has instructions for products of bf16 matrices. Without them bf16 is no faster than fp32: on an x86
    processor with AVX2 alone it was fifty times slower."""
    if device().type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in CPU_BF16)


@functools.cache
def _warn() -> None:
    """Once in a process."""
    log.warning("precision is bf16, for which this %s has no instructions: fp32 may be many times faster; auto chooses", device().type)
