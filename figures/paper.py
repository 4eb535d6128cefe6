"""
The paper's own recipe, of its official code's demo: BERT-base from random weights on 120,000 chains
of 12 clauses, 200 times, 6 of 12 variables labelled, batches of 1,000, no warm-up.

    python -m figures.paper --dtype=bfloat16 --compile

It wants a GPU: 0.74 EFLOP; the README of that code says 3 hours on 4 V100.
"""
import train

DIALS = dict(attention="vanilla", tied=False, n_layer=12, n_embd=768, n_head=12, norm="last",
             init_std=0.02, dropout=0.1, batch_size=1000, max_steps=24_000, stop_at=0.0, lr=5e-5,
             beta2=0.999, weight_decay=0.0, grad_clip=0.0, warmup_steps=0, schedule="cosine",
             eval_every=120, eval_size=12_000, out_dir="out/paper")
N_TRAIN = 120_000  # sentences, the same in every epoch


def draw(config, size, step, device):
    return train.draw_sentences(config, size, step % (N_TRAIN // size), device)


if __name__ == "__main__":
    config, resume = train.parse(**DIALS)
    train.run(config, resume, draw=draw)
