"""Which files are found, under which names, and how they are shared out."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwise.corpus.inputs import InputFile, contents, find_inputs, resolve, safe_name, shard_of
from headwise.corpus.options import Config, ScoreOptions, parse_shard
from headwise.heads.errors import HeadwiseError

NAMES = [
    "a.parquet",
    "b.jsonl",
    "sub/c.jsonl.gz",
    "sub/deep/d.json.zst",
    "sub/e.ndjson",
    "_hidden/f.jsonl",
    "g.txt",
    ".h.jsonl",
    "i.json",
]


@pytest.fixture
def corpus(tmp_path):
    for name in NAMES:
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x" * (1 + len(name)))
    return tmp_path / "corpus"


def names(*inputs, output=None):
    return [file.name for file in find_inputs([str(text) for text in inputs], output).files]


def test_a_folder_is_searched_to_the_bottom(corpus):
    assert names(corpus) == ["a.parquet", "b.jsonl", "sub/c.jsonl.gz", "sub/deep/d.json.zst", "sub/e.ndjson"]
    assert names(f"file://{corpus}") == names(corpus)


def test_names_are_relative_to_what_holds_all_inputs(corpus):
    assert names(corpus / "a.parquet") == ["a.parquet"]
    assert names(corpus / "sub/deep", corpus / "sub/e.ndjson") == ["deep/d.json.zst", "e.ndjson"]
    assert names(corpus / "sub", corpus / "sub/e.ndjson") == names(corpus / "sub")  # named twice, found once


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.parquet", ["a.parquet"]),
        ("*", ["a.parquet", "b.jsonl", ".h.jsonl"]),
        ("?.jsonl", ["b.jsonl"]),
        ("[ab].*", ["a.parquet", "b.jsonl"]),
        ("sub/*", ["sub/c.jsonl.gz", "sub/e.ndjson"]),
        ("sub/**/*.zst", ["sub/deep/d.json.zst"]),
        ("**/*.json*", [".h.jsonl", "_hidden/f.jsonl", "b.jsonl", "sub/c.jsonl.gz", "sub/deep/d.json.zst"]),
    ],
)
def test_globs(corpus, pattern, expected):
    found = find_inputs([f"{corpus}/{pattern}"])
    assert sorted(file.path for file in found.files) == sorted(str(corpus / name) for name in expected)


def test_text_files_are_inputs_where_no_tables_are(tmp_path):
    for name in ("a.txt", "deep/b.TXT.gz", "c.txt.zst", "d.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert names(tmp_path) == ["a.txt", "c.txt.zst", "deep/b.TXT.gz"]
    assert names(f"{tmp_path}/*") == ["a.txt", "c.txt.zst"]
    (tmp_path / "deep" / "e.jsonl").write_text("{}")
    assert names(tmp_path) == ["deep/e.jsonl"]  # beside tables they are notes
    assert names(tmp_path / "a.txt", tmp_path / "deep") == ["a.txt", "deep/e.jsonl"]
    assert names(f"{tmp_path}/**/*.txt*") == ["a.txt", "c.txt.zst"]
    assert [file.compression for file in find_inputs([f"{tmp_path}/*.txt*"]).files] == [None, "zstd"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a\nb.jsonl", "holds a character that names of results cannot have; rename it"),
        ("x" * 195 + ".jsonl", "is too long for the name of an input: a file or folder may have 200 bytes; rename it"),
    ],
)
def test_names_that_no_score_file_can_have_are_refused(tmp_path, name, message):
    (tmp_path / name).write_text("{}")
    with pytest.raises(HeadwiseError, match=message) as caught:
        find_inputs([str(tmp_path)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/a",
        "a/",
        "a//b",
        "../a",
        "a/../b",
        "a/..",
        ".",
        "./a",
        "a\\b",
        "a\0b",
        "a\x1b[2Jb",
        "\udc80",
        "x" * 201,
        None,
        3,
        ["a"],
    ],
)
def test_unsafe_names(name):
    with pytest.raises(HeadwiseError, match="name of a row") as caught:
        safe_name(name, "a row")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["a", "a/b.c", "..a", "a b", "ü/\u3000中", "x" * 200])
def test_safe_names(name):
    assert safe_name(name, "a row") == name


@pytest.mark.parametrize("text", ["\udcff.jsonl", "x" * 5000, "x/" * 3000 + "*.jsonl"])
def test_paths_that_no_file_has(text):
    with pytest.raises(HeadwiseError, match=r"cannot be opened|no such file|too long") as caught:
        find_inputs([text])
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


def test_a_listing_with_a_name_that_is_no_unicode_is_one_line(tmp_path):
    (tmp_path / "sub").mkdir()
    os.close(os.open(os.fsencode(tmp_path) + b"/sub/\xff.jsonl", os.O_CREAT))
    with pytest.raises(HeadwiseError, match="cannot be listed"):
        find_inputs([str(tmp_path)])


def test_a_file_with_a_star_in_its_name_is_itself(tmp_path):
    (tmp_path / "a*.jsonl").write_text("")
    (tmp_path / "ab.jsonl").write_text("")
    assert names(tmp_path / "a*.jsonl") == ["a*.jsonl"]


def test_the_output_is_no_input(corpus):
    (corpus / "out/scores").mkdir(parents=True)
    (corpus / "out/scores/a.parquet").write_text("x")
    assert "out/scores/a.parquet" in names(corpus)
    assert "out/scores/a.parquet" not in names(corpus, output=str(corpus / "out"))


def test_kinds_and_names_of_results():
    gz, parquet = InputFile("x/a.JSONL.GZ", "", 1), InputFile("a.Parquet", "", 1)
    assert (gz.compression, gz.is_parquet, gz.sidecar) == ("gzip", False, "x/a.JSONL.GZ.parquet")
    assert (parquet.compression, parquet.is_parquet, parquet.sidecar) == (None, True, "a.Parquet")
    assert (InputFile("a.json.zst", "", 1).compression, InputFile("a.ndjson", "", 1).compression) == ("zstd", None)


def test_domains_of_files(corpus):
    found = find_inputs([str(corpus)])
    pick = {file.name: file for file in found.files}
    domains = [
        found.domain_of(pick[name], how) for name in ("a.parquet", "sub/deep/d.json.zst") for how in ("none", "folder", "file")
    ]
    assert domains == [None, "corpus", "a", None, "sub/deep", "d"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "no input given"),
        (["{}/nothing"], "no such file or folder: .*nothing"),
        (["{}/i.json"], "is of no known kind; known are .parquet"),
        (["{}/*.json"], "no file to score"),
        (["nosuch://bucket/x"], "nosuch://bucket/x cannot be opened"),
        (["{}/a.parquet", "memory://x"], "lies in another file system"),
    ],
)
def test_refused(corpus, given, message):
    import fsspec

    fsspec.filesystem("memory").pipe("/x/a.jsonl", b"{}")
    with pytest.raises(HeadwiseError, match=message) as caught:
        find_inputs([text.format(corpus) for text in given])
    assert "\n" not in str(caught.value)


def test_two_files_with_one_score_file_are_refused(tmp_path):
    for name in ("a.jsonl", "a.jsonl.parquet"):
        (tmp_path / name).write_text("")
    with pytest.raises(HeadwiseError, match=r"a.jsonl and a.jsonl.parquet would share the score file a.jsonl.parquet"):
        find_inputs([str(tmp_path)])


def test_other_file_systems(tmp_path):
    import fsspec

    fsspec.filesystem("memory").pipe("/bucket/sub/a.jsonl", b"{}\n")
    found = find_inputs(["memory://bucket/*/*.jsonl"])
    assert [file.name for file in found.files] == ["sub/a.jsonl"]
    assert found.files[0].size == 3
    place, path = resolve(f"{tmp_path}/../x/")
    assert path == str(tmp_path.parent / "x")
    assert place.get_file_info(path).path == path


@given(st.lists(st.integers(0, 1000), max_size=30), st.integers(1, 7))
def test_shards_are_a_partition_of_about_equal_size(sizes, count):
    files = [InputFile(f"{index:03}.parquet", "", size) for index, size in enumerate(sizes)]
    shards = [shard_of(files, index, count) for index in range(count)]
    assert sorted((file for shard in shards for file in shard), key=lambda file: file.name) == files
    assert shards == [shard_of(files[::-1], index, count) for index in range(count)]
    loads = [sum(file.size for file in shard) for shard in shards]
    assert max(loads) - min(loads) <= max(sizes, default=0)


def test_shard_texts():
    assert parse_shard("3/64") == (3, 64)
    for text in ("64/64", "1", "a/b", "-1/2", "1/0", "1/2/3", ""):
        with pytest.raises(HeadwiseError, match="a shard is i/n with i from 0 to n - 1"):
            parse_shard(text)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"domain_from": "size"}, "unknown source of domains 'size'; choose one of none, folder, file"),
        ({"domain_from": "file", "domain_column": "d"}, "from column 'd' or from the file, not from both"),
        ({"chunk_rows": 0}, "chunk_rows must be at least 1; got 0"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"shard": (2, 2)}, "got 2/2"),
        ({"stale_seconds": 0.0}, "stale_seconds must be at least 1"),
    ],
)
def test_options_refused(wrong, message):
    with pytest.raises(HeadwiseError, match=message):
        ScoreOptions(**wrong)


def test_the_hash_tells_what_matters_from_what_does_not():
    same = {Config.of({"a": 1}, ScoreOptions(workers=w, shard=(0, w), stale_seconds=w, claim=w > 1)).hash for w in (1, 2)}
    other = {Config.of({"a": 2}, ScoreOptions()).hash, Config.of({"a": 1}, ScoreOptions(chunk_rows=7)).hash}
    other |= {Config.of({"a": 1}, ScoreOptions(text_column="t")).hash, Config.of({"a": 1}, ScoreOptions(id_column="i")).hash}
    assert len(same) == 1
    assert len(other | same) == 5
    with pytest.raises(HeadwiseError, match="must be JSON data"):
        Config.of({"a": object()}, ScoreOptions())


class MadeMeanwhile:
    """A file system in which another process makes the folder between pyarrow's two looks at it."""

    def __init__(self, folder):
        self.folder, self.place = folder, resolve(str(folder))[0]

    def get_file_info(self, selector):
        if not self.folder.exists():
            self.folder.mkdir()
            (self.folder / "a").touch()
            raise FileNotFoundError(f"Cannot list directory {self.folder}")
        return self.place.get_file_info(selector)


def test_a_folder_that_is_made_while_it_is_listed(tmp_path):
    folder = tmp_path / "tmp"
    assert contents(resolve(str(folder))[0], str(folder)) == []
    assert [info.base_name for info in contents(MadeMeanwhile(folder), str(folder))] == ["a"]
