"""
Mimicking: heads learn to attend in the two patterns, without a label; other runs begin from it.

    python -m figures.mimic                                  300 steps, into out/mimic
    python train.py --preset=vanilla --init_from=out/mimic   learn LEGO from there

As in the paper's official code.
"""
import itertools

import torch

import train
from attention import identical_tokens

DIALS = dict(train.PRESETS["vanilla"], lr=2e-3, muon_lr=2e-2, schedule="linear", max_steps=300,
             stop_at=0.0, out_dir="out/mimic")


def target_maps(tokens):
    """
    The two patterns as attention maps (B, 2, T, T) for token ids (B, T): manipulation, with rows
    proportional to 1 2 4 2 1 over the offsets -2 to +2, and association. Rows do not sum to 1.
    """
    offset = torch.arange(tokens.size(1), device=tokens.device)
    offset = (offset[None, :] - offset[:, None]).abs()  # (T, T)
    local = 4.0 * (offset == 0) + 2.0 * (offset == 1) + 1.0 * (offset == 2)
    same = identical_tokens(tokens).float()  # (B, T, T)
    return torch.stack((local.expand_as(same), same), 1)


def mimic_loss(model, batch, floor=1e-3):
    """
    How far heads 0 and 1 of every layer are from manipulation and association: KL(attention ||
    pattern) in nats, mean over rows, summed over heads, layers and sentences; the number of
    sentences. A floor is added to both maps.
    """
    normalise = lambda maps: (maps + floor) / (maps + floor).sum(-1, keepdim=True)
    targets, loss = normalise(target_maps(batch.tokens)), 0.0  # (B, 2, T, T)
    for _, weights in model.layers(batch.tokens, need_weights=True):
        maps = normalise(weights[:, :2].float())
        loss = loss + (maps * (maps / targets).log()).sum(-1).mean(2).sum()
    return loss, torch.tensor(len(targets), device=targets.device)


@torch.no_grad()
def evaluate(model, config, step):
    generator = train.make_generator(config, "test", step, model.head.weight.device)
    loss, n = mimic_loss(model, train.draw_test(config, config.eval_size, generator))
    return (loss / n).item(), []


def run(config, resume=False):
    return train.train(config, loss_fn=mimic_loss, evaluate=evaluate, resume=resume)


def beginnings(groups, max_steps=300):
    """For runs.get: (config, run) of the mimicking that runs {label: [config, ...]} begin from."""
    same, found = ("n_clauses", "n_names", "tied", "n_layer", "n_embd", "seed"), {}
    for config in itertools.chain(*groups.values()):
        dials = {dial: getattr(config, dial) for dial in same}
        dials |= dict(max_steps=max_steps, out_dir=config.init_from)
        if config.init_from:
            found[config.init_from] = train.Config(**DIALS | dials), run
    return list(found.values())


if __name__ == "__main__":
    train.run(*train.parse(**DIALS), loss_fn=mimic_loss, evaluate=evaluate)
