"""The page "A network in a QR code": its text with the published numbers, and the files that it loads.

Its sources lie in book/demo: the text, the style and the program, plain modules of JavaScript. Here is made what
follows from the course's own files: pictures of QR codes, example digits, the dense network for ONNX Runtime Web.
"""

import base64
import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np

from helpers import fetching
from helpers.core import paths
from helpers.evidence import reading
from helpers.evidence.records import Model

SOURCES = paths.ROOT / "book" / "demo"
NOTEBOOK = "15_combine"
CODES = {"thin": "lenet5-thin-coded", "sparse": "lenet5-coded"}  # a code's name on the page: a published model
DENSE = "lenet5-dense"
EDGE = 4  # light squares around a QR code, as its standard (ISO/IEC 18004) wants them
VERSIONS = range(27, 41)  # of QR codes, that the page's qr.js reads; of 125 to 177 squares a side
ZOOM = 3  # pixels a square, at which the page first shows a code
OF_EACH = 2  # example digits of a class
PIXELS = 28  # high and wide


def write(folder: Path) -> None:
    """Write all that the page loads into `folder`, which is made if it is not there.

    Beside the program, without its comments, and the style: for each of `CODES` the file (.pack) and the picture of its
    QR code (.svg); lenet5.onnx, the published dense network. The folder of ONNX Runtime Web has to lie beside `folder`
    and be called "ort".

    Raises ValueError for a published file that is too long for a QR code.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in _program().items():
        (folder / name).write_text(text, encoding="utf-8")
    shutil.copy(SOURCES / "demo.css", folder)
    for name, model in CODES.items():
        content = _content_of(model)
        (folder / f"{name}.pack").write_bytes(content)
        (folder / f"{name}.svg").write_text(_svg(_squares(name, content)), encoding="utf-8")
    _write_dense(folder / "lenet5.onnx")


def page() -> str:
    """Return the page's text (MyST Markdown) with its numbers: bytes, and accuracies in percent, of published results.

    In it are the dictionaries of coded files' headers, and digits of MNIST's test images, each 784 bytes in base64.

    Raises ValueError for a name between @@ that is not known; fetching's SourceError if MNIST or ONNX Runtime Web is
    neither cached nor to be had.
    """
    values, text = _values(), (SOURCES / "page.md").read_text(encoding="utf-8")
    if unknown := {*re.findall(r"@@(\w+)@@", text)} - {*values}:
        raise ValueError(f"page.md asks for {', '.join(sorted(unknown))}; allowed: {', '.join(values)}")
    return re.sub(r"@@(\w+)@@", lambda found: values[found[1]], text)


def _values() -> dict[str, str]:
    dense = _published(DENSE)
    models = {name: _published(model) for name, model in CODES.items()}
    values = {f"{name}_bytes": f"{model.file_bytes:,}" for name, model in (models | {"dense": dense}).items()}
    values |= {f"{name}_accuracy": f"{model.accuracy:.2%}"[:-1] for name, model in (models | {"dense": dense}).items()}
    thin = len(_squares("thin", _content_of(CODES["thin"])))
    return values | {
        "ratio": f"{(dense.file_bytes or 0) / (models['thin'].file_bytes or 1):,.0f}",
        "thin_picture": str(ZOOM * (thin + 2 * EDGE)),
        "runtime_megabytes": f"{sum(path.stat().st_size for path in _runtime().iterdir()) / 1e6:.0f}",
        "program_bytes": f"{sum(len(text.encode()) for text in _program().values()):,}",
        "words": json.dumps(_words()),
        "examples": "\n".join(map(_button, _examples())),
        "answer_rows": _rows("of"),
        "logit_rows": _rows("logit"),
        "array_rows": "\n".join([f"<tr>{'<td data-array></td>' * 6}</tr>"] * 8),
    }


def _runtime() -> Path:
    return fetching.package("onnxruntime-web")


def _program() -> dict[str, str]:
    """Return the modules of the program as they are served."""
    return {path.name: _without_comments(path.read_text(encoding="utf-8")) for path in sorted(SOURCES.glob("*.js"))}


def _without_comments(text: str) -> str:
    """Return JavaScript without comments, indentation and empty lines, as far as a look at single lines is sure of it.

    A comment is a line that begins with //, lines from one that begins with /* to one that ends with */, and the rest
    of a line after // between spaces, unless that may stand in a text: where a quotation mark before it is still open.
    """
    lines, is_comment = [], False
    for line in map(str.strip, text.splitlines()):
        is_comment = is_comment or line.startswith("/*")
        code = line.partition(" // ")[0]
        if any(code.count(mark) % 2 for mark in "\"'`"):
            code = line
        if not is_comment and code and not code.startswith("//"):
            lines.append(f"{code.rstrip()}\n")
        is_comment = is_comment and not line.endswith("*/")
    return "".join(lines)


def _button(example: dict[str, int | str]) -> str:
    """Return a button that chooses an example; the program paints it."""
    return (
        f'<button type="button" data-example="{example["pixels"]}" aria-label="{example["label"]}, test image '
        f'{example["index"]}"><canvas></canvas></button>'
    )


def _rows(kind: str) -> str:
    """Return a table's row for each digit, with cells that the program fills."""
    cells = "".join(f'<td data-{kind}="{which}"></td>' for which in ("small", "large"))
    return "\n".join(f'<tr><th scope="row">{digit}</th>{cells}</tr>' for digit in range(10))


def _published(name: str) -> Model:
    """Return the published model of seed 0: its file lies in the repository."""
    (result,) = (result for result in reading.published(NOTEBOOK) if result.seed == 0)
    return next(model for model in result.models if model.name == name)


def _content_of(name: str) -> bytes:
    return (paths.DATA / (_published(name).file or "")).read_bytes()


def _squares(name: str, content: bytes) -> list[list[bool]]:
    """Return the rows of a QR code of bytes, at correction level L, in the smallest of `VERSIONS`; True is dark."""
    import segno

    for version in VERSIONS:
        try:
            code = segno.make(content, mode="byte", error="L", version=version, boost_error=False)
        except segno.DataOverflowError:
            continue
        return [[bool(square) for square in row] for row in code.matrix]
    raise ValueError(f"{name} has {len(content):,} bytes; allowed: at most 2,953, what the largest QR code holds")


def _svg(squares: list[list[bool]]) -> str:
    """Return the picture of a QR code, one pixel for each square, with its light edge."""
    side = len(squares) + 2 * EDGE
    lines = "".join(f"M{EDGE} {y + EDGE}.5{_dashes(row)}" for y, row in enumerate(squares))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{side}" height="{side}" viewBox="0 0 {side} {side}" '
        f'shape-rendering="crispEdges"><path fill="#fff" d="M0 0h{side}v{side}H0z"/>'
        f'<path stroke="#000" d="{lines}"/></svg>\n'
    )


def _dashes(row: list[bool]) -> str:
    """Return a line along a row of squares: drawn (h) over dark ones, moved (m) over light ones."""
    runs = [(is_dark, len([*run])) for is_dark, run in itertools.groupby(row)]
    return "".join(f"h{length}" if is_dark else f"m{length} 0" for is_dark, length in runs)


def _words() -> dict[int, str]:
    """Return the dictionaries of headers, by the version that a coded file states."""
    from helpers.files import coded_reading

    return {
        start[-2]: words.decode()
        for start, words in (
            (coded_reading.START, coded_reading.WORDS),
            (coded_reading.NAMED_START, coded_reading.NAMED_WORDS),
        )
    }


def _examples() -> list[dict[str, int | str]]:
    """Return the first `OF_EACH` test images of each class: label, index, and bytes in base64, row by row."""
    folder = fetching.fetch("mnist")
    images, labels = (fetching.read_idx(folder / f"t10k-{name}-ubyte") for name in ("images-idx3", "labels-idx1"))
    return [
        {"label": label, "index": int(index), "pixels": base64.b64encode(images[index].tobytes()).decode()}
        for label in range(10)
        for index in np.flatnonzero(labels == label)[:OF_EACH]
    ]


def _write_dense(path: Path) -> None:
    """Write the published LeNet-5 as ONNX; it is checked on images of nothing but noise, of mean 0 and deviation 1."""
    import torch

    from helpers import checkpoints, runtime

    noise = torch.randn(8, 1, PIXELS, PIXELS, generator=torch.Generator().manual_seed(0))
    runtime.export_onnx(checkpoints.load("lenet5"), noise, path)
