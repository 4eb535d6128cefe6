"""What convolution.py and lego_attention.py share: convolutions behind projections, and FLOPs."""
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from attention import Manipulation


def convolve(model, behind):
    """Puts a convolution over 7 positions, near the identity, behind "query, key, value", say."""
    for block in model.blocks:
        for name in filter(None, behind.split(", ")):
            convolution = Manipulation(model.config.n_embd, kernel_size=7)
            nn.init.normal_(convolution.conv.weight, std=model.config.init_std)
            nn.init.zeros_(convolution.conv.bias)
            convolution.conv.weight.data[..., 3] += 1
            setattr(block.attn, name, nn.Sequential(getattr(block.attn, name), convolution))
    return model


@torch.no_grad()
def count_flops(run) -> int:
    """
    The multiplications and additions in the products and convolutions of run() and of the way back,
    which takes twice as many. Fused attention hides its products: it is taken apart.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return 3 * counter.get_total_flops()
