"""Rerankers: the tuned head, a CrossEncoder, one of one's own, and none."""

import dataclasses

import numpy as np
import pytest

from agentkit.errors import ModelError
from agentkit.retrieval.document_index import DocumentIndex
from agentkit.retrieval.loaders import document_from_text
from agentkit.retrieval.rerank import headed_text
from agentkit.retrieval.rerank_cross import CrossEncoderReranker
from agentkit.retrieval.rerank_head import FEATURES, HEAD_FILE, Head, TunedReranker, features
from agentkit.retrieval.rerankers import open_reranker
from agentkit.retrieval.retriever import Retriever
from agentkit.retrieval.store import FileDocumentStore
from agentkit.retrieval.tuning import Group, Tuning, fit
from agentkit.settings import Settings


def words(text):
    return len(text.split())


@pytest.fixture
def index(agreement, encoder):
    return DocumentIndex(document_from_text(agreement), encoder)


def head_of(encoder, **changes):
    zeros = np.zeros((encoder.dimension, 2), np.float32)
    head = Head(
        weights=np.eye(len(FEATURES), dtype=np.float32)[0],
        left=zeros,
        right=zeros,
        bias=zeros[:, 0],
        encoder=encoder.digest,
    )
    return dataclasses.replace(head, **changes)


class Longest:
    def scores(self, query, candidates):
        return np.array([len(c.text) for c in candidates.chunks], dtype=np.float32)


def test_a_reranker_of_ones_own_orders_the_excerpts(agreement, encoder, tmp_path):
    document = document_from_text(agreement)
    store = FileDocumentStore(tmp_path / "documents")
    retriever = Retriever(encoder, Settings(home=tmp_path), store, reranker=Longest())
    (found,) = retriever.excerpts(
        document, "term", top_k=1, budget_tokens=40, count_tokens=words, neighbours=False
    )
    longest = max(document.spans, key=lambda span: span.end - span.start)
    assert (found.start, found.end) == (longest.start, longest.end)
    assert found.score == longest.end - longest.start


def test_a_passage_is_embedded_with_its_heading_path(index):
    (chunk,) = [c for c in index.chunks if "New York" in c.text]
    assert headed_text(chunk) == f"2. Governing Law: {chunk.text}"


def test_the_features_of_a_document_are_finite_and_named(index, encoder):
    known = features(index.candidates("the laws of New York"))
    assert known.shape == (len(index.chunks), len(FEATURES))
    assert np.isfinite(known).all()
    empty = DocumentIndex(index.document, encoder, chunks=())
    assert TunedReranker(head_of(encoder)).scores("x", empty.candidates("x")).shape == (0,)


def test_the_scores_of_the_tuned_reranker_are_shares(index, encoder):
    scores = TunedReranker(head_of(encoder)).scores("law", index.candidates("governing law"))
    assert scores.sum() == pytest.approx(1.0, abs=1e-5)
    assert (scores > 0).all()
    assert "Governing Law" in " ".join(index.chunks[int(scores.argmax())].heading)


def test_a_head_survives_its_file(index, encoder, tmp_path):
    path = tmp_path / "own.safetensors"
    random = np.random.default_rng(3)
    head = head_of(
        encoder,
        left=random.normal(size=(encoder.dimension, 2)).astype(np.float16).astype(np.float32),
        right=random.normal(size=(encoder.dimension, 2)).astype(np.float16).astype(np.float32),
    )
    path.write_bytes(head.to_bytes())
    loaded = open_reranker(Settings(home=tmp_path, reranker=str(path)), encoder)
    candidates = index.candidates("secret")
    expected = TunedReranker(head).scores("secret", candidates)
    assert np.allclose(loaded.scores("secret", candidates), expected)


def test_a_head_of_another_encoder_is_refused(encoder, make_encoder, tmp_path):
    path = tmp_path / "own.safetensors"
    path.write_bytes(head_of(encoder).to_bytes())
    with pytest.raises(ModelError, match="another encoder"):
        TunedReranker.load(path, make_encoder(salt="b").digest)


@pytest.mark.parametrize("content", [b"", b"not tensors", b"\xff" * 64])
def test_a_file_that_is_no_head_is_refused_by_name(content, encoder, tmp_path):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="not a reranker") as caught:
        TunedReranker.load(path, encoder.digest)
    assert str(path) in str(caught.value)


def test_tensors_that_do_not_fit_each_other_are_refused(encoder, tmp_path):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(head_of(encoder, bias=np.zeros(3, np.float32)).to_bytes())
    with pytest.raises(ModelError, match="do not fit"):
        TunedReranker.load(path, encoder.digest)


def test_the_shipped_head_is_for_the_shipped_encoder_only(encoder, tmp_path):
    assert HEAD_FILE.stat().st_size < 2_000_000
    assert open_reranker(Settings(home=tmp_path), encoder) is None
    assert open_reranker(Settings(home=tmp_path, reranker="none"), encoder) is None


@pytest.mark.weights
def test_the_shipped_head_finds_what_the_words_do_not_say():
    from agentkit.models import resolve
    from agentkit.routing.encoder import SentenceEncoder

    sentence_encoder = SentenceEncoder(resolve("all-minilm-l6-v2", Settings(), "encoder"))
    text = (
        "1. Use\nThe Recipient may use the Information for the Purpose only.\n\n"
        "2. Machines\nNo sample may be taken apart, decompiled or analysed.\n\n"
        "3. Law\nThis agreement is under the law of Kenya.\n"
    )
    index = DocumentIndex(
        document_from_text(text),
        sentence_encoder,
        reranker=TunedReranker.of_package(sentence_encoder.digest),
    )
    (best, *_) = index.search("Reverse engineering is forbidden.", top_k=3)
    assert "taken apart" in best.text


def test_a_missing_cross_encoder_is_an_error_that_names_it(index, tmp_path):
    reranker = CrossEncoderReranker(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="could not be loaded") as caught:
        reranker.scores("law", index.candidates("law"))
    assert "nowhere" in str(caught.value)


@pytest.fixture(scope="session")
def tiny_cross_encoder(tmp_path_factory):
    """A real CrossEncoder with random weights, saved and loaded as any other."""
    from sentence_transformers import CrossEncoder
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder = tmp_path_factory.mktemp("cross")
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "law", "term", "secret", "the"])
    )
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    config = BertConfig(
        vocab_size=9,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=1,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CrossEncoder(str(folder)).save_pretrained(str(folder / "saved"))
    return folder / "saved"


def test_a_cross_encoder_reads_the_best_and_leaves_the_rest_in_order(
    tiny_cross_encoder, index, encoder, tmp_path
):
    reranker = open_reranker(Settings(home=tmp_path, reranker=str(tiny_cross_encoder)), encoder)
    assert isinstance(reranker, CrossEncoderReranker)
    few = CrossEncoderReranker(tiny_cross_encoder, depth=3)
    candidates = index.candidates("the term")
    scores = few.scores("the term", candidates)
    every = reranker.scores("the term", candidates)
    assert scores.shape == every.shape == (len(index.chunks),)
    order = np.argsort(-scores)
    assert np.allclose(scores[order[:3]], every[order[:3]], atol=1e-4)
    # What was not read stands below, each a step under the one before.
    assert np.allclose(np.diff(scores[order[3:]]), -1.0, atol=1e-4)
    assert scores[order[3]] < scores[order[2]]


def test_tuning_learns_what_evidence_looks_like():
    """Relevant passages lie where a rotation of the query points: no feature says so."""
    random = np.random.default_rng(5)
    turn = np.linalg.qr(random.normal(size=(16, 16)))[0].astype(np.float32)

    def group():
        query, *others = (v / np.linalg.norm(v) for v in random.normal(size=(12, 16)))
        vectors = np.stack([turn @ query, *others]).astype(np.float32)
        known = np.zeros((12, len(FEATURES)), np.float32)
        known[:, 0] = vectors @ query
        return Group(query.astype(np.float32), vectors, known, np.arange(12) == 0)

    head = fit([group() for _ in range(600)], "e", Tuning(rank=16, epochs=15, rate=5e-3, trust=1.0))
    again = fit([group()], "e", Tuning(rank=16))
    assert again.left.shape == (16, 16)
    fresh = [group() for _ in range(50)]
    right = sum(
        int((g.features @ head.weights + head.learnt(g.query, g.vectors)).argmax() == 0)
        for g in fresh
    )
    assert right > 40


def test_the_same_seed_gives_the_same_head():
    random = np.random.default_rng(1)
    vectors = random.normal(size=(6, 8)).astype(np.float32)
    known = random.normal(size=(6, len(FEATURES))).astype(np.float32)
    groups = [Group(vectors[0], vectors, known, np.arange(6) == 2)] * 20
    assert fit(groups, "e").to_bytes() == fit(groups, "e").to_bytes()


def test_tuning_needs_a_whole_document():
    random = np.random.default_rng(1)
    vectors = random.normal(size=(3, 4)).astype(np.float32)
    known = np.zeros((3, len(FEATURES)), np.float32)
    with pytest.raises(ValueError, match="whole document"):
        fit([Group(vectors[0], vectors, known, np.arange(3) == 1, whole=False)], "e")
