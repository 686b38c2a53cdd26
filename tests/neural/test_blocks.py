"""Every block against the paper's equation (Vallée 2025, E6 and E8 to E11) written out in NumPy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from visits import CHANNELS, FACTS, SCALING, VISITS, network, record, states

from dtwin_jax.neural import attention, graph, heads, recurrent
from dtwin_jax.neural.sequence import features, sequence_at

CLOSE = {"rtol": 0.0, "atol": 1e-6}
RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 3))
HIDDEN = RNG.normal(size=(5, 4))


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def over(cell, mask=(True,) * 5):
    return recurrent.hidden_states(cell, jnp.asarray(X), jnp.asarray(mask))


def test_plain_cell_is_the_equation():
    cell = recurrent.PlainCell(3, 4, key=jax.random.key(0))
    w_h, w_x, b = (np.asarray(w) for w in (cell.weight_h, cell.weight_x, cell.bias))
    h, expected = np.zeros(4), []
    for x in X:
        h = np.tanh(w_h @ h + w_x @ x + b)
        expected.append(h)
    np.testing.assert_allclose(over(cell), expected, **CLOSE)


def test_lstm_is_the_equations():
    cell = eqx.nn.LSTMCell(3, 4, key=jax.random.key(1))
    w_i, w_f, w_c, w_o = np.split(np.asarray(cell.weight_ih), 4)
    u_i, u_f, u_c, u_o = np.split(np.asarray(cell.weight_hh), 4)
    b_i, b_f, b_c, b_o = np.split(np.asarray(cell.bias), 4)
    h, c, expected = np.zeros(4), np.zeros(4), []
    for x in X:
        forget = sigmoid(w_f @ x + u_f @ h + b_f)
        enter = sigmoid(w_i @ x + u_i @ h + b_i)
        leave = sigmoid(w_o @ x + u_o @ h + b_o)
        c = forget * c + enter * np.tanh(w_c @ x + u_c @ h + b_c)
        h = leave * np.tanh(c)
        expected.append(h)
    np.testing.assert_allclose(over(cell), expected, **CLOSE)


def test_gru_is_the_equations():
    # Cho et al. 2014, with the reset gate after the product; z keeps the old state.
    cell = eqx.nn.GRUCell(3, 4, key=jax.random.key(2))
    w_r, w_z, w_n = np.split(np.asarray(cell.weight_ih), 3)
    u_r, u_z, u_n = np.split(np.asarray(cell.weight_hh), 3)
    b_r, b_z, b_n = np.split(np.asarray(cell.bias), 3)
    h, expected = np.zeros(4), []
    for x in X:
        r = sigmoid(w_r @ x + u_r @ h + b_r)
        z = sigmoid(w_z @ x + u_z @ h + b_z)
        n = np.tanh(w_n @ x + b_n + r * (u_n @ h + np.asarray(cell.bias_n)))
        h = (1 - z) * n + z * h
        expected.append(h)
    np.testing.assert_allclose(over(cell), expected, **CLOSE)


def test_left_out_row_leaves_the_state_alone():
    cell = eqx.nn.LSTMCell(3, 4, key=jax.random.key(1))
    found = over(cell, (True, False, True, False, False))
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[3:], [found[2]] * 2)
    alone = recurrent.hidden_states(cell, jnp.asarray(X[[0, 2]]), jnp.ones(2, bool))
    np.testing.assert_allclose(found[2], alone[1], rtol=1e-12)


def attend(q, k, v, may):
    """softmax(Q K' / sqrt(d_k)) V, row by row, over what each row may look at."""
    rows = []
    for i in range(len(q)):
        score = np.array([q[i] @ k[j] / np.sqrt(q.shape[1]) for j in range(len(k)) if may[i][j]])
        weight = np.exp(score - score.max())
        rows.append(sum(w * v[j] for w, j in zip(weight / weight.sum(), np.flatnonzero(may[i]), strict=True)))
    return np.asarray(rows)


def attention_by_hand(layer, x, may):
    """All heads, side by side, through W_y and b_y."""
    q, k, v = (
        np.split(x @ np.asarray(p.weight).T, layer.num_heads, axis=1)
        for p in (layer.query_proj, layer.key_proj, layer.value_proj)
    )
    found = np.concatenate([attend(*one, may) for one in zip(q, k, v, strict=True)], axis=1)
    return found @ np.asarray(layer.output_proj.weight).T + np.asarray(layer.output_proj.bias)


def test_causal_attention_is_the_equation():
    layer = attention.Block(4, key=jax.random.key(3)).attention
    mask = np.array([True, True, False, True, True])
    may = np.array([[j <= i and mask[j] for j in range(5)] for i in range(5)])
    x = jnp.asarray(HIDDEN)
    found = layer(x, x, x, attention.causal_mask(mask))
    np.testing.assert_allclose(found, attention_by_hand(layer, HIDDEN, may), **CLOSE)


def affine(layer, x):
    return x @ np.asarray(layer.weight).T + np.asarray(layer.bias)


def normalised(layer, x):
    middle = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + layer.eps)
    return middle * np.asarray(layer.weight) + np.asarray(layer.bias)


def test_transformer_is_its_blocks():
    net = network(attention.transformer)
    sequence = sequence_at(record(), VISITS, CHANNELS, FACTS, SCALING)
    periods = np.array([0.5, 100.0])
    angle = 2 * np.pi * VISITS[:, None] / periods
    h = affine(net.embedding, np.asarray(features(sequence)))
    h = h + np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    for block in net.blocks:
        h = h + attention_by_hand(block.attention, normalised(block.norms[0], h), np.tri(4) > 0)
        h = h + affine(block.outer, np.tanh(affine(block.inner, normalised(block.norms[1], h))))
    np.testing.assert_allclose(states(net, record(), VISITS), normalised(net.norm, h), **CLOSE)


def test_width_that_heads_do_not_share_is_refused():
    with pytest.raises(ValueError, match="width must be a multiple of 4, found 6"):
        attention.transformer(2, 1, 6, jax.random.key(0))


ADJACENCY = np.array([[1.0, 0.5, 0.0], [0.2, 1.0, 2.0], [0.0, 0.0, 0.0]])


def test_graph_layer_is_the_equation():
    # The third variable has no neighbours, and so no D^-1: its row is 0.
    h, w = HIDDEN[:3], RNG.normal(size=(4, 6))
    linked = ADJACENCY[:2]
    degree = np.diag(linked.sum(axis=1))
    expected = np.maximum(np.linalg.inv(degree) @ linked @ h @ w, 0.0)
    found = graph.graph_layer(*(jnp.asarray(x) for x in (ADJACENCY, h, w)))
    np.testing.assert_allclose(found, [*expected, np.zeros(6)], **CLOSE)
    assert 3 <= np.sum(expected > 0) <= 9


def test_given_adjacency_says_who_is_heard():
    # Nodes are bilirubin, albumin, age, time: albumin hears itself only, and time hears nobody.
    adjacency = np.diag([1.0, 1.0, 1.0, 0.0])
    adjacency[0, 2] = 1.0
    sequence = sequence_at(record(), VISITS, CHANNELS, FACTS, SCALING)
    h = graph.node_features(sequence)[2]
    older = h.at[2, 0].add(1.0)
    w = jnp.asarray(np.abs(RNG.normal(size=(4, 3))))
    before, after = (graph.graph_layer(jnp.asarray(adjacency), rows, w) for rows in (h, older))
    heard = np.any(np.asarray(before != after), axis=1)
    np.testing.assert_array_equal(heard, [True, False, True, False])
    net = graph.graph_over(adjacency, 3, jax.random.key(0))
    np.testing.assert_array_equal(net.adjacency(), adjacency)
    assert jax.tree.leaves(net.adjacency) == []


def test_learned_adjacency_is_positive_and_trained():
    net = network(graph.graph)
    sequence = sequence_at(record(), VISITS, CHANNELS, FACTS, SCALING)
    np.testing.assert_allclose(net.adjacency(), np.log1p(np.exp(4.0 * np.eye(4) - 2.0)), rtol=1e-12)
    slope = eqx.filter_grad(lambda net: jnp.sum(net(sequence)))(net)
    assert np.max(np.abs(slope.adjacency.logit)) > 1e-4


def test_negative_adjacency_is_refused():
    with pytest.raises(ValueError, match="not negative"):
        graph.graph_over(-ADJACENCY, 3, jax.random.key(0))


def test_heads_are_the_equations():
    event, risk = (head(4, 2, key=jax.random.key(4)) for head in (heads.EventHead, heads.RiskHead))
    hazard = heads.HazardHead(4, 3, key=jax.random.key(5))
    h, mask = jnp.asarray(HIDDEN), np.array([True, True, False, True, False])
    np.testing.assert_allclose(event(h), sigmoid(affine(event.linear, HIDDEN)), **CLOSE)
    expected = np.mean([sigmoid(affine(risk.linear, HIDDEN[t])) for t in (0, 1, 3)], axis=0)
    np.testing.assert_allclose(risk(h, mask), expected, **CLOSE)
    np.testing.assert_array_equal(risk(h, np.zeros(5, bool)), np.zeros(2))
    np.testing.assert_allclose(hazard(h), np.exp(affine(hazard.linear, HIDDEN)), **CLOSE)
