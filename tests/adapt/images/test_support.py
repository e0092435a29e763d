import contextlib
import gzip
import io
import stat
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from adapt.images.archive import Limits
from adapt.images.support import (
    Support,
    SupportError,
    SupportLeak,
    check_disjoint,
    from_archive,
    from_folder,
    from_images,
    load,
)
from tests.hostile import archives
from training.bases import BaseSet
from training.data import load_folder
from training.manifest import Manifest


@pytest.fixture(scope="module")
def manifest(base: BaseSet) -> Manifest:
    return base.manifest


def png(seed: int, size: int = 16) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


FILES = {"cat/a.png": png(0), "cat/b.png": png(1, 20), "dog/a.png": png(2), "ship/x/y.png": png(3)}


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


def tarred(files: dict[str, bytes], mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


PACK = {"zip": zipped, "tar": tarred, "tar.gz": lambda files: tarred(files, "w:gz")}


def same(ours: Support, theirs: Support) -> bool:
    return (
        np.array_equal(ours.images, theirs.images)
        and np.array_equal(ours.labels, theirs.labels)
        and (ours.hashes, ours.class_names, ours.duplicates) == (theirs.hashes, theirs.class_names, theirs.duplicates)
    )


def unpack(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


# -- images and labels of a request


def test_names_and_indices_mean_the_same(manifest: Manifest, images: np.ndarray):
    by_name = from_images(list(images[:3]), ["ship", "cat", "dog"], manifest)
    assert same(by_name, from_images(list(images[:3]), [2, 0, 1], manifest))
    assert same(by_name, from_images(list(images[:3]), [np.int64(2), 0, "dog"], manifest))
    assert by_name.labels.tolist() == [2, 0, 1]
    assert by_name.per_class == {"cat": 1, "dog": 1, "ship": 1}


def test_bytes_and_pixels_mean_the_same(manifest: Manifest):
    pixels = [np.asarray(Image.open(io.BytesIO(png(seed, 24)))) for seed in range(3)]
    assert same(
        from_images([png(seed, 24) for seed in range(3)], [0, 1, 2], manifest), from_images(pixels, [0, 1, 2], manifest)
    )


def test_images_come_at_the_networks_size_and_hashes_are_the_originals(manifest: Manifest):
    large, small = from_images([png(0, 40)], [0], manifest), from_images([png(0)], [0], manifest)
    assert large.images.shape == (1, 16, 16, 3)
    assert large.images.dtype == np.uint8
    assert large.hashes != small.hashes


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("frog", r"labels\[1\]: expected one of the classes \['cat', 'dog', 'ship'\] .* got 'frog'"),
        ("CAT", r"labels\[1\]"),
        ("1", r"labels\[1\]"),
        (3, r"index from 0 to 2, got 3"),
        (-1, r"got -1"),
        (True, r"got True"),
        (1.0, r"got 1\.0"),
        (None, r"got None"),
    ],
)
def test_a_wrong_label_is_named(manifest: Manifest, images: np.ndarray, label: object, message: str):
    with pytest.raises(SupportError, match=message) as error:
        from_images(list(images[:3]), ["cat", label, "dog"], manifest)
    assert (error.value.field, error.value.kind, error.value.index) == ("labels", "label", 1)


@pytest.mark.parametrize("count", [2, 4])
def test_a_wrong_number_of_labels_is_named(manifest: Manifest, images: np.ndarray, count: int):
    with pytest.raises(SupportError, match=f"each of 3 images, got {count}") as error:
        from_images(list(images[:3]), ["cat"] * count, manifest)
    assert (error.value.field, error.value.kind) == ("labels", "count")


def test_no_images_are_refused(manifest: Manifest):
    with pytest.raises(SupportError, match="at least one image") as error:
        from_images([], [], manifest)
    assert error.value.kind == "empty"


def test_an_undecodable_image_is_named(manifest: Manifest):
    with pytest.raises(SupportError, match=r"images\[1\]: ") as error:
        from_images([png(0), b"not an image", png(1)], [0, 1, 2], manifest)
    assert (error.value.kind, error.value.index) == ("undecodable", 1)


def test_an_image_with_too_many_pixels_is_named(manifest: Manifest):
    with pytest.raises(SupportError, match=r"images\[1\]") as error:
        from_images([png(0), png(1, 40)], [0, 1], manifest, max_pixels=1000)
    assert (error.value.kind, error.value.index) == ("too_large", 1)


def test_exact_repeats_count_once(manifest: Manifest, images: np.ndarray):
    once = from_images([images[0], images[1]], ["cat", "dog"], manifest)
    often = from_images([images[0], images[1], images[0], images[0]], ["cat", "dog", "cat", 0], manifest)
    assert often.duplicates == 2
    assert np.array_equal(once.images, often.images)
    assert once.hashes == often.hashes


def test_one_image_with_two_labels_names_both(manifest: Manifest, images: np.ndarray):
    with pytest.raises(SupportError, match=r"images\[0\] and images\[2\].*'cat' and 'dog'") as error:
        from_images([images[0], images[1], images[0]], ["cat", "dog", "dog"], manifest)
    assert (error.value.kind, error.value.index) == ("conflict", 2)


# -- folders and archives


@pytest.mark.parametrize("pack", PACK.values(), ids=PACK)
@pytest.mark.parametrize("root", ["", "photos/", "./"])
def test_folder_and_archive_give_the_same_support(manifest: Manifest, tmp_path: Path, pack, root: str):
    files = {root + name: data for name, data in reversed(FILES.items())}
    folder = from_folder(unpack(tmp_path, FILES), manifest)
    data = pack(files)
    assert same(from_archive(data, manifest), folder)
    path = tmp_path / "support.bin"
    path.write_bytes(data)
    assert same(load(path, manifest), folder)
    assert folder.per_class == {"cat": 2, "dog": 1, "ship": 1}


def test_a_folder_reads_as_training_reads_it(manifest: Manifest, tmp_path: Path):
    ours = load(unpack(tmp_path, FILES), manifest)
    theirs = load_folder(tmp_path, manifest.input, manifest.class_names)
    assert np.array_equal(ours.images, theirs.images)
    assert ours.hashes == theirs.hashes


def test_a_class_named_like_the_common_folder_is_a_class(manifest: Manifest):
    support = from_archive(zipped({"cat/cat/a.png": png(0), "cat/dog/b.png": png(1)}), manifest)
    assert support.per_class == {"cat": 2}


@pytest.mark.parametrize("pack", PACK.values(), ids=PACK)
def test_what_file_browsers_leave_behind_is_passed_over(manifest: Manifest, tmp_path: Path, pack):
    rubbish = {"__MACOSX/cat/._a.png": b"x", "cat/.DS_Store": b"x", "cat/Thumbs.db": b"x", ".git/HEAD": b"x"}
    rubbish |= {"@eaDir/a.png": b"x", "cat/@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg": png(4), "lost+found/a.png": b"x"}
    assert same(from_archive(pack(FILES | rubbish), manifest), from_archive(pack(FILES), manifest))
    assert same(from_folder(unpack(tmp_path, FILES | rubbish), manifest), from_archive(pack(FILES), manifest))


@pytest.mark.parametrize("pack", PACK.values(), ids=PACK)
@pytest.mark.parametrize(
    ("name", "data", "kind", "message"),
    [
        ("frog/a.png", png(9), "label", "frog/a.png: expected a folder named one of the classes .* got 'frog'"),
        ("a.png", png(9), "layout", "a.png: expected every image in a folder named after its class"),
        ("cat/readme.txt", b"hello", "undecodable", "cat/readme.txt: expected an image"),
        ("cat/half.png", png(9)[:60], "undecodable", "cat/half.png"),
        ("dog/again.png", png(0), "conflict", "cat/a.png and dog/again.png are the same picture"),
        ("../cat/a.png", png(9), "unsafe", "relative name"),
        ("cat/../../a.png", png(9), "unsafe", "relative name"),
        ("..\\cat\\a.png", png(9), "unsafe", "relative name"),
        ("/cat/a.png", png(9), "unsafe", "relative name"),
        ("C:\\cat\\a.png", png(9), "unsafe", "relative name"),
        ("__MACOSX/../../a.png", png(9), "unsafe", "relative name"),
    ],
)
def test_a_bad_member_is_named(manifest: Manifest, pack, name: str, data: bytes, kind: str, message: str):
    with pytest.raises(SupportError, match=message) as error:
        from_archive(pack(FILES | {name: data}), manifest)
    assert error.value.kind == kind
    assert error.value.field == "archive"
    assert error.value.item


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_refused(manifest: Manifest, kind: bytes):
    file = io.BytesIO(tarred(FILES))
    with tarfile.open(fileobj=file, mode="a") as archive:
        member = tarfile.TarInfo("cat/link.png")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(SupportError, match=r"cat/link\.png.*regular file") as error:
        from_archive(file.getvalue(), manifest)
    assert error.value.kind == "unsafe"


def test_links_in_a_zip_are_refused(manifest: Manifest):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        member = zipfile.ZipInfo("cat/link.png")
        member.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(member, "/etc/passwd")
    with pytest.raises(SupportError, match="link") as error:
        from_archive(file.getvalue(), manifest)
    assert error.value.kind == "unsafe"


@pytest.mark.parametrize("pack", [zipped, PACK["tar.gz"]], ids=["zip", "tar.gz"])
@pytest.mark.parametrize("name", ["cat/zeros.bmp", ".hidden/zeros"])
def test_a_bomb_is_refused_even_where_its_file_would_be_passed_over(manifest: Manifest, pack, name: str):
    bomb = pack({name: bytes(40 * 2**20)})
    assert len(bomb) < 2**20
    with pytest.raises(SupportError, match="unpacks to more") as error:
        from_archive(bomb, manifest)
    assert error.value.kind == "too_large"


def test_a_zip_that_lies_about_its_sizes_is_refused(manifest: Manifest):
    data = bytearray(zipped({"cat/zeros.bmp": bytes(40 * 2**20)}))
    size = (40 * 2**20).to_bytes(4, "little")
    while (position := data.find(size)) >= 0:
        data[position : position + 4] = (1000).to_bytes(4, "little")
    with pytest.raises(SupportError) as error:
        from_archive(bytes(data), manifest)
    assert error.value.kind in ("unreadable", "undecodable", "too_large")


def test_a_nested_gzip_bomb_is_refused(manifest: Manifest):
    with pytest.raises(SupportError) as error:
        from_archive(gzip.compress(bytes(200 * 2**20), compresslevel=1), manifest)
    assert error.value.kind in ("too_large", "unreadable", "empty")


@pytest.mark.parametrize("pack", PACK.values(), ids=PACK)
def test_limits_are_kept(manifest: Manifest, pack):
    with pytest.raises(SupportError, match="at most 3 files") as error:
        from_archive(pack(FILES), manifest, limits=Limits(max_files=3))
    assert error.value.kind == "too_large"
    with pytest.raises(SupportError, match="unpacks to more") as error:
        from_archive(pack(FILES), manifest, limits=Limits(max_bytes=2000))
    assert error.value.kind == "too_large"


def test_images_may_compress_well(manifest: Manifest):
    """Flat colour, stored uncompressed: a high ratio alone is no attack on so small a scale."""
    file = io.BytesIO()
    Image.new("RGB", (600, 600), "red").save(file, "BMP")
    assert len(from_archive(zipped({"cat/a.bmp": file.getvalue()}), manifest)) == 1


@pytest.mark.parametrize(
    "data", [b"", b"hello world" * 100, b"PK\x03\x04 and nothing more", b"\x1f\x8b rubbish", bytes(3000)]
)
def test_rubbish_is_no_archive(manifest: Manifest, data: bytes):
    with pytest.raises(SupportError) as error:
        from_archive(data, manifest)
    assert error.value.field == "archive"
    assert error.value.kind in ("unreadable", "empty")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", archives.refused())
def test_hostile_archives_are_refused_whole(manifest: Manifest, kind: str):
    data, status = archives.refused()[kind]
    with pytest.raises(SupportError) as error:
        from_archive(data, manifest, limits=Limits(max_files=archives.MAX_FILES))
    assert (error.value.kind == "too_large") == (status == 413)
    assert len(str(error.value)) < 2000
    assert "\n" not in str(error.value)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(PACK)), st.floats(0.02, 0.98), st.binary(min_size=1, max_size=4))
def test_damage_is_an_error_of_ours_or_does_no_harm(manifest: Manifest, kind: str, where: float, noise: bytes):
    data = bytearray(PACK[kind](FILES))
    position = int(where * len(data))
    data[position : position + len(noise)] = noise
    for damaged in (bytes(data), bytes(data[:position])):
        with contextlib.suppress(SupportError):
            assert 1 <= len(from_archive(damaged, manifest)) <= 4


def test_empty_and_missing_folders_are_refused(manifest: Manifest, tmp_path: Path):
    with pytest.raises(SupportError, match="found no file") as error:
        from_folder(tmp_path, manifest)
    assert error.value.kind == "empty"
    with pytest.raises(SupportError, match="missing: expected a folder"):
        load(tmp_path / "missing", manifest)
    with pytest.raises(SupportError, match="found no file"):
        from_archive(zipped({}), manifest)


# -- leaks and folds


def test_an_image_of_the_test_set_is_noticed_after_a_change_of_format(manifest: Manifest, images: np.ndarray):
    support = from_images(list(images), ["cat"] * 7, manifest)
    check_disjoint(support, from_images([png(1), png(2)], [0, 0], manifest).hashes)
    file = io.BytesIO()
    Image.fromarray(images[4]).save(file, "WEBP", lossless=True)
    test = from_images([png(1), file.getvalue()], [0, 1], manifest)
    with pytest.raises(SupportLeak, match=r"1 of 7 support images are also in the test set.*position 4") as error:
        check_disjoint(support, test.hashes)
    assert error.value.indices == (4,)


def support_of(labels: list[int]) -> Support:
    n = len(labels)
    names = tuple(f"class{index}" for index in range(6))
    return Support(np.zeros((n, 1, 1, 3), dtype=np.uint8), np.asarray(labels), tuple(map(str, range(n))), names)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=60), st.integers(2, 6), st.integers(0, 3))
def test_folds_are_even_stratified_and_repeatable(labels: list[int], num_folds: int, seed: int):
    support = support_of(labels)
    folds = support.folds(num_folds, seed=seed)
    assert np.array_equal(folds, support.folds(num_folds, seed=seed))
    counts = np.bincount(folds)
    assert len(counts) == min(num_folds, len(labels))
    assert counts.max() - counts.min() <= 1
    for label in set(labels):
        inside = np.bincount(folds[np.asarray(labels) == label], minlength=len(counts))
        assert inside.max() - inside.min() <= 1


def test_folds_differ_by_seed():
    support = support_of([0, 1, 2, 3] * 10)
    assert not np.array_equal(support.folds(seed=0), support.folds(seed=1))


@pytest.mark.parametrize(("n", "num_folds"), [(1, 5), (10, 1)])
def test_one_fold_or_image_is_refused(n: int, num_folds: int):
    with pytest.raises(ValueError, match="at least 2 folds and 2 images"):
        support_of([0] * n).folds(num_folds, seed=0)


def test_a_subset_keeps_images_labels_and_hashes_together(manifest: Manifest, images: np.ndarray):
    support = from_images(list(images), [0, 1, 2, 0, 1, 2, 0], manifest)
    part = support.subset([5, 0])
    assert part.labels.tolist() == [2, 0]
    assert part.hashes == (support.hashes[5], support.hashes[0])
    assert np.array_equal(part.images[0], images[5])
