"""List what GPUs can do, in the one table that the plan and the metrics read."""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """Hold the figures of one GPU.

    memory: bytes that CUDA gives out, less than is printed on the card
    tflops: 10^12 operations a second, dense bfloat16;  bandwidth: of the memory, bytes a second
    """

    name: str
    memory: float
    tflops: float
    bandwidth: float


# Source: NVIDIA's data sheets. Memory is the total that the driver reports: 79.1 GiB of 80, 44.4 of 48 and 22.2 of 24
# with ECC, 139.8 of the H200's; for other cards nvidia-smi's total less half a GiB. A key is a part of the driver's
# name for the card; longer keys come first if one contains another.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("H100 PCIe", 79.1 * GIB, 756, 2.04e12),
        Gpu("H100 NVL", 93.1 * GIB, 835, 3.94e12),
        Gpu("H100", 79.1 * GIB, 989, 3.35e12),
        Gpu("H200", 139.8 * GIB, 989, 4.8e12),
        Gpu("B200", 178.4 * GIB, 2250, 8.0e12),
        Gpu("A100", 79.1 * GIB, 312, 2.04e12),
        Gpu("A800", 79.1 * GIB, 312, 2.04e12),
        Gpu("A40", 44.4 * GIB, 149.7, 0.70e12),
        Gpu("A10G", 22.2 * GIB, 70, 0.60e12),
        Gpu("A10", 22.2 * GIB, 125, 0.60e12),
        Gpu("L40S", 44.4 * GIB, 362, 0.86e12),
        Gpu("L40", 44.4 * GIB, 181, 0.86e12),
        Gpu("L4", 22.2 * GIB, 121, 0.30e12),
        Gpu("RTX A6000", 47.4 * GIB, 154.8, 0.77e12),
        Gpu("RTX 5090", 31.3 * GIB, 209.5, 1.79e12),
        Gpu("RTX 4090", 23.5 * GIB, 165.2, 1.01e12),
        Gpu("RTX 3090", 23.5 * GIB, 71, 0.94e12),
    )
}


def named_cards(visible: str | None) -> list[str] | None:
    """Return what CUDA_VISIBLE_DEVICES names, up to the first -1, where CUDA stops; None: it is not set.

    >>> named_cards("1, GPU-1a"), named_cards("0,-1,1"), named_cards(""), named_cards(None)
    (['1', 'GPU-1a'], ['0'], [], None)
    """
    if visible is None:
        return None
    names = [name.strip() for name in visible.split(",")]
    names = names[: names.index("-1")] if "-1" in names else names
    return [name for name in names if name]


def find_gpu(device_name: str) -> Gpu | None:
    """Return the GPU with this name from the driver, or None if it is not in the table.

    >>> gpu = find_gpu("NVIDIA H100 PCIe")
    >>> gpu is not None and gpu.name
    'H100 PCIe'
    """
    return next((gpu for name, gpu in GPUS.items() if name in device_name), None)
