"""The generated parts of README.md: the map of notebooks with their times, and the published results."""

import re

from helpers import evidence
from helpers.core import paths
from helpers.core.durations import duration
from helpers.course import chapters

README = paths.ROOT / "README.md"
CURRICULUM = {
    "00_start_here": "What can be made smaller, what does it cost, and how do I know?",
    "01_measure_first": "Where do a CNN's parameters, operations, bytes and milliseconds sit?",
    "02_prune_weights": "How many weights does it really need?",
    "03_which_weights_matter": "Magnitude, gradient, Taylor, Hessian: which score predicts the true damage?",
    "04_prune_filters": "Why is a masked network not faster, and what does real removal buy?",
    "05_after_pruning": "Fine-tune, rewind, or train the small network from scratch?",
    "06_prune_text": "Where are a text classifier's parameters, and do recurrent nets suffer more?",
    "07_transfer_resnet": "What does a pretrained ResNet-18 buy with 100 labels?",
    "08_prune_and_transfer": "Prune first or transfer first?",
    "09_quantize_from_scratch": "Uniform, non-uniform, adaptive: what does each bit buy?",
    "10_quantize_after_training": "Dynamic and static int8: is it really faster here?",
    "11_quantize_in_training": "Four bits, QAT: which layers hurt, and what does training repair?",
    "12_distill": "What does a teacher add: labels, logits, temperature?",
    "13_distill_further": "Attention, several teachers, from recurrent nets to bags: what else can be taught?",
    "14_entropy_coding": "How short can a file be? Gaps, Huffman, range coding",
    "15_combine": "In which order, and how small can the file get?",
    "16_deploy": "From notebook to runtime: ONNX Runtime, threads, sparse kernels",
    "19_leaderboard": "Everything on one Pareto front",
    "20_capstone": "Your own model, under the eyes of a judge",
    "21_read_critically": "Published snippets that do not do what they say, executed and mended",
}


def render(text: str) -> str:
    """Return the README's `text` with its generated parts brought up to date from notebooks/ and data/.

    A part stands between the lines `<!-- generated: NAME -->` and `<!-- end -->`. Raises ValueError if one is
    missing.
    """
    for name, content in {"map": _map(), "results": evidence.readme_table()}.items():
        begin, end = f"<!-- generated: {name} -->\n", "<!-- end -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise ValueError(f"README.md has not exactly one part {begin.strip()}")
        text = pattern.sub(lambda _, part=f"{begin}{content}\n{end}": part, text)  # type: ignore[misc]
    return text


def write() -> None:
    """Bring the generated parts of README.md up to date."""
    text = README.read_text(encoding="utf-8")
    if (new := render(text)) != text:
        paths.write_atomically(README, new.encode())


def _map() -> str:
    head = ["| notebook | the question it answers | quick | full, each seed |", "|---|---|---|---|"]
    return "\n".join(head + [_row(name, question) for name, question in CURRICULUM.items()])


def _row(name: str, question: str) -> str:
    if not (chapters.BUILT / f"{name}.ipynb").exists():
        return f"| {name} | {question} | *coming* | |"
    seconds = (evidence.expected_seconds(name, profile) for profile in ("quick", "full"))
    quick, full = ("–" if each is None else duration(each) for each in seconds)
    full += f", with {other[:2]}" if (other := evidence.run_with(name)) else ""
    return f"| [{name}](notebooks/{name}.ipynb) | {question} | {quick} | {full} |"
