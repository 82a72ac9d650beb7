"""Archives of every kind: globs, lists with labels and metadata, shards, buckets, web servers."""

import csv
import io
import json
import tarfile
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import files, ledger, lists, reading, sources, stores
from storage.errors import InputError, StoreError
from tests.preparing import plan, prepare, two_folders


@pytest.fixture(scope="module")
def clips(archive):
    """Eight small real videos."""
    return sorted((archive / "archive" / "weak").rglob("*.mp4"))[:8]


@pytest.fixture
def home(clips, tmp_path):
    return two_folders(clips, tmp_path)


def test_a_list_has_labels_where_any_of_its_rows_has(tmp_path):
    rows = [{"path": "a.mp4"}, {"path": "b.mp4", "label": "jump"}]
    url = str(tmp_path / "list.jsonl")
    (tmp_path / "list.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert lists.has_labels(url)
    (tmp_path / "list.jsonl").write_text(json.dumps(rows[0]))
    assert not lists.has_labels(url)


def test_a_glob_is_an_archive(home):
    found, report = plan(files.open_root(str(home / "g")), f"{home}/archive/*/*.mp4")
    assert report.kept == 8
    _, report = plan(files.open_root(str(home / "g2")), f"{home}/archive/one/*.mp4")
    assert report.kept == 4
    with pytest.raises(InputError, match="the archive is empty"):
        plan(files.open_root(str(home / "g3")), f"{home}/archive/*/*.mkv")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_list_with_labels_and_metadata_is_an_archive(home, kind):
    names = sorted(str(p.relative_to(home)) for p in (home / "archive").rglob("*.mp4"))
    rows = [{"path": name, "label": "wave", "city": f"Basel {n}", "take": str(n)} for n, name in enumerate(names)]
    rows += [{"path": "archive/gone.mp4", "label": "wave", "city": "", "take": ""}]
    target = home / f"list.{kind}"
    if kind == "csv":
        with open(target, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "jsonl":
        target.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), target)
    data, report = prepare(str(home / "listed"), str(target))
    found = {row["path"]: row for part in data.parts for row in part.rows()}
    assert report.items == 8 and set(found) == set(names)
    assert json.loads(found[names[3]]["metadata"]) == {"city": "Basel 3", "take": "3"}
    assert {row["labels"][0]["label"] for row in found.values()} == {"wave"}
    entries = {e.item: e.reason for e in ledger.read(str(home / "listed"), "list", "a")}
    assert entries["archive/gone.mp4"] == "not_found"


def test_credentials_beside_a_path_are_not_taken_along(home):
    """A catalogue of links to share: the clips' metadata are read by many."""
    name = str(next((home / "archive").rglob("*.mp4")).relative_to(home))
    share = "https://me:pa55word@host/v?X-Amz-Signature=c0ffee00c0ffee00&page=2"
    (home / "list.jsonl").write_text(json.dumps({"path": name, "seen": {"at": [share]}, "note": "token = a word"}))
    data, _ = prepare(str(home / "listed"), str(home / "list.jsonl"))
    [row] = data.parts[0].rows()
    kept = {"seen": {"at": ["https://***@host/v?X-Amz-Signature=***&page=2"]}, "note": "token = a word"}
    assert json.loads(row["metadata"]) == kept
    for path in (home / "listed").rglob("*"):
        assert path.is_dir() or not any(word in path.read_bytes() for word in (b"pa55word", b"c0ffee00")), path


def test_a_list_that_is_one_json_value_says_so(tmp_path):
    (tmp_path / "list.json").write_text('[{"path": "a.mp4"}]')
    with pytest.raises(InputError, match=r"row 1: no object with names; give CSV, Parquet or JSON lines"):
        list(lists.rows(str(tmp_path / "list.json")))


@pytest.mark.parametrize(
    "row", [r'{"path": "\ud800.mp4"}', r'{"path": "a", "label": "\udfff"}', r'{"path": "a", "\ud800": 1}',
            r'{"path": "a", "seen": {"at": ["\ud800"]}}'],
)  # fmt: skip
def test_half_a_character_in_a_list_is_refused(tmp_path, row):
    (tmp_path / "list.jsonl").write_text('{"path": "\\ud83d\\ude00.mp4"}\n' + row)
    with pytest.raises(InputError, match=r"list.jsonl, row 2: '.ud[8f][0-9a-f]+' is half of a character"):
        list(lists.rows(str(tmp_path / "list.jsonl")))


def test_metadata_nested_deeper_than_python_goes_are_refused(tmp_path):
    (tmp_path / "list.jsonl").write_text('{"path": "a.mp4", "seen": ' + "[" * 700 + "]" * 700 + "}")
    with pytest.raises(InputError, match="a.mp4: what the list says of it is nested too deeply|list.jsonl, row 1"):
        list(lists.listing(str(tmp_path / "list.jsonl")))


def test_two_columns_of_one_name_in_parquet_are_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a.mp4"]), pa.array(["b.mp4"])], ["path", "path"])
    pq.write_table(table, tmp_path / "list.parquet")
    with pytest.raises(InputError, match="row 1: a column comes twice"):
        list(lists.rows(str(tmp_path / "list.parquet")))


def test_a_list_of_urls_without_labels_is_an_archive(home):
    paths = sorted((home / "archive").rglob("*.mp4"))[:3]
    (home / "list.csv").write_text("url\n" + "".join(f"file://{path}\n" for path in paths))
    data, _ = prepare(str(home / "listed"), str(home / "list.csv"))
    assert sorted(row["source"] for part in data.parts for row in part.rows()) == [f"file://{path}" for path in paths]


def add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def test_webdataset_tars_are_an_archive(home, clips, tmp_path):
    """Links, unsafe and doubled names are quarantined, pickles never opened."""
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "0.tar", "w") as tar:
        for number, clip in enumerate(clips[:3]):
            add(tar, f"s{number}.json", json.dumps({"label": "wave", "city": number}).encode())
            add(tar, f"s{number}.mp4", clip.read_bytes())
            add(tar, f"s{number}.pkl", b"cos\nsystem\n(S'touch /tmp/pwned'\ntR.")
        add(tar, "../out.mp4", clips[3].read_bytes())
        link = tarfile.TarInfo("link.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        add(tar, "twice.mp4", clips[4].read_bytes())
        add(tar, "other.mp4", clips[5].read_bytes())
        add(tar, "half.mp4", clips[7].read_bytes())
        add(tar, "half.json", b'{"label": "\\ud800"}')
        add(tar, "twice.mp4", clips[6].read_bytes())
    (tmp_path / "shards" / "1.tar").write_bytes((tmp_path / "shards" / "0.tar").read_bytes()[:20_000])
    data, report = prepare(str(tmp_path / "tarred"), str(tmp_path / "shards"))
    rows = {row["path"]: row for part in data.parts for row in part.rows()}
    assert set(rows) == {"0.tar/s0.mp4", "0.tar/s1.mp4", "0.tar/s2.mp4", "0.tar/other.mp4"}
    assert rows["0.tar/s1.mp4"]["content_id"] == files.digest_file(clips[1])
    assert json.loads(rows["0.tar/s1.mp4"]["metadata"]) == {"city": 1}
    assert rows["0.tar/s1.mp4"]["labels"][0]["label"] == "wave" and rows["0.tar/other.mp4"]["labels"] == []
    entries = {e.item: e.reason for e in ledger.read(str(tmp_path / "tarred"), "list", "a") if e.verdict != "kept"}
    assert entries.pop("1.tar") == "bad_shard" and set(entries.values()) == {"bad_member"}
    assert {name.removeprefix("0.tar/") for name in entries} == {"../out.mp4", "link.mp4", "twice.mp4", "half.mp4"}
    _, report = prepare(str(tmp_path / "tarred"), str(tmp_path / "shards"))
    assert report.decoded == 0


def test_a_single_tar_is_an_archive(clips, tmp_path, s3):
    with tarfile.open(tmp_path / "one.tar", "w") as tar:
        add(tar, "s.mp4", clips[0].read_bytes())
    data, report = prepare(str(tmp_path / "root"), str(tmp_path / "one.tar"))
    assert [row["path"] for part in data.parts for row in part.rows()] == ["one.tar/s.mp4"] and report.kept == 1
    for url in (f"{s3}/alone/one.tar", "memory://alone/one.tar"):
        files.replace((tmp_path / "one.tar").read_bytes(), url)
        assert [source.path for source in sources.listing(url)] == ["one.tar/s.mp4"]


def test_everything_in_tars_has_a_verdict(clips, tmp_path):
    names = ("a.mpg", "b.ts", "c.3gp", "d.FLV", "e.left.wmv")  # a container is told from its bytes
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "0.tar", "w") as tar:
        for name, clip in zip(names, clips, strict=False):
            add(tar, name, clip.read_bytes())
            add(tar, f"{name[0]}.cls", b"7")
        for name in ("text.json", "text.txt", "text.cls", "dir.mp4/odd.xyz", "pages.pdf"):
            add(tar, name, b"{}")
    with tarfile.open(tmp_path / "shards" / "folders.tar", "w") as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    with tarfile.open(tmp_path / "shards" / "packed.tar.gz", "w:gz") as tar:
        add(tar, "s.mp4", clips[5].read_bytes())
    data, _ = prepare(str(tmp_path / "root"), str(tmp_path / "shards"))
    rows = {row["path"]: row for part in data.parts for row in part.rows()}
    assert set(rows) == {f"0.tar/{name}" for name in names} and rows["0.tar/b.ts"]["labels"][0]["label"] == "7"
    entries = {e.item: (e.verdict, e.reason) for e in ledger.read(str(tmp_path / "root"), "list", "a")}
    assert {item: said for item, said in entries.items() if item not in rows} == dict.fromkeys(
        ("0.tar/text", "0.tar/dir.mp4/odd", "0.tar/pages", "folders.tar", "packed.tar.gz"),
        ("dropped", "unknown_extension"),
    )


def test_numbers_that_are_none_and_the_order_of_columns_leave_metadata_as_they_are(home):
    name = str(next((home / "archive").rglob("*.mp4")).relative_to(home))
    more = {"score": [float("nan")], "seen": [{"at": [1.0, float("inf")]}], "city": ["Basel"]}
    pq.write_table(pa.table({"path": [name], **more}), home / "list.parquet")
    (home / "list.jsonl").write_text(
        f'{{"city": "Basel", "seen": {{"at": [1.0, 1e400]}}, "score": -1e400, "path": "{name}"}}'
    )
    found = {next(lists.listing(str(home / f"list.{kind}"))).metadata for kind in ("parquet", "jsonl")}
    assert found == {'{"city": "Basel", "seen": {"at": [1.0, null]}}'}
    data, _ = prepare(str(home / "listed"), str(home / "list.parquet"))
    [sample] = reading.samples(data)
    strict = json.loads(sample["json"], parse_constant=lambda number: pytest.fail(number))
    assert strict["metadata"] == {"city": "Basel", "seen": {"at": [1.0, None]}}


def test_a_row_of_a_list_without_a_label_is_unlabelled_and_an_empty_one_was_looked_at(home):
    paths = [str(path.relative_to(home)) for path in sorted((home / "archive").rglob("*.mp4"))]
    said = [{}, {"label": ""}, {"label": "wave"}]
    rows = [{"path": path, **more} for path, more in zip(paths, said, strict=False)]
    (home / "list.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    data, _ = prepare(str(home / "listed"), str(home / "list.jsonl"))
    found = {row["path"]: (row["labelled"], len(row["labels"])) for part in data.parts for row in part.rows()}
    assert found == dict(zip(paths, [("none", 0), ("segments", 0), ("video", 1)], strict=False))


def test_a_list_with_splits_and_no_label_is_refused(home):
    (home / "list.csv").write_text("path,split\na.mp4,\nb.mp4,heldout\n")
    with pytest.raises(InputError, match=r"list.csv, row 2: a split but no label; give it a label"):
        plan(files.open_root(str(home / "listed")), str(home / "list.csv"))


@pytest.mark.parametrize(
    "text, message",
    [
        ("path,x\n,1\n", "row 1: neither path nor url, which every row needs; it has 'path', 'x'"),
        ("path;label\na.mp4;x\n", "row 1: neither path nor url, which every row needs; it has 'path;label'"),
        ("path\na.mp4,x\n", "row 1: more values than the file has columns"),
        ("", "is empty"),
        ("path,url\nhttps://u:opensesame@h/x.mp4,a.mp4\n", r"https://\*\*\*@h/x.mp4: credentials in a URL would be"),
        ("path,url\nx.mp4?a=1&X-Amz-Signature=c0ffee,a.mp4\n", r"x.mp4\?a=1&X-Amz-Signature=\*\*\*: credentials"),
        ("path\nx.mp4?X-Amz-Signature=c0ffee\n", r"x.mp4\?X-Amz-Signature=\*\*\*: credentials in a URL would be"),
    ],
)
def test_what_is_wrong_with_a_list_is_said(tmp_path, text, message):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        plan(files.open_root(str(tmp_path / "root")), str(tmp_path / "list.csv"))


@pytest.mark.parametrize("place", ["a\0b.mp4", "data://video/mp4;base64,AAAA", "x" * 5000 + ".mp4", "http://[b/x.mp4"])
def test_a_row_that_can_be_no_file_is_not_found(tmp_path, place):
    (tmp_path / "list.jsonl").write_text(json.dumps({"path": place}))
    assert [(one.path, one.problem) for one in lists.listing(str(tmp_path / "list.jsonl"))] == [(place, "not_found")]


class Answering(BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802
        self.send_response(int(self.path[1:4]))
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *args):
        pass


def test_only_a_server_that_says_so_has_not_got_a_file(tmp_path):
    """fsspec says "not found" of whatever goes wrong over HTTP; a clip that was kept must not be dropped for it."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def listed(status):
            row = {"path": "a.mp4", "url": f"http://127.0.0.1:{server.server_port}/{status}.mp4"}
            (tmp_path / "list.jsonl").write_text(json.dumps(row))
            return [one.problem for one in lists.listing(str(tmp_path / "list.jsonl"))]

        assert [listed(status) for status in (200, 404, 410)] == [[""], ["not_found"], ["not_found"]]
        for status in (403, 500, 503):
            with pytest.raises(StoreError, match=f"did not answer .*{status}"):
                listed(status)
        server.shutdown()
    with pytest.raises(StoreError, match="did not answer .*ConnectorError"):
        listed(200)


def test_a_bucket_of_more_than_a_page_is_listed_whole(s3, monkeypatch):
    """With ten objects to a page, not a thousand."""
    monkeypatch.setattr(sources, "pages", partial(stores.pages, size=10))
    fs, _ = files.locate(s3)
    for number in range(123):
        fs.pipe_file(f"reel/pages/{number % 7}/{number:05d}.mp4", b"x")
    found = list(sources.listing(f"{s3}/pages"))
    assert len(found) == len({s.path for s in found}) == 123


def test_a_list_may_call_a_video_by_another_name(clips, tmp_path):
    (tmp_path / "list.csv").write_text(f"path,url\nthe first one,{clips[0]}\n")
    data, report = prepare(files.open_root(str(tmp_path / "root")), str(tmp_path / "list.csv"))
    assert report.kept == 1 and {row["path"] for part in data.parts for row in part.rows()} == {"the first one"}
