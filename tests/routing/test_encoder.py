"""The embedded encoder: unit vectors, remembered by text, from any thread, off the network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from agentkit.errors import ModelError
from agentkit.models import resolve
from agentkit.routing.encoder import SentenceEncoder
from agentkit.settings import Settings

pytestmark = pytest.mark.weights

OFFLINE = """
import socket, sys
def refuse(*_, **__):
    raise SystemExit("asked for the network")
socket.socket.connect = socket.getaddrinfo = refuse
from pathlib import Path
from agentkit.routing.encoder import SentenceEncoder
print(SentenceEncoder(Path(sys.argv[1])).encode(["a text"]).shape)
"""


@pytest.fixture(scope="module")
def folder() -> Path:
    return resolve("all-minilm-l6-v2", Settings(), "encoder")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> SentenceEncoder:
    return SentenceEncoder(folder)


def test_vectors_are_float32_of_unit_length_in_the_order_of_the_texts(
    encoder: SentenceEncoder,
) -> None:
    vectors = encoder.encode(["a contract", "the weather", "a contract", ""])
    assert vectors.shape == (4, encoder.dimension)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    np.testing.assert_array_equal(vectors[0], vectors[2])
    assert vectors[0] @ encoder.encode(["an agreement"])[0] > vectors[0] @ vectors[1]
    assert encoder.encode([]).shape == (0, encoder.dimension)


def test_a_remembered_vector_is_the_very_same_and_cannot_be_changed_by_a_caller(
    encoder: SentenceEncoder,
) -> None:
    first = encoder.encode(["remember me"])
    kept = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(encoder.encode(["other", "remember me"])[1], kept[0])


def test_threads_get_the_vectors_of_their_own_texts(encoder: SentenceEncoder) -> None:
    texts = [f"sentence number {number}" for number in range(24)]
    alone = SentenceEncoder(encoder._folder).encode(texts)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda text: encoder.encode([text])[0], texts))
    np.testing.assert_allclose(np.stack(together), alone, atol=1e-5)


def test_half_of_a_character_is_read_as_a_replacement(encoder: SentenceEncoder) -> None:
    half, whole = encoder.encode(["a \ud83d b", "a \ufffd b"])
    assert np.array_equal(half, whole)


def test_it_forgets_the_texts_used_longest_ago(folder: Path) -> None:
    encoder = SentenceEncoder(folder, remembered=2)
    encoder.encode(["one", "two", "three"])
    assert len(encoder._vectors) == 2


def test_the_digest_names_weights_and_configs(
    folder: Path, encoder: SentenceEncoder, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert SentenceEncoder(copy).digest == encoder.digest
    config = copy / "sentence_bert_config.json"
    config.write_text(config.read_text().replace("256", "128"))
    assert SentenceEncoder(copy).digest != encoder.digest


def test_a_folder_that_is_no_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        SentenceEncoder(tmp_path)


def test_it_loads_without_asking_for_the_network(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "(1, 384)", done.stderr


def test_the_middle_layer_comes_from_the_same_pass_and_leaves_the_vectors_alone(
    encoder: SentenceEncoder,
) -> None:
    texts = ["a contract on the sale of pears", "rain", "a contract"]
    vectors, middle = encoder.encode_with_middle(texts)
    np.testing.assert_array_equal(vectors, encoder.encode(texts))
    assert middle.shape == (3, encoder.dimension)
    np.testing.assert_allclose(middle[2], encoder.encode_with_middle([texts[2]])[1][0], atol=1e-4)
