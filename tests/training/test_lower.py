"""Lower layers computed once, row-block attention, and upper layers alone equal the whole model."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch
from rich.progress import Progress
from torch.nn import functional
from transformers import AutoModelForCausalLM

from agentkit.testing import TinyBackbone
from agentkit.training.attention import block_attention, use_block_attention
from agentkit.training.lower import LowerStates, layers_only
from agentkit.training.packs import Pack


def make_pack(seed: int, prefix: int = 30, branches: tuple[int, ...] = (7, 11)) -> Pack:
    random = torch.Generator().manual_seed(seed)
    total = prefix + sum(branches)
    ids = torch.randint(5, 390, (total,), generator=random).tolist()
    pack = Pack(ids=ids, branch=[0] * prefix, positions=list(range(prefix)))
    for number, length in enumerate(branches, start=1):
        pack.branch += [number] * length
        pack.positions += range(prefix, prefix + length)
    return pack


@pytest.fixture
def model(tiny_backbone: TinyBackbone):
    return AutoModelForCausalLM.from_pretrained(
        tiny_backbone.path, dtype=torch.float32, local_files_only=True
    ).eval()


def whole(model, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model.model(input_ids=torch.tensor([ids])).last_hidden_state[0]


def upper_states(model, states: LowerStates, pack: Pack, below: int) -> torch.Tensor:
    layers = model.config.num_hidden_layers
    with (
        layers_only(model.model, range(below, layers), final_norm=True) as upper,
        torch.inference_mode(),
    ):
        return upper(
            inputs_embeds=states.get(pack)[None],
            attention_mask=pack.mask(torch.float32),
            position_ids=torch.tensor([pack.positions]),
            use_cache=False,
        ).last_hidden_state[0]


def lower_states(model, path: Path, packs: list[Pack], below: int) -> LowerStates:
    states = LowerStates(path, hidden=48, key=str, dtype=torch.float32)
    with Progress(disable=True) as progress:
        states.compute(model.model, packs, below, progress)
    return states


@pytest.mark.parametrize("below", [0, 1, 3])
def test_cached_lower_and_upper_layers_equal_the_plain_forward(
    model, tmp_path: Path, below: int
) -> None:
    packs = [make_pack(1), make_pack(2, prefix=300, branches=(5, 60))]
    alone = [
        whole(model, [i for i, b in zip(pack.ids, pack.branch, strict=True) if b in (0, number)])
        for pack in packs
        for number in (1, 2)
    ]
    use_block_attention(model)
    states = lower_states(model, tmp_path / "lower.bin", packs, below)
    found = []
    for pack in packs:
        hidden = upper_states(model, states, pack, below)
        branch = torch.tensor(pack.branch)
        found += [hidden[(branch == 0) | (branch == number)] for number in (1, 2)]
    for ours, theirs in zip(found, alone, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_the_model_is_whole_again_afterwards(model) -> None:
    ids = make_pack(1).ids
    before = whole(model, ids)
    with layers_only(model.model, range(2), final_norm=False) as lower:
        assert len(lower.layers) == 2
        assert not torch.allclose(whole(model, ids), before)
    assert torch.equal(whole(model, ids), before)


def test_what_was_computed_is_read_again_and_only_the_rest_is_computed(
    model, tmp_path: Path
) -> None:
    use_block_attention(model)
    path = tmp_path / "states" / "lower.bin"
    one, two = make_pack(1), make_pack(2)
    first = lower_states(model, path, [one], 2).get(one)
    size = path.stat().st_size
    again = lower_states(model, path, [one, two, two], 2)
    assert torch.equal(again.get(one), first)
    assert again.get(two).shape == (len(two.ids), 48)
    assert path.stat().st_size == size * 2
    other = lower_states(model, path, [one], 3)  # another depth is another state
    assert not torch.equal(other.get(one), first)


def test_states_of_a_higher_layer_go_on_from_those_of_a_lower_one(model, tmp_path: Path) -> None:
    use_block_attention(model)
    packs = [make_pack(1), make_pack(2)]
    expected = lower_states(model, tmp_path / "alone.bin", packs, 3)
    path = tmp_path / "lower.bin"
    lower_states(model, path, packs[:1], 2)
    ran: list[int] = []
    for number, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
    again = lower_states(model, path, packs, 3)
    assert ran == [2, 0, 1, 2]
    for pack in packs:
        torch.testing.assert_close(again.get(pack), expected.get(pack), atol=1e-5, rtol=1e-5)


def test_states_cut_short_by_a_kill_are_computed_again(model, tmp_path: Path) -> None:
    use_block_attention(model)
    path = tmp_path / "lower.bin"
    one, two = make_pack(1), make_pack(2)
    wanted = lower_states(model, path, [one, two], 2)
    expected = [wanted.get(one).clone(), wanted.get(two).clone()]
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 100)
    again = lower_states(model, path, [one, two], 2)
    assert torch.equal(again.get(one), expected[0])
    assert torch.equal(again.get(two), expected[1])


@pytest.mark.parametrize("kept", [b"", b"12 ", b"ab 0", b"ab 0 50", b"\0\0\xff"])
def test_an_index_that_was_cut_short_costs_its_last_states_alone(
    model, tmp_path: Path, kept: bytes
) -> None:
    use_block_attention(model)
    path = tmp_path / "lower.bin"
    one, two = make_pack(1), make_pack(2)
    wanted = lower_states(model, path, [one, two], 2)
    expected = [wanted.get(one).clone(), wanted.get(two).clone()]
    index = path.with_suffix(".index")
    first = index.read_bytes().splitlines(keepends=True)[0]
    index.write_bytes(first + kept)
    for _ in range(2):  # and so do later starts
        again = lower_states(model, path, [one, two], 2)
        assert torch.equal(again.get(one), expected[0])
        assert torch.equal(again.get(two), expected[1])


def test_what_does_not_fit_on_disk_is_computed_anew_and_others_leavings_go_first(
    model, tmp_path: Path
) -> None:
    use_block_attention(model)
    path = tmp_path / "lower.bin"
    one, two, three = make_pack(1), make_pack(2), make_pack(3)
    room = 4 * 48 * len(one.ids)
    expected = [lower_states(model, tmp_path / "whole", [p], 2).get(p) for p in (one, two, three)]
    lower_states(model, path, [three], 3)
    states = LowerStates(path, hidden=48, key=str, dtype=torch.float32, limit=room * 3 // 2)
    with Progress(disable=True) as progress:
        states.compute(model.model, [one, two], 2, progress)
    assert path.stat().st_size == room
    with layers_only(model.model, range(2, 4), final_norm=True):
        for pack, wanted in zip((one, two), expected, strict=False):
            assert torch.equal(states.get(pack), wanted)
        states.get(two).clone().requires_grad_(True).sum().backward()  # no inference tensor
        assert len(model.model.layers) == 2
    again = LowerStates(path, hidden=48, key=str, dtype=torch.float32, limit=room * 2)
    with Progress(disable=True) as progress:
        again.compute(model.model, [one, two], 2, progress)
    assert path.stat().st_size == room * 2


def test_a_full_disk_ends_no_training_and_an_emptied_index_is_begun_anew(
    model, tmp_path: Path
) -> None:
    use_block_attention(model)
    packs = [make_pack(seed) for seed in range(3)]
    expected = [lower_states(model, tmp_path / "whole", [pack], 2).get(pack) for pack in packs]
    path = tmp_path / "states.bin"
    size = 48 * 4 * len(packs[0].ids)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(1.5 * size), before[1]))
    try:
        states = lower_states(model, path, packs, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.stat().st_size == size
    assert [states.found([pack], 2) for pack in packs] == [1.0, 0.0, 0.0]
    with layers_only(model.model, range(2, 4), final_norm=True):
        for pack, wanted in zip(packs, expected, strict=True):
            assert torch.equal(states.get(pack), wanted)

    small = LowerStates(
        tmp_path / "spared.bin", hidden=48, key=str, dtype=torch.float32, spared=10**18
    )
    with Progress(disable=True) as progress:
        small.compute(model.model, packs, 2, progress)
    assert small.found(packs, 2) == 0.0  # the disk's last room is for checkpoints

    path.with_suffix(".index").write_text("")  # as a kill leaves it, while room is made
    states = LowerStates(path, hidden=48, key=str, dtype=torch.float32, limit=3 * size)
    with Progress(disable=True) as progress:
        states.compute(model.model, packs, 2, progress)
    assert states.found(packs, 2) == 1.0


def test_states_are_kept_in_the_type_of_the_backbone(tiny_backbone, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        tiny_backbone.path, dtype=torch.bfloat16, local_files_only=True
    ).eval()
    use_block_attention(model)
    pack = make_pack(1)
    states = LowerStates(tmp_path / "lower.bin", hidden=48, key=str, dtype=torch.bfloat16)
    with Progress(disable=True) as progress:
        states.compute(model.model, [pack], 1, progress)
    assert states.get(pack).dtype == torch.bfloat16
    assert (tmp_path / "lower.bin").stat().st_size == 2 * 48 * len(pack.ids)


@pytest.mark.parametrize("tokens", [1, 255, 256, 257, 600])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_block_attention_equals_the_usual_one(tokens: int, kv_heads: int) -> None:
    random = torch.Generator().manual_seed(tokens)
    query = torch.randn(1, 4, tokens, 8, generator=random)
    key, value = (torch.randn(1, kv_heads, tokens, 8, generator=random) for _ in range(2))
    branch = torch.randint(0, 3, (tokens,), generator=random).sort().values
    seen = ((branch[None] == 0) | (branch[None] == branch[:, None])).tril()
    mask = torch.zeros(1, 1, tokens, tokens).masked_fill_(~seen, -1e9)
    ours, weights = block_attention(None, query, key, value, mask, scaling=0.5)
    theirs = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=0.5, enable_gqa=True
    ).transpose(1, 2)
    assert weights is None
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_block_attention_has_the_same_gradients() -> None:
    random = torch.Generator().manual_seed(0)
    tensors = [torch.randn(1, 2, 300, 8, generator=random, requires_grad=True) for _ in range(3)]
    mask = torch.zeros(1, 1, 300, 300).masked_fill_(~torch.ones(300, 300).tril().bool(), -1e9)
    ours = torch.autograd.grad(block_attention(None, *tensors, mask)[0].square().sum(), tensors)
    theirs = torch.autograd.grad(
        functional.scaled_dot_product_attention(*tensors, attn_mask=mask).square().sum(), tensors
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_lower_layers_go_only_where_nothing_needs_them_again(model, tmp_path: Path) -> None:
    packs = [make_pack(1), make_pack(2)]
    wanted = upper_states(model, lower_states(model, tmp_path / "a.bin", packs, 2), packs[1], 2)
    held = 48 * 4 * len(packs[0].ids)
    states = LowerStates(
        tmp_path / "b.bin", hidden=48, key=str, dtype=torch.float32, limit=held + 1
    )
    with Progress(disable=True) as progress:
        states.compute(model.model, packs, 2, progress)
    states.release(packs)  # the second does not fit, and is computed whenever it is wanted
    assert torch.equal(upper_states(model, states, packs[1], 2), wanted)
    states.release(packs[:1])
    assert all(p.is_meta for layer in model.model.layers[:2] for p in layer.parameters())
    assert not any(p.is_meta for layer in model.model.layers[2:] for p in layer.parameters())
    upper_states(model, states, packs[0], 2)
