"""The files of a model zoo, in a folder or behind an address, each checked by its hash.

Its index, zoo.json, names for each model two files, the weights and the facts about them, and the
size in bytes and the sha256 of the weights.
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

from ..utils.errors import InputError
from ..utils.files import replacing, sha256_of, write_atomically

logger = logging.getLogger(__name__)

INDEX_FILE = "zoo.json"
ROOT_VARIABLE = "MTFIXMATCH_MODEL_ZOO"
DEFAULT_ROOT = os.path.join("output", "model_zoo")
TIMEOUT = 60  # seconds that a server may be silent


@dataclass(frozen=True)
class PublishedModel:
    """One model of a zoo.

    Attributes:
        root: of the zoo.
        weights: name of the file in it.
        facts_file: likewise.
        size: of the weights, in bytes.
        sha256: of the weights, hexadecimal.
    """

    root: str
    weights: str
    facts_file: str
    size: int
    sha256: str

    @property
    def url(self) -> str:
        """Where the weights are."""
        return f"{self.root}/{self.weights}"

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What `publish.publish` wrote about the model."""
        address = f"{self.root}/{self.facts_file}"
        found = read_json(address)
        config = found.get("config")
        has_model = isinstance(config, dict) and isinstance(config.get("MODEL"), dict)
        if not has_model or not isinstance(found.get("classes"), dict):
            raise InputError(f"{address}: it must hold the classes and the config of a model")
        return found

    def config_file(self) -> str:
        """Write its config into the cache. Returns the path."""
        path = os.path.join(_cache_dir(), self.facts_file.removesuffix(".json") + ".yaml")
        # A zoo may neither name a base, which is read from wherever it says, nor ask for trust.
        config = {key: value for key, value in self.facts["config"].items() if key != "_BASE_"}
        config["MODEL"] = {k: v for k, v in config["MODEL"].items() if k != "TRUST_PICKLE"}
        write_atomically(path, yaml.safe_dump(config))
        return path

    def fetch_weights(self) -> str:
        """The path of the weights on this machine; they are downloaded where that is needed.

        Raises:
            InputError: if they cannot be read, or do not have the size and the hash of the index.
        """
        if not is_address(self.root):
            self._check(self.url)
            return self.url
        kept = os.path.join(_cache_dir(), self.weights)
        if os.path.isfile(kept) and measure(kept) == (self.size, self.sha256):
            return kept
        logger.info("Downloading %s (%d bytes)", self.url, self.size)
        with replacing(kept) as file:
            with _reading(self.url) as source:
                shutil.copyfileobj(source, file)
            file.flush()
            self._check(file.name)
        return kept

    def _check(self, path: str) -> None:
        size, sha256 = measure(path)
        if (size, sha256) != (self.size, self.sha256):
            raise InputError(
                f"{self.url}: expected {self.size} bytes with sha256 {self.sha256}, "
                f"found {size} bytes with sha256 {sha256}"
            )


def zoo_root(root: str | os.PathLike | None) -> str:
    """The root of the zoo: as given, else $MTFIXMATCH_MODEL_ZOO, else output/model_zoo."""
    return os.fspath(root or os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT).rstrip("/")


def is_address(root: str) -> bool:
    """Whether it is something else than a folder of this machine."""
    return "://" in root


def read_index(root: str) -> dict[str, dict[str, Any]]:
    """The index of a zoo, by names of models."""
    return read_json(f"{root}/{INDEX_FILE}")


def find_model(name: str, root: str) -> PublishedModel:
    """Look a model up.

    Raises:
        InputError: if the zoo has no index, the index no such model, or what it says is no model.
    """
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
        model = PublishedModel(root, **files, size=entry["size"], sha256=entry["sha256"])
    except (KeyError, TypeError):
        expected = "weights, facts, size and sha256 are expected"
        raise InputError(f"{where}: {name} is {entry}, but {expected}") from None
    for file in files.values():
        # Files are written to the cache under these names.
        if os.path.basename(file) != file:
            raise InputError(f"{where}: {file} of {name} is not the name of a file")
    return model


def read_json(address: str) -> dict[str, Any]:
    """Read a JSON file with a mapping in it.

    Raises:
        InputError: if that cannot be done.
    """
    with _reading(address) as file:
        content = file.read()
    try:
        found = json.loads(content)
    except ValueError as error:
        raise InputError(f"{address}: cannot be read as JSON ({error})") from None
    if not isinstance(found, dict):
        raise InputError(f"{address}: it must hold a JSON object")
    return found


def measure(path: str) -> tuple[int, str]:
    """The size of a file, in bytes, and its sha256.

    Raises:
        InputError: if it cannot be read.
    """
    try:
        return os.path.getsize(path), sha256_of(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


@contextmanager
def _reading(address: str) -> Iterator[BinaryIO]:
    """The open file at a path or an address; what fails while it is read is an InputError."""
    try:
        if address.startswith(("http://", "https://")):
            # PathManager would give again what it fetched once, but an index changes.
            file = urlopen(address, timeout=TIMEOUT)
        else:
            file = PathManager.open(address, "rb")
        with file:
            yield file
    except (OSError, HTTPException) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{address}: cannot be read ({reason})") from None


def _cache_dir() -> str:
    """A folder of this package where Detectron2 keeps its downloads, $FVCORE_CACHE."""
    path = os.path.join(get_cache_dir(), "mtfixmatch")
    os.makedirs(path, exist_ok=True)
    return path
