"""
Chains of varied lengths, beside a second chain, or without one of their clauses: what some figures train on.

    python -m figures.varied --min_clauses=2        a compact BERT on chains of 2 to 6 clauses; any dial of train.py
"""
import random
from dataclasses import dataclass

import torch

import lego
import train


@dataclass
class Varied(train.Config):
    min_clauses: int = 0  # each training batch draws its number of clauses, from here to n_clauses; 0: n_clauses
    n_distractor: int = 0  # up to this many of the clauses, drawn for each batch, form a second chain without labels
    branch: float = 0.0  # up to this probability of each sentence that a clause takes any earlier variable
    drop_clause: float = 0.0  # share of training batches whose sentences lack a random clause
    facts: bool | None = False  # handing them on needs sentences of one shape


def chains_beside(batch_size, n, n_beside, generator, branch=0.0):
    """Graphs (B, n + n_beside) of two chains, and which columns of their batch are those of the first."""
    graphs = lego.random_graphs(batch_size, n + n_beside, branch, generator)
    graphs[:, n:] = torch.where(graphs[:, n:] > n, graphs[:, n:], 0)
    depth = [*range(n), *range(n_beside)]
    return graphs, [column for column, i in enumerate(sorted(range(n + n_beside), key=depth.__getitem__)) if i < n]


def drop_clauses(batch, which):
    """Whole chains without one clause each, that of the variable `which` (B,): from there on no value is determined."""
    at = batch.positions.gather(1, which[:, None])  # (B, 1)
    is_kept = torch.arange(batch.tokens.size(1), device=at.device).expand_as(batch.tokens) // 5 != at // 5
    positions = batch.positions - lego.TOKENS_PER_CLAUSE * (batch.positions > at)
    unknown = torch.arange(positions.size(1), device=at.device) >= which[:, None]
    return lego.Batch(batch.tokens[is_kept].view(len(at), -1), positions.masked_fill(batch.positions == at, 0),
                      batch.values.masked_fill(unknown, lego.NO_VALUE), batch.depths,
                      batch.facts[:, : -lego.TOKENS_PER_CLAUSE])


def draw(config, size, step, device):
    """Training sentences, as train.draw_sentences draws them."""
    generator = train.make_generator(config, "sentences", step, device)
    dice = random.Random(train.seed_of(config, "lengths", step))
    n_beside = dice.randint(0, config.n_distractor)
    n = dice.randint(config.min_clauses or config.n_clauses, config.n_clauses) - n_beside
    is_dropped = dice.random() < config.drop_clause
    which = torch.randint(n, (size,), generator=generator, device=device) if is_dropped else None
    branch = 0.0
    if config.branch:  # by the cube half of the sentences are chains, but for a link or two
        dice = torch.rand(size, generator=generator, device=device, dtype=torch.float32)
        branch = config.branch * dice**3
    graphs, columns = chains_beside(size, n, n_beside, generator, branch)
    batch = lego.sample(lego.make_task(config.task, config.n_names), graphs, generator).ask(columns)
    batch = drop_clauses(batch, which) if is_dropped else batch
    return batch.ask(slice(config.n_supervised))


if __name__ == "__main__":
    config, resume = train.parse(Varied, **train.PRESETS["vanilla"])
    train.run(config, resume, draw=draw)
