"""Paths of files."""

import os

from mtfixmatch.utils.files import real_paths


def test_real_paths_are_those_of_the_system(tmp_path, monkeypatch):
    """Through links to folders and to files, and for what is not there."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x.png").touch()
    (tmp_path / "link").symlink_to("a/b")
    (tmp_path / "y.png").symlink_to("link/x.png")
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path / "a")
    ends = ("a/b/x.png", "link/x.png", "y.png", "link/../b/x.png", "link/no.png", "loop", "link/..")
    paths = [*(f"{tmp_path}/{x}" for x in ends), "b/x.png", "../y.png", "b/", "x.png", "", "."]
    assert list(real_paths(paths)) == [os.path.realpath(x) for x in paths]
