"""The files of a model zoo, in a folder or behind an address; weights are checked by their hash.

The index of a zoo, zoo.json, maps the name of each model to two files, the weights and the facts
about them, and to the size in bytes and the SHA-256 of the weights.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPException
from typing import Any, BinaryIO
from urllib.request import urlopen

import yaml
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import get_cache_dir

from ..utils.errors import InputError, first_line
from ..utils.files import reading, replacing, sha256_of, write_atomically

logger = logging.getLogger(__name__)

Root = str | os.PathLike | None  # of a zoo; None: the default of `zoo_root`

INDEX_FILE = "zoo.json"
ROOT_VARIABLE = "MTFIXMATCH_MODEL_ZOO"
TIMEOUT = 60  # seconds without a byte from the server


@dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """One model of a zoo."""

    root: str  # folder or address of the zoo
    weights: str  # name of the weights' file in it
    facts_file: str  # name of the file with the facts in it
    size: int  # of the weights in bytes
    sha256: str  # of the weights in hexadecimal digits

    @property
    def url(self) -> str:
        """Path or address of the weights."""
        return f"{self.root}/{self.weights}"

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What `publish.publish` wrote about the model."""
        address = f"{self.root}/{self.facts_file}"
        facts = read_object(address)
        config = facts.get("config")
        if not (isinstance(config, dict) and isinstance(config.get("MODEL"), dict)):
            raise InputError(f"{address}: the config of a model is expected under 'config'")
        return facts

    def config_file(self) -> str:
        """Write the model's config into the cache and return the path."""
        path = os.path.join(_cache_dir(), self.facts_file.removesuffix(".json") + ".yaml")
        # A zoo must not make this machine read another file (_BASE_) or trust pickles.
        config = {key: value for key, value in self.facts["config"].items() if key != "_BASE_"}
        config["MODEL"] = {k: v for k, v in config["MODEL"].items() if k != "TRUST_PICKLE"}
        write_atomically(path, yaml.safe_dump(config))
        return path

    def fetch_weights(self) -> str:
        """Return a local path of the weights, which are downloaded unless the cache has them.

        Raises:
            InputError: the weights cannot be read, or their size or hash differs from the index.
        """
        if not is_address(self.root):
            self._check(self.url)
            return self.url
        path = os.path.join(_cache_dir(), self.weights)
        if os.path.isfile(path) and _fingerprint(path) == (self.size, self.sha256):
            return path
        logger.info("Downloading %s (%d bytes)", self.url, self.size)
        with replacing(path) as file:
            with _open(self.url) as source:
                shutil.copyfileobj(source, file)
            file.flush()
            self._check(file.name)
        return path

    def _check(self, path: str) -> None:
        size, sha256 = _fingerprint(path)
        if (size, sha256) != (self.size, self.sha256):
            raise InputError(
                f"{self.url}: expected {self.size} bytes with sha256 {self.sha256}, "
                f"found {size} bytes with sha256 {sha256}"
            )


def zoo_root(root: Root) -> str:
    """Return the root of the zoo: `root`, else $MTFIXMATCH_MODEL_ZOO, else output/model_zoo."""
    return os.fspath(root or os.environ.get(ROOT_VARIABLE) or "output/model_zoo").rstrip("/")


def is_address(root: str) -> bool:
    """Return whether the root is an address such as https://, and not a local folder."""
    return "://" in root


def read_index(root: str) -> dict[str, dict[str, Any]]:
    """Read the index of a zoo, name of a model -> its entry."""
    return read_object(f"{root}/{INDEX_FILE}")


def find_model(name: str, root: Root) -> PublishedModel:
    """Look a model up in the index of a zoo; a config's ".yaml" may follow its name.

    Raises:
        InputError: the zoo has no index, the index no such model, or the entry is not valid.
    """
    name, root = name.removesuffix(".yaml"), zoo_root(root)
    where = f"{root}/{INDEX_FILE}"
    try:
        index = read_index(root)
    except InputError as error:
        raise InputError(f"model {name!r}: {error}; root= or ${ROOT_VARIABLE} is needed") from None
    if name not in index:
        raise InputError(f"{where}: there is no model {name!r}, only {', '.join(sorted(index))}")
    entry = index[name]
    try:
        files = {"weights": entry["weights"], "facts_file": entry["facts"]}
        model = PublishedModel(root=root, **files, size=entry["size"], sha256=entry["sha256"])
    except (KeyError, TypeError):
        expected = "weights, facts, size and sha256 are expected"
        raise InputError(f"{where}: {name} is {entry}, but {expected}") from None
    for file in files.values():
        # The cache stores files under these names, so they must not leave its folder.
        if os.path.basename(file) != file:
            raise InputError(f"{where}: {file} of {name} is not the name of a file")
    return model


def read_object(address: str) -> dict[str, Any]:
    """Read a JSON object from a path or an address, or raise an InputError."""
    with _open(address) as file:
        content = file.read()
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{address}: is not valid JSON ({first_line(error)})") from None
    if not isinstance(value, dict):
        raise InputError(f"{address}: a JSON object is expected")
    return value


def _fingerprint(path: str) -> tuple[int, str]:
    """Return the size of a file in bytes and its SHA-256."""
    with reading(path):
        return os.path.getsize(path), sha256_of(path)


@contextmanager
def _open(address: str) -> Iterator[BinaryIO]:
    """Open a path or an address; errors while it is read become InputErrors, too."""
    try:
        if address.startswith(("http://", "https://")):
            # PathManager caches what it has fetched, but an index changes.
            file = urlopen(address, timeout=TIMEOUT)
        else:
            file = PathManager.open(address, "rb")
        with file:
            yield file
    except (OSError, HTTPException) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{address}: cannot be read ({reason})") from None


def _cache_dir() -> str:
    """Return this package's folder in Detectron2's cache ($FVCORE_CACHE)."""
    path = os.path.join(get_cache_dir(), "mtfixmatch")
    os.makedirs(path, exist_ok=True)
    return path
