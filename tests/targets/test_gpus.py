"""GPUs by name: case and punctuation are free, and what is in no table is refused with the nearest ones."""

from __future__ import annotations

import pytest

import qbridge
from qbridge.targets.gpus import gpu_of
from support import ROOT, cli


@pytest.mark.parametrize(
    ("names", "capability", "gigabytes"),
    [
        (("RTX 4090", "rtx-4090", "rtx4090", "NVIDIA GeForce RTX 4090", "Rtx_4090"), 89, 24),
        (("h100", "H100", "nvidia-h100", "NVIDIA H100 80GB HBM3", "H100 PCIe"), 90, 80),
        (("a100-80gb", "A100 80GB", "NVIDIA A100-SXM4-80GB"), 80, 80),
        (("a100", "v100"), None, None),  # sold in several sizes
        (("t4", "Tesla T4"), 75, 16),
        (("b200",), 100, 180),
        (("l40s",), 89, 48),
        (("a10",), 86, 24),
        (("sm90", "90", "9.0", "SM_90", "sm90a"), 90, None),
    ],
)
def test_a_gpu_has_a_capability_and_where_it_is_known_a_memory(names, capability, gigabytes):
    for name in names:
        gpu = gpu_of(name)
        assert capability in (None, gpu.capability)
        assert gpu.memory == (gigabytes and gigabytes * 10**9)


@pytest.mark.parametrize(
    ("name", "near"),
    [("rtx 4091", "RTX 4090"), ("h10", "H100"), ("sm95", "sm90"), ("sm81", "sm80"), ("9.9", "sm90"), ("b20", "B200")],
)
def test_what_is_in_no_table_is_refused_with_the_nearest_ones(name, near):
    with pytest.raises(qbridge.QBridgeError) as fault:
        gpu_of(name)
    (finding,) = fault.value.findings
    assert finding.code == "QB030" and near in finding.help[0] and fault.value.exit_code == 2


@pytest.mark.parametrize("name", ["mi300x", "", "sm", "sm8", "9,0", "-80"])
def test_what_no_kernel_table_is_for_is_refused(name):
    with pytest.raises(qbridge.QBridgeError):
        gpu_of(name)


def test_check_takes_a_name_and_prints_what_it_stands_for():
    done = cli("check", ROOT / "fixtures/gptq/llama_g128/model", "--for", "vllm", "--gpu", "H100")
    assert "for           vllm@0.33.0, tp 1, H100 (sm90, 80 GB)\n" in done.stdout and "Machete" in done.stdout
