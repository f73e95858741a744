"""Rows packed into one sequence give what each gives alone."""

from pathlib import Path

import pytest
import torch
from engine_material import read_prefix
from transformers import AutoModelForCausalLM, MistralConfig, Qwen2Config

from agentkit.engine.activation import Slots
from agentkit.engine.backbone import Backbone, load_backbone
from agentkit.engine.forward import hidden_states, logits
from agentkit.engine.packed import PackedRows
from agentkit.testing import TinyBackbone, tiny_tokenizer

PREFIX = [int(x) for x in torch.randint(5, 300, (40,), generator=torch.Generator().manual_seed(0))]
BRANCHES = ([7, 8, 9, 10], [11], [12, 13, 14, 15, 16, 17, 18])


def alone(backbone: Backbone, ids: list[int]) -> torch.Tensor:
    positions = torch.arange(len(ids))
    return backbone.hidden_states(
        torch.tensor(ids), positions=positions, mask=backbone.causal_mask(len(ids))
    )


def check_packed_equals_alone(backbone: Backbone) -> None:
    with torch.inference_mode():
        prefix = read_prefix(backbone, PREFIX)
        rows = PackedRows(prefix, room=100)
        ends = [rows.append(rows.fork(), (None, branch)) for branch in BRANCHES]
        packed = hidden_states(backbone, Slots(backbone.modules), rows)
        for branch, end in zip(BRANCHES, ends, strict=True):
            expected = alone(backbone, PREFIX + branch)[len(PREFIX) :]
            found = packed[end - len(branch) + 1 : end + 1]
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_a_fork_without_the_last_tokens_goes_on_from_before_them(backbone: Backbone) -> None:
    with torch.inference_mode():
        slots = Slots(backbone.modules)
        rows = PackedRows(read_prefix(backbone, PREFIX), room=100)
        row = rows.fork()
        for ids in ([7, 8], [9, 10, 11], [12]):
            rows.append(row, (None, ids))
            hidden_states(backbone, slots, rows)
        again = rows.fork(row, without=4)
        rows.end(row)
        end = rows.append(again, (None, [20, 21]))
        found = hidden_states(backbone, slots, rows)[end - 1 : end + 1]
        expected = alone(backbone, [*PREFIX, 7, 8, 20, 21])[-2:]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_branches_equal_separate_ones(tiny: TinyBackbone, attention: str) -> None:
    check_packed_equals_alone(load_backbone(tiny.path, attention=attention))


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(MistralConfig(sliding_window=16), id="every layer slides"),
        pytest.param(
            Qwen2Config(use_sliding_window=True, sliding_window=16, max_window_layers=2),
            id="some layers slide",
        ),
    ],
)
def test_sliding_windows_are_measured_along_each_branch(config: object, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    config = type(config)(
        **{
            **{k: v for k, v in config.to_dict().items() if k != "layer_types"},
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 256,
            "initializer_range": 0.2,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
        }
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path)
    assert backbone.sliding_window == 16
    with torch.inference_mode():
        plain = backbone.model(torch.tensor([PREFIX]), output_hidden_states=True).hidden_states[-1]
        ours = alone(backbone, PREFIX)
    torch.testing.assert_close(ours, plain[0], atol=1e-4, rtol=0)
    check_packed_equals_alone(backbone)


def test_a_fork_of_a_row_sees_that_row_and_no_other(backbone: Backbone) -> None:
    with torch.inference_mode():
        rows, slots = PackedRows(None), Slots(backbone.modules)
        question, other = rows.fork(), rows.fork()
        rows.append(question, (None, PREFIX))
        rows.append(other, (None, [99, 98, 97]))
        end = rows.append(rows.fork(question), (None, [20]), (None, [21]))
        packed = hidden_states(backbone, slots, rows)
        expected = alone(backbone, [*PREFIX, 20, 21])
    torch.testing.assert_close(packed[end - 1 : end + 1], expected[-2:], atol=1e-4, rtol=0)


def test_rows_grown_token_by_token_equal_rows_read_at_once(backbone: Backbone) -> None:
    with torch.inference_mode():
        rows, slots = PackedRows(None), Slots(backbone.modules)
        numbers = [rows.fork() for _ in BRANCHES]
        last = {}
        for step in range(max(map(len, BRANCHES))):
            ends = {}
            for row, branch in zip(numbers, BRANCHES, strict=True):
                if step < len(branch):
                    ends[row] = rows.append(row, (None, [branch[step]]))
            hidden = hidden_states(backbone, slots, rows)
            last |= {row: hidden[end] for row, end in ends.items()}
        for row, branch in zip(numbers, BRANCHES, strict=True):
            expected = alone(backbone, branch)[-1]
            torch.testing.assert_close(last[row], expected, atol=1e-4, rtol=0)


def test_several_trees_in_one_forward_equal_each_alone(backbone: Backbone) -> None:
    assert backbone.attends_trees
    slots = Slots(backbone.modules)
    with torch.inference_mode():
        found = []
        for together in (True, False):
            trees = [
                PackedRows(read_prefix(backbone, PREFIX)),
                PackedRows(None),
                PackedRows(read_prefix(backbone, PREFIX[:7])),
            ]
            steps = []
            for step in range(3):
                at = []
                for number, tree in enumerate(trees):
                    row = tree.fork() if step == 0 else 0
                    at.append([tree.append(row, (None, BRANCHES[(number + step) % 3]))])
                if together:
                    parts = logits(backbone, slots, trees, at)
                else:
                    each = zip(trees, at, strict=True)
                    parts = [logits(backbone, slots, [tree], [own])[0] for tree, own in each]
                steps.append(torch.cat(parts))
            found.append(torch.stack(steps))
    known = len(backbone.tokenizer)
    torch.testing.assert_close(found[0][..., :known], found[1][..., :known], atol=1e-4, rtol=0)


def test_a_compacted_tree_goes_on_as_before(backbone: Backbone) -> None:
    slots = Slots(backbone.modules)
    generator = torch.Generator().manual_seed(1)
    long = [int(x) for x in torch.randint(5, 300, (600,), generator=generator)]
    with torch.inference_mode():
        results = []
        for ended in (True, False):
            tree = PackedRows(read_prefix(backbone, PREFIX))
            other, row = tree.fork(), tree.fork()
            tree.append(row, (None, BRANCHES[0]))
            tree.append(other, (None, long))
            tree.append(row2 := tree.fork(row), (None, BRANCHES[2]))
            hidden_states(backbone, slots, tree)
            if ended:
                tree.end(other)
                size = tree.cache.get_seq_length()
                tree.compact()
                assert tree.cache.get_seq_length() == size - len(long)
            tree.append(row2, (None, BRANCHES[1]))
            results.append(hidden_states(backbone, slots, tree)[-1])
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=0)
