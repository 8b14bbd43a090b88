from dataclasses import replace

import pytest
import torch
from model_cases import EVERY, GPT2_LIKE, MIXTRAL_LIKE, PLAIN, logits, random_model, random_tokens
from torch import Tensor

from model.attention import causal_attend, explicit_attention
from model.config import FeedForward as FeedForwardKind
from model.gpt import GPT, initialise
from model.layers import FeedForward, Norm, SelfAttention
from model.reference import generate, sequence_logits


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def copied(source: GPT, target: GPT) -> GPT:
    """`target` with every parameter of `source` that it also has."""
    target.load_state_dict({**target.state_dict(), **source.state_dict()})
    return target


@pytest.mark.parametrize("name", sorted(EVERY))
def test_later_tokens_never_change_earlier_logits(name: str) -> None:
    config = EVERY[name]
    model, tokens = random_model(config), random_tokens(config, 1, 24)
    changed = tokens.clone()
    changed[0, 16:] = (tokens[0, 16:] + 1) % config.vocab_size
    before, after = logits(model, tokens), logits(model, changed)
    assert torch.equal(after[:, :16], before[:, :16])
    assert not torch.equal(after[:, 16:], before[:, 16:])


@pytest.mark.parametrize("name", sorted(EVERY))
def test_sequences_of_a_batch_do_not_touch_each_other(name: str) -> None:
    config = EVERY[name]
    model, tokens = random_model(config), random_tokens(config, 3, 16)
    together = logits(model, tokens)
    for index in range(3):
        torch.testing.assert_close(logits(model, tokens[index : index + 1])[0], together[index], atol=1e-5, rtol=1e-5)


def test_layernorm_is_its_formula() -> None:
    norm = Norm(16, "layernorm", 1e-3).requires_grad_(False)
    assert norm.bias is not None
    norm.weight.copy_(rows(16))
    norm.bias.copy_(rows(2, 16)[1])
    x = rows(5, 16)
    centred = x - x.mean(-1, keepdim=True)
    wanted = centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(norm(x), wanted)


def test_rmsnorm_is_its_formula_and_has_no_bias() -> None:
    norm = Norm(16, "rmsnorm", 1e-3).requires_grad_(False)
    norm.weight.copy_(rows(16))
    x = rows(5, 16)
    torch.testing.assert_close(norm(x), x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight)
    assert norm.bias is None


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_norms_stand_before_or_after_the_residual_sum(placement: str) -> None:
    config = replace(PLAIN, num_layers=1, norm_placement="pre" if placement == "pre" else "post")
    model, tokens = random_model(config), random_tokens(config, 1, 8)
    attend = causal_attend(config, 8, torch.device("cpu"), explicit_attention)
    layer, positions = model.layers[0], torch.arange(8)
    rotation = model._rotation(positions)

    def attention(x: Tensor) -> Tensor:
        out: Tensor = layer.attention(x, rotation, lambda query, key, value: attend(0, query, key, value))
        return out

    x = model.embedding(tokens)
    if placement == "pre":
        x = x + attention(layer.attention_norm(x))
        x = x + layer.feed_forward(layer.feed_forward_norm(x))
        x = model.final_norm(x)
    else:
        x = layer.attention_norm(x + attention(x))
        x = layer.feed_forward_norm(x + layer.feed_forward(x))
    torch.testing.assert_close(model(tokens, positions, attend), x)


def test_post_norm_has_no_final_norm() -> None:
    names = {name for name, _ in GPT(replace(PLAIN, norm_placement="post")).named_parameters()}
    assert not any(name.startswith("final_norm") for name in names)


@pytest.mark.parametrize(
    ("kind", "activation"),
    [
        ("gelu", lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5))),
        ("gelu_tanh", lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))),
        ("relu", lambda x: x.clamp(min=0)),
    ],
)
def test_feed_forward_layers_are_their_formulas(kind: FeedForwardKind, activation: object) -> None:
    layer = FeedForward(replace(PLAIN, feed_forward=kind)).requires_grad_(False)
    layer.up.weight.copy_(rows(48, 32))
    layer.down.weight.copy_(rows(32, 48))
    assert callable(activation)
    x = rows(7, 32)
    torch.testing.assert_close(layer(x), activation(x @ layer.up.weight.T) @ layer.down.weight.T)


def test_swiglu_is_its_formula_with_the_gate_first() -> None:
    layer = FeedForward(PLAIN).requires_grad_(False)
    layer.up.weight.copy_(rows(96, 32))
    layer.down.weight.copy_(rows(32, 48))
    x = rows(7, 32)
    gate, up = x @ layer.up.weight[:48].T, x @ layer.up.weight[48:].T
    torch.testing.assert_close(layer(x), (gate * gate.sigmoid() * up) @ layer.down.weight.T, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("field", ["attention_bias", "feed_forward_bias"])
def test_biases_of_zero_are_no_biases_and_others_matter(field: str) -> None:
    tokens = random_tokens(PLAIN, 1, 8)
    plain = random_model(PLAIN)
    biased = copied(plain, random_model(replace(PLAIN, **{field: True})))
    assert not torch.equal(logits(biased, tokens), logits(plain, tokens))
    for name, parameter in biased.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
    torch.testing.assert_close(logits(biased, tokens), logits(plain, tokens), atol=1e-5, rtol=1e-5)


def test_qk_norm_forgets_the_scale_of_queries_and_keys() -> None:
    config = replace(PLAIN, qk_norm=True, norm_epsilon=1e-9)
    model, tokens = random_model(config), random_tokens(config, 1, 8)
    before = logits(model, tokens)
    for layer in model.layers:
        layer.attention.qkv.weight[:64] *= 7.0  # 4 query and 4 key heads of 8
    torch.testing.assert_close(logits(model, tokens), before, atol=1e-4, rtol=1e-4)
    for layer in model.layers:
        layer.attention.qkv.weight[64:] *= 7.0
    assert not torch.allclose(logits(model, tokens), before, atol=1e-2)


def test_without_qk_norm_the_scale_matters() -> None:
    model, tokens = random_model(PLAIN), random_tokens(PLAIN, 1, 8)
    before = logits(model, tokens)
    for layer in model.layers:
        layer.attention.qkv.weight[:64] *= 7.0
    assert not torch.allclose(logits(model, tokens), before, atol=1e-2)


def test_tied_embeddings_are_one_parameter_with_both_gradients() -> None:
    model = GPT(PLAIN)
    initialise(model, torch.Generator().manual_seed(0))
    assert model.unembedding.weight is model.embedding.weight
    attend = causal_attend(PLAIN, 4, torch.device("cpu"), explicit_attention)
    tokens = torch.tensor([[1, 2, 3, 4]])
    model.unembed(model(tokens, torch.arange(4), attend))[..., 90].sum().backward()
    gradient = model.embedding.weight.grad
    assert gradient is not None
    assert gradient[1:5].abs().sum() > 0  # as inputs
    assert gradient[90].abs().sum() > 0  # as an output
    assert gradient[50].abs().sum() == 0


def test_untied_embeddings_are_two_parameters() -> None:
    model = random_model(replace(PLAIN, tie_embeddings=False))
    names = {name for name, _ in model.named_parameters()}
    assert {"embedding.weight", "unembedding.weight"} <= names
    hidden = rows(3, 32)
    torch.testing.assert_close(model.unembed(hidden), hidden @ model.unembedding.weight.T)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_shared_kv_heads_equal_full_heads_with_copied_weights(kv_heads: int) -> None:
    shared = random_model(replace(PLAIN, num_kv_heads=kv_heads))
    full, tokens = random_model(PLAIN), random_tokens(PLAIN, 1, 8)
    state = shared.state_dict()
    for layer in range(PLAIN.num_layers):
        weight = state[f"layers.{layer}.attention.qkv.weight"]
        query, key, value = weight.unflatten(0, (-1, 8)).split((4, kv_heads, kv_heads))
        repeated = [x.repeat_interleave(4 // kv_heads, dim=0) for x in (key, value)]
        state[f"layers.{layer}.attention.qkv.weight"] = torch.cat((query, *repeated)).flatten(0, 1)
    full.load_state_dict(state)
    torch.testing.assert_close(logits(shared, tokens), logits(full, tokens), atol=1e-5, rtol=1e-5)


def test_head_dim_is_independent_of_the_hidden_size() -> None:
    attention = SelfAttention(replace(PLAIN, head_dim=6, num_kv_heads=2))
    assert attention.qkv.weight.shape == ((4 + 2 + 2) * 6, 32)
    assert attention.out.weight.shape == (32, 24)


def test_learned_and_sinusoidal_positions_are_added_to_the_embedding() -> None:
    tokens, positions = random_tokens(PLAIN, 1, 8), torch.arange(8)
    learned = random_model(replace(PLAIN, positions="learned"))
    assert learned.position_embedding is not None
    sinusoidal = random_model(replace(PLAIN, positions="sinusoidal"))
    learned.position_embedding.weight.copy_(sinusoidal.position_table.rows(torch.arange(64)))
    names = {name for name, _ in sinusoidal.named_parameters()}
    sinusoidal.load_state_dict({name: x for name, x in learned.state_dict().items() if name in names}, strict=False)
    torch.testing.assert_close(logits(learned, tokens), logits(sinusoidal, tokens))
    assert not torch.equal(learned._embed(tokens, positions), learned._embed(tokens, positions + 1))


def test_without_positions_the_order_of_earlier_tokens_is_invisible_to_a_single_layer() -> None:
    config = replace(PLAIN, positions="none", num_layers=1)
    model = random_model(config)
    first, second = torch.tensor([[5, 9, 7, 3]]), torch.tensor([[7, 5, 9, 3]])
    torch.testing.assert_close(logits(model, first)[:, -1], logits(model, second)[:, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary", "alibi"])
def test_every_position_scheme_sees_the_order_of_tokens(positions: str) -> None:
    model = random_model(next(config for config in EVERY.values() if config.positions == positions))
    first, second = torch.tensor([[5, 9, 7, 3]]), torch.tensor([[7, 5, 9, 3]])
    assert not torch.allclose(logits(model, first)[:, -1], logits(model, second)[:, -1], atol=1e-3)


def test_rope_theta_matters() -> None:
    tokens = random_tokens(PLAIN, 1, 16)
    near, far = random_model(PLAIN), random_model(replace(PLAIN, rope_theta=100.0))
    assert not torch.allclose(logits(near, tokens), logits(far, tokens), atol=1e-3)


@pytest.mark.parametrize("config", [PLAIN, GPT2_LIKE], ids=["rotary", "learned"])
def test_positions_end_at_the_context_length(config: object) -> None:
    model = random_model(replace(GPT2_LIKE if config is GPT2_LIKE else PLAIN, context_length=8))
    assert logits(model, torch.zeros(1, 8, dtype=torch.long)).shape == (1, 8, 96)
    with pytest.raises(IndexError):
        logits(model, torch.zeros(1, 9, dtype=torch.long))


def test_logits_are_float32_whatever_the_weights_are() -> None:
    model = random_model(PLAIN).to(torch.bfloat16)
    assert logits(model, random_tokens(PLAIN, 1, 4)).dtype == torch.float32


def test_routing_is_observed_in_every_layer() -> None:
    model, tokens = random_model(MIXTRAL_LIKE), random_tokens(MIXTRAL_LIKE, 2, 8)
    seen: dict[int, torch.Size] = {}
    attend = causal_attend(MIXTRAL_LIKE, 8, torch.device("cpu"), explicit_attention)
    model(tokens, torch.arange(8), attend, lambda layer, routing: seen.update({layer: routing.shape}))
    assert seen == {0: (2, 8, 4), 1: (2, 8, 4)}


def test_dropout_acts_in_training_only() -> None:
    model = GPT(PLAIN, dropout=0.5)
    initialise(model, torch.Generator().manual_seed(0))
    tokens = random_tokens(PLAIN, 1, 8)
    assert torch.equal(logits(model.eval(), tokens), logits(model.eval(), tokens))
    assert not torch.equal(logits(model.train(), tokens), logits(model.train(), tokens))


def test_initialisation_is_seeded_and_scales_residual_outputs_down() -> None:
    config = replace(GPT2_LIKE, hidden_size=256, head_dim=64, num_layers=8)
    models = [GPT(config) for _ in range(2)]
    for model in models:
        initialise(model, torch.Generator().manual_seed(7))
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert float(first["layers.0.attention.qkv.weight"].std()) == pytest.approx(0.02, rel=0.02)
    assert float(first["layers.0.attention.out.weight"].std()) == pytest.approx(0.02 / 4, rel=0.02)
    assert torch.equal(first["final_norm.weight"], torch.ones(256))
    assert torch.equal(first["layers.3.feed_forward.up.bias"], torch.zeros(48))


def test_sequence_logits_are_those_of_the_forward_pass() -> None:
    model, tokens = random_model(PLAIN), random_tokens(PLAIN, 1, 8)
    assert torch.equal(sequence_logits(model, tokens[0].tolist()), logits(model, tokens)[0])


def test_greedy_generation_chooses_the_likeliest_token_each_time() -> None:
    model, prompt = random_model(PLAIN), [1, 2, 3]
    output = generate(model, prompt, lambda row, position: int(row.argmax()), 6, frozenset())
    whole = sequence_logits(model, prompt + output)
    assert output == whole[len(prompt) - 1 : -1].argmax(-1).tolist()


def test_generation_ends_with_the_first_stop_token_and_knows_positions() -> None:
    model, asked = random_model(PLAIN), []

    def choose(row: Tensor, position: int) -> int:
        asked.append(position)
        return 40 + position

    assert generate(model, [1, 2, 3], choose, 9, frozenset({45})) == [43, 44, 45]
    assert asked == [3, 4, 5]
