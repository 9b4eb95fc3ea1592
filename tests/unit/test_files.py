"""One way to read a user's text: encoding, line ends, packed files, JSON that is none."""

import gzip
import json

import pytest

from headwise.heads import HeadwiseError, PromptError
from headwise.heads import files as reader
from headwise.heads.files import parse_json, read_json, read_json_lines, read_text, split_lines
from headwise.heads.text import reason


def test_a_byte_order_mark_is_dropped_plain_and_packed(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfIt rained.\r\n")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"\xef\xbb\xbfIt ") + gzip.compress(b"rained.\r\n"))
    assert read_text(tmp_path / "a.txt") == read_text(tmp_path / "a.txt.gz") == "It rained.\r\n"


def test_lines_end_at_the_line_feed_only():
    assert split_lines("a\u2028b\x85c\x0bd\r\n\ne\rf\n") == ["a\u2028b\x85c\x0bd", "", "e\rf"]
    assert split_lines("") == []
    assert split_lines("\n") == [""]
    assert split_lines("a") == ["a"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            b"fine\nIt\x92s late.",
            r"cannot read words from .*a.txt, line 2: byte 0x92 is not UTF-8 \(perhaps it is Windows-1252\); save",
        ),
        ("fine".encode("utf-16"), r"line 1: byte 0xff is not UTF-8 \(it looks like UTF-16\)"),
        (b"\xef\xbb\xbfok\n\n\xed\xa0\x80", r"line 3: byte 0xed is not UTF-8"),
    ],
)
def test_bytes_that_are_no_utf8_are_named_with_file_and_line(tmp_path, raw, message):
    (tmp_path / "a.txt").write_bytes(raw)
    with pytest.raises(PromptError, match=message) as error:
        read_text(tmp_path / "a.txt", "words", PromptError)
    assert "\n" not in str(error.value)


def test_files_that_unpack_to_too_much_are_refused_before_they_are_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "bomb.txt.gz"
    path.write_bytes(gzip.compress(b"\0" * (8 * 2**20)))
    monkeypatch.setattr(reader, "UNPACKED_LIMIT", 4 * 2**20)
    with pytest.raises(HeadwiseError, match=r"unpacks to more than 4 MiB, .* unpack it yourself") as error:
        read_text(path)
    assert "\n" not in str(error.value)
    monkeypatch.setattr(reader, "UNPACKED_LIMIT", 8 * 2**20)
    assert len(read_text(path)) == 8 * 2**20


@pytest.mark.parametrize(
    "raw", [b"no gzip", b"", gzip.compress(b"text" * 99, mtime=0)[:-9], gzip.compress(b"text", mtime=0) + b"rest"]
)
def test_broken_packed_files_are_one_line(tmp_path, raw):
    (tmp_path / "a.gz").write_bytes(raw)
    with pytest.raises(HeadwiseError, match="cannot read text from"):
        read_text(tmp_path / "a.gz")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"here: no valid JSON \(Expecting"),
        ("[" * 200_000, r"here: no valid JSON \(it is nested too deeply\)"),
        ("1" * 5000, r"here: no valid JSON \(Exceeds"),
        (r'{"a": "x\ud83d"}', r"half of a surrogate pair \(\\ud83d\), which is no character"),
        (r'{"\udc00": 1}', r"half of a surrogate pair"),
    ],
)
def test_json_that_is_none_is_one_line(text, message):
    with pytest.raises(HeadwiseError, match=message) as error:
        parse_json(text, "here")
    assert "\n" not in str(error.value)
    assert parse_json(r'"\ud83d\ude00"', "here") == "😀"


def test_json_lines_say_where_they_stand(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('\ufeff{"a": "x\u2028y"}\r\n\n\ufeff[1]\n', "utf-8")
    assert list(read_json_lines(path, "rows")) == [(f"{path}, line 1", {"a": "x\u2028y"}), (f"{path}, line 3", [1])]
    path.write_text(json.dumps([1, 2]) + "\n")
    assert read_json(path, "a list") == [1, 2]
    with pytest.raises(HeadwiseError, match="cannot read rows from"):
        list(read_json_lines(tmp_path / "none", "rows"))


def test_reasons_are_told_without_words_of_python():
    def of(code):
        try:
            code()
        except Exception as error:
            return reason(error)
        raise AssertionError("nothing was wrong")

    nothing = json.loads("null")
    assert of(lambda: {}["rows"]) == "'rows' is missing"
    assert of(lambda: json.loads("{")).startswith("no valid JSON: ")
    assert of(lambda: json.loads("[" * 100_000)) == "its JSON is nested too deeply"
    assert of(lambda: b"\xff".decode()) == "it is not UTF-8"
    for wrong in (lambda: nothing["a"], lambda: [][3], lambda: nothing.items()):
        assert of(wrong) == "an entry is missing or of the wrong kind"
    assert reason(HeadwiseError("rows must be\na number")) == "rows must be a number"
