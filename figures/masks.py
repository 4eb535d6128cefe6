"""
Where LEGO attention looks: the masks of one sentence, and the time that association takes on this machine.

    python -m figures.masks      draws the picture of README
    python attention.py          draws it into out/masks.png, and prints the table
"""
from pathlib import Path

import torch
import torch.nn as nn
from torch.utils.benchmark import Timer

import attention
import lego
from attention import Manipulation, associate, make_plan
from figures import runner, show

NAME = "masks"


def draw(numbers):
    """Where the positions of a sentence look; every character is a token."""
    text = numbers["sentence"]
    association = make_plan(torch.tensor([[ord(c) for c in text]]), implementation="dense").matrix[0]  # (T, T)
    window = Manipulation(1, kernel_size=7)
    nn.init.ones_(window.conv.weight)
    local = window.weights(len(text)).detach()
    masks = {"association: identical tokens": association, "manipulation: the neighbours": local,
             "one layer: the first, then the second": local @ association}
    figure, axes = show.picture("One layer takes what is known of b from its definition into the clause that needs it",
                                1, 3, 12, 4.9)
    for panel, (title, mask) in zip(axes[0], masks.items()):
        panel.imshow(mask.numpy(), cmap="Blues", vmin=0)
        panel.set(title=title, xlabel="position looked at", ylabel="position that looks")
        panel.set_xticks(range(len(text)), text)
        panel.set_yticks(range(len(text)), text)
    asks, knows = text.index("c"), text.index("b")  # the variable of the clause c=+b, and where b is defined
    axes[0, 2].annotate("c looks at b,\nwhere it is defined", (knows, asks), (5.5, 11.5), color=show.RED, fontsize=10,
                        fontweight="bold", ha="center", bbox=dict(facecolor="white", edgecolor="none", pad=2),
                        arrowprops=dict(color=show.RED, arrowstyle="->", linewidth=2))
    return figure


def benchmark(device, n_tokens=8192, n_channels=64):
    """Prints the median time of association, both passes, and of its plan, for n_tokens in sentences of T."""
    timer = lambda run: Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
    ms = lambda run: 1e3 * timer(run).blocked_autorange(min_run_time=0.1).median
    names = attention.IMPLEMENTATIONS if attention.triton and device.type == "cuda" else ("dense", "segment")
    print(f"association on {device}, {n_tokens} tokens of {n_channels} channels: forward + backward / plan, ms")
    print("     T" + "".join(f"{name:>19}" for name in names))
    for T in (32, 64, 128, 256, 512, 1024, 2048, 4096):
        tokens = torch.randint(T // 2, (n_tokens // T, T), device=device)  # a token has one twin, as in LEGO
        v = torch.randn(n_tokens // T, T, n_channels, device=device, requires_grad=True)
        row = f"{T:6d}"
        for name in names:
            plan = make_plan(tokens, implementation=name)
            both = ms(lambda: torch.autograd.grad(associate(v, plan), v, v.detach()))
            row += f"{both:10.2f} /{ms(lambda: make_plan(tokens, implementation=name)):7.2f}"
        print(row)


def look(arguments):
    """What `python attention.py` does."""
    if arguments:
        raise ValueError(f"'{arguments[0]}': expected no argument")
    benchmark(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    figure = draw({"sentence": "b=-a;c=+b;a=+1;"})
    lego.write(Path("out/masks.png"), lambda beside: figure.savefig(beside, dpi=120, format="png"))
    print("wrote out/masks.png")


if __name__ == "__main__":
    lego.command_line(lambda arguments: runner.redraw(NAME, draw))
