"""The prose check finds sentences that were hard to read, and passes their plain forms."""

from pathlib import Path

import pytest

from docs.tools import prose

# Sentences that stood in the documents, and what replaced them.
PAIRS = [
    (
        "What the table lacks needs `admin`.",
        "Every other route needs `admin`.",
    ),
    (
        "What a job searches on is settled when it is accepted, with the labels of that moment.",
        "The service fixes the images and labels of a job when it accepts the request.",
    ),
    (
        "What are kept are your users' images, at the network's input size.",
        "The reservoir keeps your users' images, at the network's input size.",
    ),
    (
        "A crash at any moment loses nothing that was acknowledged, and what no row names is swept away.",
        "A crash at any moment loses no acknowledged image. Cleaning deletes the objects that no row names.",
    ),
    (
        "What it lacks are the statistics of training.",
        "It has no statistics of training.",
    ),
    (
        "What bounds the harm is a set of labelled images that is no part of any upload.",
        "A set of labelled images that nobody uploads bounds the harm.",
    ),
    (
        "Where there is none, the worker only notes the new version.",
        "If the worker has no session loaded, it only records the new version.",
    ),
    (
        "Whoever may ask for predictions decides what is in the sample.",
        "Every client with the role `predict` can influence the sample.",
    ),
    (
        "Deleting an image writes the rest of its pack anew.",
        "Deleting an image writes the rest of its pack to a new pack.",
    ),
    (
        "If you put forward again what the watch had put away, it is judged anew.",
        "If you promote a version again that the watch rolled back, the watch judges it again.",
    ),
    (
        "A version that was gone back to, by the watch or by hand, is not judged.",
        "The watch ignores versions that were rolled back to.",
    ),
    (
        "Pages have a policy of their own, as narrow as they can bear.",
        "Each page has a Content-Security-Policy that allows only its own files.",
    ),
    (
        "Images are not mirrored, as figures could not bear it.",
        "Images are not mirrored, because a mirrored digit is wrong.",
    ),
    (
        "A key that asks too often hears 429 with `Retry-After`.",
        "A key that sends too many requests gets 429 with `Retry-After`.",
    ),
    (
        "No wait for PostgreSQL is endless.",
        "Every wait for PostgreSQL has a time limit.",
    ),
    (
        "Only with `draw=fair` may the candidate answer at them.",
        "The candidate may use these frequencies only with `draw=fair`.",
    ),
    (
        "Labels that are no fair draw say nothing of frequencies.",
        "Labels that are not a fair draw cannot show how frequent classes are.",
    ),
    (
        "Labels cannot show that other frequencies are better, and neither can they refuse them.",
        "Labels can neither show that other frequencies are better nor refuse them.",
    ),
    (
        "Of a JPEG with several pictures (MPO, as cameras write for previews), the first is read.",
        "The first picture of a JPEG with several is read (MPO, as cameras write for previews).",
    ),
    (
        "`benchmarks/shifts/tuned.json`, whence each domain takes the settings that were best on the others.",
        "Each domain takes the settings that were best on the others, from `benchmarks/shifts/tuned.json`.",
    ),
    (
        "A base set with neither does without this rung.",
        "A base set with neither skips this rung.",
    ),
    (
        "To have them in the image, for replicas that start with an empty volume, say, build them first.",
        "To have them in the image (for example, because replicas start with an empty volume), build them first.",
    ),
    (
        "The version alone would not do: going back to version 1 is another event than making it.",
        "The version is not enough: making version 1 and rolling back to it are two events.",
    ),
    (
        "There is no route that does not need a role.",
        "Every route needs a role.",
    ),
]


@pytest.mark.parametrize(("bad", "good"), PAIRS, ids=[bad[:40] for bad, _ in PAIRS])
def test_check_fails_on_a_sentence_and_passes_its_plain_form(
    bad: str, good: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    monkeypatch.setattr("sys.argv", ["prose", str(page)])
    page.write_text(f"# A page\n\nBefore it. {bad} After it.\n")
    assert prose.main() == 1
    assert f"{page}:3: " in capsys.readouterr().err
    page.write_text(f"# A page\n\nBefore it. {good} After it.\n")
    assert prose.main() == 0, capsys.readouterr().err


def test_code_headings_and_questions_are_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# What a job is\n\nWhat is `what anew`?\n\n```sh\nWhat is anew\n```\n")
    assert prose.check(page) == []


def test_paragraphs_in_cells_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"| a | b |\n|---|---|\n| short | {'A sentence of words. ' * 30}|\n")
    assert [(found.line, found.rule) for found in prose.check(page)] == [(3, "cell")]


def test_long_sentences_and_entries_of_lists_are_found_where_they_begin(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"One.\n\n- two\n- three\n  goes on: {'word ' * 70}.\n")
    assert [(found.line, found.rule) for found in prose.check(page)] == [(4, "long")]


def test_docstrings_are_checked(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text('"""A module."""\n\n\ndef f() -> None:\n    """Build it.\n\n    It is built anew.\n    """\n')
    assert [(found.line, found.rule) for found in prose.check(module)] == [(7, "private")]


def test_all_documents_and_docstrings_pass() -> None:
    findings = [str(finding) for path in prose.files() for finding in prose.check(path)]
    assert not findings, "\n".join(findings)
