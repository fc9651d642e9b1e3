"""What a masked language model is given, and what it is asked."""

import math

import pytest
import torch

from tokrl.masking import pad
from tokrl.training import mask_tokens

MASK, VOCAB = 4, 20


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_masking_by_hand():
    """The rule written out token by token, on the same draws."""
    rows = [[1, 5, 6, 7, 3, 8, 2], [1, 9, 19, 2], [1, 4, 10, 11, 2]] * 20
    ids, mask = pad(rows, side="right")
    inputs, labels = mask_tokens(ids, mask, MASK, VOCAB, seeded(), share=0.6)
    generator = seeded()
    uniform = torch.rand(ids.shape, generator=generator, dtype=torch.float64)
    other = torch.randint(15, ids.shape, generator=generator) + 5
    seen = set()
    for i, row in enumerate(rows):
        for t, token in enumerate(row):
            u = float(uniform[i, t])
            if token <= 4 or u >= 0.6:
                expected, label, fate = token, -100, "not chosen"
            elif u < 0.48:
                expected, label, fate = MASK, token, "mask"
            elif u < 0.54:
                expected, label, fate = int(other[i, t]), token, "random"
            else:
                expected, label, fate = token, token, "same"
            assert (inputs[i, t], labels[i, t]) == (expected, label)
            seen.add(fate)
        assert (labels[i, len(row) :] == -100).all()
        assert (inputs[i, len(row) :] == 0).all()
    assert len(seen) == 4


def test_frequencies():
    """15% are chosen; 80, 10 and 10% of them masked, drawn, kept: within 4.5 sigma."""
    ids = torch.randint(5, VOCAB, (400, 500), generator=seeded(1))
    inputs, labels = mask_tokens(ids, torch.ones_like(ids), MASK, VOCAB, seeded(2))
    chosen = labels != -100
    assert torch.equal(labels[chosen], ids[chosen])
    assert torch.equal(inputs[~chosen], ids[~chosen])

    def near(hits, p):
        n = hits.numel()
        return abs(hits.double().mean() - p) < 4.5 * math.sqrt(p * (1 - p) / n)

    words = VOCAB - 5
    assert near(chosen, 0.15)
    given, right = inputs[chosen], ids[chosen]
    assert near(given == MASK, 0.8)
    assert near(given == right, 0.1 + 0.1 / words), "some draws hit the token itself"
    assert near((given != MASK) & (given != right), 0.1 * (words - 1) / words)
    drawn = given[(given != MASK) & (given != right)]
    assert all(near(drawn == token, 1 / words) for token in range(5, VOCAB))


def test_padding_and_special_tokens_are_never_touched():
    ids, mask = pad([[1, 5, 6, 2], [1, 3, 3, 7, 4, 8, 2]], side="left")
    inputs, labels = mask_tokens(ids, mask, MASK, VOCAB, seeded(), share=1.0)
    plain = ids >= 5
    assert torch.equal(labels != -100, plain)
    assert torch.equal(inputs[~plain], ids[~plain])
    hidden = ids.clone()
    hidden[0, -3] = 6
    mask[0, -3] = 0
    _, labels = mask_tokens(hidden, mask, MASK, VOCAB, seeded(), share=1.0)
    assert labels[0, -3] == -100


def test_a_seed_decides_and_the_arguments_are_left_alone():
    ids = torch.randint(5, VOCAB, (8, 30), generator=seeded(1))
    mask, before = torch.ones_like(ids), ids.clone()
    first, again, other = (
        mask_tokens(ids, mask, MASK, VOCAB, seeded(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])
    assert torch.equal(ids, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0}, "share=0"),
        ({"share": 1.5}, r"share=1\.5"),
        ({"mask_id": 20}, "mask_id=20.*from 0 to 19"),
        ({"special_ids": (0, 33)}, "33.*from 0 to 19"),
        ({"vocab_size": 5}, "vocab_size=5: all of its tokens are special"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    ids = torch.full((1, 4), 3)
    options = {"mask_id": MASK, "vocab_size": VOCAB, **options}
    with pytest.raises(ValueError, match=message):
        mask_tokens(ids, torch.ones_like(ids), **options)


def test_bert_learns_to_put_a_token_back():
    """Rows of one token repeated: what is hidden can be seen beside it."""
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=16, pad_token_id=0,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model, generator = BertForMaskedLM(config), seeded(3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(120):
        words = torch.randint(5, VOCAB, (32, 1), generator=generator)
        ids = words.expand(-1, 8).contiguous()
        mask = torch.ones_like(ids)
        inputs, labels = mask_tokens(ids, mask, MASK, VOCAB, generator)
        loss = model(inputs, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    guessing = math.log(VOCAB - 5)
    assert losses[0] > 0.8 * guessing
    assert sum(losses[-10:]) / 10 < 0.4 * guessing
