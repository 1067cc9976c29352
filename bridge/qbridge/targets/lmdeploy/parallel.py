"""What a rank of LMDeploy's engines can hold."""

from __future__ import annotations

from qbridge.targets.blocks import BlockLimits
from qbridge.targets.lmdeploy import fusion
from qbridge.targets.parallel import Parallel

BLOCKS = BlockLimits("lmdeploy 0.18.0, pytorch/nn/linear/blocked_fp8.py")
LMDEPLOY = Parallel(
    (128, 64, 32),
    whole_outputs=True,
    straddled={"": "LMDeploy's PyTorch engine stops: Attempted to load weight into parameter of another size"},
    blocks=BLOCKS,
    fused=fusion.LMDEPLOY,
    source="lmdeploy 0.18.0, pytorch/nn/linear/awq.py (get_distribute_size)",
)
OLD_AWQ = Parallel(
    (128, 64, 32),
    whole_outputs=True,
    straddled={"": "LMDeploy's PyTorch engine stops: AssertionError"},
    fused=fusion.LMDEPLOY,
    source="lmdeploy 0.6.2, pytorch/nn/linear.py (_chunk_align)",
)
TURBOMIND = Parallel(
    (128,),
    pads_mlps=True,
    fused=fusion.TURBOMIND,
    straddled={"": "TurboMind, which pads MLPs only, refuses it: TP split: scales are not divisible by tp"},
    source="lmdeploy 0.18.0, turbomind/linear.py",
)
