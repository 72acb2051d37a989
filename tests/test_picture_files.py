"""Picture files are found in folders, by patterns and through links, each once."""

import pytest
from PIL import Image

from spikedet.picture_files import find_pictures, pictures_in


def test_find_pictures(tmp_path):
    for name in ("b.jpg", "a.PNG", "c[1].jpg"):
        Image.new("RGB", (60, 40)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "empty").mkdir()
    names = lambda sources: [p.name for p in find_pictures([str(s) for s in sources])[0]]  # noqa: E731
    assert names([tmp_path]) == ["a.PNG", "b.jpg", "c[1].jpg"]
    assert names([tmp_path / "*.jpg"]) == ["b.jpg", "c[1].jpg"]
    assert names([tmp_path / "c[1].jpg"]) == ["c[1].jpg"]
    assert names([tmp_path / "b.jpg", tmp_path]) == ["b.jpg", "a.PNG", "c[1].jpg"]
    assert names([tmp_path / "gone.jpg"]) == ["gone.jpg"]
    nothing = [str(tmp_path / name) for name in ("empty", "*.bmp", "emp*")]
    paths, errors = find_pictures(nothing)
    assert paths == [] and len(errors) == 3
    assert "no pictures in this folder" in str(errors[0]) and "pattern" in str(errors[1])


@pytest.mark.parametrize("pattern", ["**/*.png", "*/*.png", "**", "a/**/*.png"])
def test_a_picture_comes_once_whatever_links_lead_to_its_folder(tmp_path, pattern):
    """`glob` goes round in a link to a folder above it, forty times and more."""
    folder = tmp_path / "a"
    folder.mkdir()
    Image.new("RGB", (60, 40)).save(folder / "x.png")
    for name in ("again", "once-more"):
        (folder / name).symlink_to(".", target_is_directory=True)
    (tmp_path / "other").symlink_to("a", target_is_directory=True)
    paths, errors = find_pictures([str(tmp_path / pattern)])
    assert [p.relative_to(tmp_path).as_posix() for p in paths] == ["a/x.png"] and errors == []


def test_a_pattern_goes_through_links_to_folders(tmp_path, monkeypatch):
    for place in ("elsewhere", "a/b/c", "a/.hidden"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGB", (60, 40)).save(tmp_path / place / "x.png")
    (tmp_path / "a/link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    monkeypatch.chdir(tmp_path)

    def found(pattern):
        return [p.as_posix() for p in find_pictures([pattern])[0]]

    assert found("a/**/*.png") == found("a/**") == ["a/b/c/x.png", "a/link/x.png"]
    assert found("**/c/*.png") == found("**/b/**/x.*") == ["a/b/c/x.png"]
    assert found("./**/*.png") == ["a/b/c/x.png", "a/link/x.png"]
    assert pictures_in(tmp_path / "a", deep=True)[0] == [
        tmp_path / "a/b/c/x.png", tmp_path / "a/link/x.png",
    ]  # fmt: skip


def test_hidden_files_are_no_pictures(tmp_path):
    """As those of macOS, which have the name of a picture and hold none."""
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    (tmp_path / "._a.png").write_bytes(b"attributes")
    for deep in (False, True):
        assert pictures_in(tmp_path, deep) == ([tmp_path / "a.png"], None)
    assert find_pictures([str(tmp_path)]) == ([tmp_path / "a.png"], [])
