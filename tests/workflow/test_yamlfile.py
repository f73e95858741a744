import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.errors import WorkflowError
from agentkit.workflow import yamlfile

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
)
DATA = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=("Cs",))), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(DATA)
def test_what_is_written_is_read_back(data):
    assert yamlfile.loads(yamlfile.dumps(data)).data == data


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_with_its_place(text):
    where = None
    try:
        yamlfile.loads(text, name="w.yaml")
    except WorkflowError as error:
        where = error.where or ""
    assert where is None or where.startswith("w.yaml:")


@pytest.mark.parametrize(
    ("text", "place", "word"),
    [
        ("a: !!python/object:os.system x", "w.yaml:1:4", "tag"),
        ("a: !custom x", "w.yaml:1:4", "tag"),
        ("a: 1\nb:\n  c: 1\n  c: 2\n", "w.yaml:4:3", "twice"),
        ("a: &x [1]\n", "w.yaml:1:4", "anchor"),
        ("a: 1\nb: *x\n", "w.yaml:2:4", "alias"),
        ("a: 1\n---\nb: 2\n", "w.yaml:2:1", "second document"),
        ("a: [1\nb: 2", "w.yaml:2:", "not valid YAML"),
        ("1: x", "w.yaml:1:1", "not text"),
        ("? [a]\n: x", "w.yaml:1:3", "not text"),
        ("a: \x01", "w.yaml:1:4", "not valid YAML"),
        ('a: "\\ud800"', "w.yaml:1:4", "surrogate"),
        ("a: " + "9" * 5000, "w.yaml:1:4", "digits"),
    ],
)
def test_what_is_not_accepted_is_refused_with_its_place(text, place, word):
    with pytest.raises(WorkflowError) as caught:
        yamlfile.loads(text, name="w.yaml")
    assert str(caught.value).startswith(place)
    assert word in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000,
        "{a: " * 5000,
        "- " * 5000 + "x",
        "".join(f"{' ' * depth}a:\n" for depth in range(900)),
    ],
)
def test_deep_nesting_is_refused_before_it_is_followed(text):
    with pytest.raises(WorkflowError, match=r"^w\.yaml:\d+:\d+: nested deeper"):
        yamlfile.loads(text, name="w.yaml")


def test_an_alias_bomb_never_grows():
    lines = ['a0: &a0 ["x"]'] + [
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)
    ]
    with pytest.raises(WorkflowError, match="anchor"):
        yamlfile.loads("\n".join(lines))


def test_places_of_keys_and_values_are_kept():
    source = yamlfile.loads("steps:\n  one:\n    when: yes\n    needs: [a, bb]\n", name="f").source
    assert source.where(("steps", "one", "when")) == "f:3:5"
    assert source.where(("steps", "one", "when"), value=True) == "f:3:11"
    assert source.where(("steps", "one", "needs", 1)) == "f:4:16"
    assert source.where(("steps", "one", "unknown", "below")) == "f:2:3"


def test_plain_scalars_follow_the_core_schema():
    text = "[yes, on, 2026-01-01, 012, 0x1f, 0o17, 1e3, .5, ~, null, TRUE, .inf, '1', 1_000]"
    assert yamlfile.loads(text).data == [
        *("yes", "on", "2026-01-01", 12, 31, 15, 1000.0, 0.5, None, None, True, ".inf", "1"),
        "1_000",
    ]


def test_a_file_that_is_too_large_missing_or_not_utf8_is_refused(tmp_path):
    large = tmp_path / "large.yaml"
    large.write_bytes(b"a: 1\n" * 300_000)
    with pytest.raises(WorkflowError, match="bytes"):
        yamlfile.load(large)
    with pytest.raises(WorkflowError, match="cannot read"):
        yamlfile.load(tmp_path / "none.yaml")
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"a: 1\nb: caf\xe9\n")
    with pytest.raises(WorkflowError, match=r"latin\.yaml:2:7: the file is not UTF-8"):
        yamlfile.load(latin)
