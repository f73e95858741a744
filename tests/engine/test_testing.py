"""The public stand-ins: real enough to load, and repeatable."""

from pathlib import Path

import numpy as np

from agentkit.skill.folder import load_skill
from agentkit.testing import FakeEncoder, TinyBackbone, tiny_adapter
from agentkit.types import Encoder


def test_a_tiny_backbone_is_the_same_each_time(tmp_path: Path) -> None:
    one, two = (TinyBackbone.create(tmp_path / name) for name in ("one", "two"))
    assert one.fingerprint == two.fingerprint
    assert TinyBackbone.create(tmp_path / "three", seed=5).fingerprint != one.fingerprint


def test_a_tiny_adapter_is_a_skill_folder_bare_or_with_a_manifest(
    tiny: TinyBackbone, tmp_path: Path
) -> None:
    bare = load_skill(tiny_adapter(tmp_path / "bare", tiny))
    full = load_skill(tiny_adapter(tmp_path / "full", tiny, manifest={"utterances": ["do it"]}))
    assert bare.name == "bare"
    assert full.manifest.utterances == ("do it",)
    assert bare.digest != full.digest


def test_the_fake_encoder_gives_repeatable_unit_vectors_that_share_words() -> None:
    encoder: Encoder = FakeEncoder()
    vectors = encoder.encode(["find the parties", "the parties, find them", "weather report", ""])
    assert vectors.shape == (4, encoder.dimension)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.5 > vectors[0] @ vectors[2]
    np.testing.assert_array_equal(vectors, FakeEncoder().encode(
        ["find the parties", "the parties, find them", "weather report", ""]
    ))  # fmt: skip
