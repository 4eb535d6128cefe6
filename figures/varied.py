"""
Chains of varied lengths, beside a second chain, with branches, or lacking a clause: what some
figures train on.

    python -m figures.varied --min_clauses=2     a compact BERT on chains of 2 to 6 clauses
"""
import random
from dataclasses import dataclass

import torch

import lego
import train


@dataclass
class Varied(train.Config):
    min_clauses: int = 0  # each batch draws its number of clauses, from here on; 0: n_clauses
    n_distractor: int = 0  # up to so many of them, drawn for each batch, form an unlabelled chain
    branch: float = 0.0  # up to this probability of a sentence, a clause takes any variable before
    drop_clause: float = 0.0  # share of training batches whose sentences lack a random clause
    facts: bool | None = False  # handing them on needs sentences of one shape


def vanilla(**dials):
    """A vanilla model on 6 clauses, the compact BERT of train.py without a stop."""
    preset = dict(train.PRESETS["vanilla"], stop_at=0.0, eval_every=100, out_dir="")
    return Varied(**preset | dials)


def chains_beside(batch_size, n, n_beside, generator, branch=0.0):
    """Graphs (B, n + n_beside) of two chains, and the columns of their batch that ask the first."""
    graphs = lego.random_graphs(batch_size, n + n_beside, branch, generator)
    graphs[:, n:] = torch.where(graphs[:, n:] > n, graphs[:, n:], 0)
    depth = [*range(n), *range(n_beside)]
    by_depth = sorted(range(n + n_beside), key=depth.__getitem__)
    return graphs, [column for column, variable in enumerate(by_depth) if variable < n]


def drop_clauses(batch, which):
    """Whole chains without the clause of variable `which` (B,): from it on no value is known."""
    at = batch.positions.gather(1, which[:, None])  # (B, 1)
    place = torch.arange(batch.tokens.size(1), device=at.device)
    tokens = batch.tokens[place // 5 != at // 5].view(len(at), -1)  # (B, T) -> (B, T - 5)
    positions = (batch.positions - 5 * (batch.positions > at)).masked_fill(batch.positions == at, 0)
    is_lost = torch.arange(positions.size(1), device=at.device) >= which[:, None]
    values = batch.values.masked_fill(is_lost, lego.NO_VALUE)
    return lego.Batch(tokens, positions, values, batch.depths, torch.zeros_like(tokens))


def draw(config, size, step, device):
    """Training sentences of a Varied; of another config those of train.py."""
    if not isinstance(config, Varied):
        return train.draw_sentences(config, size, step, device)
    generator = train.make_generator(config, "sentences", step, device)
    dice = random.Random(train.seed_of(config, "lengths", step))
    n_beside = dice.randint(0, config.n_distractor)
    n = dice.randint(config.min_clauses or config.n_clauses, config.n_clauses) - n_beside
    is_dropped, branch = dice.random() < config.drop_clause, 0.0
    if is_dropped:
        which = torch.randint(n, (size,), generator=generator, device=device)
    if config.branch:  # by the cube half of the sentences are chains, but for a link or two
        rand = torch.rand(size, generator=generator, device=device, dtype=torch.float32)
        branch = config.branch * rand**3
    graphs, columns = chains_beside(size, n, n_beside, generator, branch)
    task = lego.make_task(config.task, config.n_names)
    batch = lego.sample(task, graphs, generator).ask(columns)
    if is_dropped:
        batch = drop_clauses(batch, which)
    return batch.ask(slice(config.n_supervised))


if __name__ == "__main__":
    config, resume = train.parse(Varied, **train.PRESETS["vanilla"])
    train.run(config, resume, draw=draw)
