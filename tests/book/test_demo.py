"""The page "A network in a QR code": its pictures by another decoder, and its program in Chromium, against Python."""

import base64
import re
import shutil
from contextlib import contextmanager

import numpy as np
import onnxruntime
import pytest
import segno
import torch
import zxingcpp
from PIL import Image

from helpers import data, fetching, files, quantization, runtime
from helpers.book import demo
from tests.book.browsing import chromium, served
from tests.runtime.prediction_examples import lenet

CONTENTS = {name: demo._content_of(model) for name, model in demo.CODES.items()}
DIGITS = 1_000  # of MNIST's test images
ANSWERED = "document.getElementById('qd-said').textContent.includes('network: ')"
LOADED = "document.getElementById('qd-small-load').textContent.includes('ms')"
SETTLED = f"{LOADED} || document.getElementById('qd-message').textContent"

# In the page: from the bytes of a file to its decoded arrays.
DECODE = """
const { decode } = await import("/_static/demo/coded.js");
const words = JSON.parse(document.getElementById("qd-words").textContent);
const bytes = Uint8Array.from(atob(file), (c) => c.charCodeAt());
"""


def picture(svg):
    """Return the grey pixels of a code's picture, three for each square."""
    side, path = int(re.search(r'width="(\d+)"', svg)[1]), re.search(r'stroke="#000" d="([^"]+)"', svg)[1]
    pixels = np.full((side, side), 255, np.uint8)
    for x, y, dashes in re.findall(r"M(\d+) (\d+)\.5([^M]*)", path):
        at = int(x)
        for kind, length in re.findall(r"([hm])(\d+)", dashes):
            if kind == "h":
                pixels[int(y), at : at + int(length)] = 0
            at += int(length)
    return np.kron(pixels, np.ones((3, 3), np.uint8))


def in_address(content):
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


@pytest.fixture(scope="module")
def images():
    return data.mnist().test.inputs[:DIGITS]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Serve a page of the raw HTML in page.md, and what `demo.write` makes, from loopback; yield (folder, address)."""
    folder = tmp_path_factory.mktemp("site")
    demo.write(folder / "_static" / "demo")
    shutil.copytree(fetching.package("onnxruntime-web"), folder / "_static" / "ort")
    parts = re.findall(r"```\{raw\} html\n(.*?)```", demo.page(), re.DOTALL)
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
    html = f'<!DOCTYPE html><html lang="en"><title>Demo</title>{head}<main><h1>Demo</h1>{"".join(parts)}</main>'
    (folder / "page.html").write_text(html, encoding="utf-8")
    with served(folder) as address:
        yield folder, f"{address}page.html"


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@contextmanager
def opening(browser, site):
    """Give a function that opens the page in a fresh context; nothing may go wrong in it unnoticed."""
    contexts, errors = [], []

    def opened(fragment="", prepare=lambda page: None, **options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: errors.append(error))
        prepare(page)
        page.goto(site[1] + fragment)
        if options.get("java_script_enabled", True):
            page.wait_for_function(SETTLED)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not errors


@pytest.fixture
def new_page(browser, site):
    with opening(browser, site) as opened:
        yield opened


@pytest.fixture
def page(new_page):
    return new_page()


@pytest.fixture(scope="module")
def program(browser, site):
    """A page whose modules tests call, without touching what it shows."""
    with opening(browser, site) as opened:
        yield opened()


def message(page):
    return page.text_content("#qd-message")


def with_picture(squares):
    """Return a preparation of a page: the thin network's picture shows these squares."""
    body = demo._svg(squares)
    return lambda page: page.route("**/thin.svg", lambda route: route.fulfill(body=body, content_type="image/svg+xml"))


def arrays_in(page, content):
    """Return what the page decodes: {array: {"values": …, "steps": …, "shape": …}}."""
    found = page.evaluate(
        f"""async (file) => {{ {DECODE}
        const packed = (numbers) => {{
            const bytes = new Uint8Array(new Float32Array(numbers).buffer);
            return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
        }};
        return Object.entries((await decode(bytes, words)).arrays).map(([name, {{ shape, values, steps }}]) =>
            [name, {{ shape, values: packed(values), steps: packed(steps) }}]); }}""",
        base64.b64encode(content).decode(),
    )
    unpacked = {name: array | {key: floats(array[key]) for key in ("values", "steps")} for name, array in found}
    return {name: array | {"values": array["values"].reshape(array["shape"])} for name, array in unpacked.items()}


def floats(text):
    return np.frombuffer(base64.b64decode(text), np.float32)


def logits_in(page, content, images):
    """Return what the page's network answers to standardized images."""
    found = page.evaluate(
        f"""async ([file, images]) => {{ {DECODE}
        const {{ logits }} = await import("/_static/demo/network.js");
        const numbers = new Float32Array(Uint8Array.from(atob(images), (c) => c.charCodeAt()).buffer);
        const {{ arrays }} = await decode(bytes, words);
        return Array.from({{ length: numbers.length / 784 }}, (_, i) =>
            [...logits(arrays, numbers.subarray(784 * i, 784 * (i + 1)))]); }}""",
        [base64.b64encode(content).decode(), base64.b64encode(images.numpy().tobytes()).decode()],
    )
    return np.array(found)


# --- the text and the files


@pytest.mark.browser
def test_the_text_has_its_numbers_from_the_published_results():
    text = demo.page()
    assert "@@" not in text
    for words in (f"{len(CONTENTS['thin']):,}\nbytes", f"sparse: {len(CONTENTS['sparse']):,} bytes", "99.03 %"):
        assert words in text
    assert text.count("data-of=") == text.count("data-logit=") == 20


@pytest.mark.browser
def test_an_unknown_number_in_the_text_is_named(tmp_path, monkeypatch):
    (tmp_path / "page.md").write_text("@@thin_bytes@@ @@weight@@")
    monkeypatch.setattr(demo, "SOURCES", tmp_path)
    with pytest.raises(ValueError, match="page.md asks for weight; allowed: thin_bytes, "):
        demo.page()


def test_a_file_that_no_code_holds_is_refused():
    with pytest.raises(ValueError, match="thin has 2,954 bytes; allowed: at most 2,953"):
        demo._squares("thin", bytes(2_954))
    assert len(demo._squares("thin", bytes(2_953))) == 177


@pytest.mark.parametrize("name", demo.CODES)
def test_another_decoder_reads_the_file_from_the_picture(name):
    (found,) = zxingcpp.read_barcodes(picture(demo._svg(demo._squares(name, CONTENTS[name]))))
    assert found.format == zxingcpp.BarcodeFormat.QRCode
    assert found.bytes == CONTENTS[name]


def test_the_program_is_small():
    served = demo._program()
    assert {*served} == {path.name for path in demo.SOURCES.glob("*.js")}
    assert sum(len(text.encode()) for text in served.values()) <= 20_000
    assert not any(other in text for text in served.values() for other in ("http:", "https:"))  # nothing from elsewhere


def test_only_comments_and_indentation_are_left_out():
    source = """// first
/** Of several
 * lines. */
const a = "x // y"; // "z" // z

/* one line */
  const b = /\\/\\//.test(a) ? `//` : 'it // is'; // it's
  // last
"""
    assert demo._without_comments(source) == (
        """const a = "x // y"; // "z" // z\nconst b = /\\/\\//.test(a) ? `//` : 'it // is'; // it's\n"""
    )
    assert demo._without_comments("if (a) b(); // c\n") == "if (a) b();\n"
    text = "".join(demo._program().values())
    assert not re.search(r"^\s|^//|^/?\*|\s// |\n\n", text, re.MULTILINE)


@pytest.mark.data
def test_the_examples_are_the_first_two_of_each_class():
    examples, test = demo._examples(), data.mnist().test
    assert [each["label"] for each in examples] == [digit for digit in range(10) for _ in range(2)]
    for each in examples:
        assert int(test.labels[each["index"]]) == each["label"]
        assert (test.labels[: each["index"]] == each["label"]).sum() < 2
        pixels = np.frombuffer(base64.b64decode(each["pixels"]), np.uint8).reshape(28, 28)
        np.testing.assert_allclose((pixels / 255 - 0.1307) / 0.3081, test.inputs[each["index"], 0], atol=1e-6)


# --- from the picture to the answer


@pytest.mark.browser
@pytest.mark.parametrize("name", demo.CODES)
def test_the_page_reads_the_file_from_the_picture(page, name):
    page.check(f"input[value='{name}.svg']")
    page.wait_for_function(f"document.getElementById('qd-small-bytes').textContent === '{len(CONTENTS[name]):,}'")
    assert page.input_value("#qd-address").partition("#")[2] == in_address(CONTENTS[name])
    assert message(page) == ""


@pytest.mark.browser
def test_the_picture_as_it_is_shown_is_read_by_another_decoder(new_page, tmp_path):
    page = new_page(device_scale_factor=2)
    page.locator("#qd-code").screenshot(path=tmp_path / "code.png")
    (found,) = zxingcpp.read_barcodes(Image.open(tmp_path / "code.png"))
    assert found.bytes == CONTENTS["thin"]


@pytest.mark.browser
@pytest.mark.parametrize("version", demo.VERSIONS)
def test_codes_of_all_sizes_are_read(program, version):
    content = np.random.default_rng(version).integers(0, 256, 1_400, np.uint8).tobytes()
    code = segno.make(content, mode="byte", error="L", version=version, boost_error=False)
    found = program.evaluate(
        """async (rows) => {
        const { readCode } = await import("/_static/demo/qr.js");
        const data = rows.flat().flatMap((dark) => [dark ? 0 : 255, 0, 0, 255]);
        return [...readCode({ data, width: rows.length }).bytes]; }""",
        [[*map(int, row)] for row in code.matrix],
    )
    assert bytes(found) == content


@pytest.mark.browser
@pytest.mark.parametrize("name", demo.CODES)
def test_the_decoded_arrays_are_those_of_python(program, name, tmp_path):
    path = tmp_path / "file.pack"
    path.write_bytes(CONTENTS[name])
    found, expected = arrays_in(program, CONTENTS[name]), files.read(path)
    assert [*found] == [*expected]
    state = files.load(path).state_dict()
    for array, values in expected.items():
        assert tuple(found[array]["shape"]) == values.shape
        decoded = found[array]["values"]
        assert decoded.tobytes() == values.tobytes() == state[array].numpy().tobytes()
        kept = decoded[decoded != 0]
        steps = found[array]["steps"][found[array]["steps"] != 0]
        assert (steps == steps.round()).all()
        np.testing.assert_allclose(kept / steps, np.mean(kept / steps), rtol=1e-6)  # their size is the same for all


@pytest.mark.browser
@pytest.mark.data
@pytest.mark.parametrize("name", demo.CODES)
def test_the_answers_are_those_of_python(program, name, tmp_path, images):
    path = tmp_path / "file.pack"
    path.write_bytes(CONTENTS[name])
    found = logits_in(program, CONTENTS[name], images)
    expected = runtime.open_network(path).logits(images.numpy())
    with torch.no_grad():
        in_torch = files.load(path)(images).numpy()
    assert np.abs(found - expected).max() < 1e-4
    assert np.abs(found - in_torch).max() < 1e-4
    assert (found.argmax(1) == expected.argmax(1)).all()


@pytest.mark.browser
def test_any_width_and_every_kind_of_array_is_decoded(program, tmp_path):
    torch.manual_seed(0)
    net = lenet(3, 4, 11)
    with torch.no_grad():
        net.conv2.weight.copy_((net.conv2.weight * 30).round() / 7)  # few values: a table
        net.fc1.weight.copy_((net.fc1.weight * 8).round() / 32)  # steps of a power of two, many of them zero
        net.fc1.weight[5], net.fc1.weight[:, 16:32], net.fc1.bias[5] = 0, 0, 0
    each_row = quantization.quantize_model(net, weights=4, per_channel=True)
    for number, model in enumerate((net, each_row)):
        content = files.write_coded(model, tmp_path / f"{number}.pack").path.read_bytes()
        expected = files.read(tmp_path / f"{number}.pack")
        assert content[6] == 4  # its header says "lenet5"
        for name, array in arrays_in(program, content).items():
            assert array["values"].tobytes() == expected[name].tobytes(), name
        pictures = torch.randn(20, 1, 28, 28)
        wanted = runtime.open_network(tmp_path / f"{number}.pack").logits(pictures.numpy())
        assert np.abs(logits_in(program, content, pictures) - wanted).max() < 1e-4 * max(1, np.abs(wanted).max())


@pytest.mark.browser
def test_a_network_of_another_kind_is_refused(new_page, tmp_path):
    content = files.write_coded({"conv1.weight": np.ones((2, 1, 5, 5), np.float32)}, tmp_path / "a").path.read_bytes()
    assert message(new_page("#" + in_address(content))) == "No network was loaded: the file holds no LeNet-5."


@pytest.mark.browser
@pytest.mark.data
def test_the_large_network_answers_as_in_onnx_runtime(program, site, images):
    found = program.evaluate(
        """async (images) => {
        const ort = await import("/_static/ort/ort.wasm.min.mjs");
        Object.assign(ort.env.wasm, { wasmPaths: new URL("/_static/ort/", location.href).href, numThreads: 1 });
        const file = await (await fetch("/_static/demo/lenet5.onnx")).arrayBuffer();
        const session = await ort.InferenceSession.create(file);
        const numbers = new Float32Array(Uint8Array.from(atob(images), (c) => c.charCodeAt()).buffer);
        const input = new ort.Tensor(numbers, [numbers.length / 784, 1, 28, 28]);
        return [...(await session.run({ input })).logits.data]; }""",
        base64.b64encode(images.numpy().tobytes()).decode(),
    )
    session = onnxruntime.InferenceSession(site[0] / "_static/demo/lenet5.onnx", providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"input": images.numpy()})
    found = np.array(found).reshape(-1, 10)
    assert (found.argmax(1) == expected.argmax(1)).all()
    assert np.abs(found - expected).max() < 1e-3


@pytest.mark.browser
@pytest.mark.parametrize("name", demo.CODES)
def test_decoding_and_answering_are_fast(program, name):
    decoding, answering = program.evaluate(
        f"""async (file) => {{ {DECODE}
        const {{ logits }} = await import("/_static/demo/network.js");
        const x = Float32Array.from({{ length: 784 }}, (_, i) => Math.sin(i));
        const {{ arrays }} = await decode(bytes, words);
        const median = async (runs, what) => {{
            const times = [];
            for (let i = 0; i < runs; i++) {{
                const start = performance.now();
                await what();
                times.push(performance.now() - start);
            }}
            return times.sort((a, b) => a - b)[runs >> 1];
        }};
        const best = async (...how) => Math.min(await median(...how), await median(...how), await median(...how));
        return [await best(7, () => decode(bytes, words)), await best(31, () => logits(arrays, x))]; }}""",
        base64.b64encode(CONTENTS[name]).decode(),
    )
    print(f"{name}: {decoding:.1f} ms to decode, {answering:.2f} ms an answer")
    assert decoding <= 50
    assert answering <= 5


# --- the page


@pytest.mark.browser
def test_an_address_brings_its_network_along(new_page):
    page = new_page("#" + in_address(CONTENTS["sparse"]))
    assert page.is_checked("input[value='address']")
    assert page.text_content("#qd-small-bytes") == "2,491"
    assert page.input_value("#qd-address") == page.url
    assert not page.is_visible("#qd-code")
    page.check("input[value='thin.svg']")
    page.wait_for_function("document.getElementById('qd-small-bytes').textContent === '1,640'")
    assert page.is_visible("#qd-code")


@pytest.mark.browser
def test_the_anchor_of_a_section_is_no_network(new_page):
    page = new_page("#draw-a-digit")
    assert page.text_content("#qd-small-bytes") == "1,640"


@pytest.mark.browser
def test_the_address_is_copied(new_page):
    page = new_page(permissions=["clipboard-read", "clipboard-write"])
    page.click("#qd-copy")
    page.wait_for_function("document.getElementById('qd-copied').textContent === 'Copied.'")
    assert page.evaluate("navigator.clipboard.readText()") == page.input_value("#qd-address")


def damaged_squares(places):
    squares = demo._squares("thin", CONTENTS["thin"])
    for y, x in places:
        squares[y][x] = not squares[y][x]
    return squares


@pytest.mark.browser
@pytest.mark.parametrize(
    ("squares", "reason"),
    [
        (damaged_squares([(30, 100)]), "the checksum does not match"),
        (damaged_squares([(len(damaged_squares([])) - 1, len(damaged_squares([])) - 1)]), "the QR code is damaged"),
        (damaged_squares([(len(damaged_squares([])) - 1, 8)]), "not of correction level L"),
        (damaged_squares([])[:21], "versions 27 to 40"),
    ],
)
def test_a_damaged_code_gives_a_message_and_no_answer(new_page, squares, reason):
    page = new_page(prepare=with_picture(squares))
    assert message(page).startswith("No network was loaded: ")
    assert reason in message(page)
    page.locator("#qd-examples button").first.click()
    page.wait_for_function("document.getElementById('qd-said').textContent === 'No network is here to answer.'")
    assert page.text_content("#qd-small-answer") == "–"
    assert page.locator("[data-of=small]").all_text_contents() == [""] * 10


@pytest.mark.browser
def test_a_missing_picture_gives_a_message(new_page):
    page = new_page(prepare=lambda page: page.route("**/thin.svg", lambda route: route.fulfill(status=404)))
    assert message(page) == "No network was loaded: the picture of the code cannot be loaded."


@pytest.mark.browser
@pytest.mark.parametrize(("change", "reason"), [(lambda a: a[:-5], "checksum"), (lambda a: a[:40] + "%", "damaged")])
def test_a_damaged_address_gives_a_message_and_no_answer(new_page, change, reason):
    page = new_page("#" + change(in_address(CONTENTS["thin"])))
    assert reason in message(page)
    page.locator("#qd-examples button").first.click()
    assert page.text_content("#qd-small-answer") == "–"


@pytest.mark.browser
def test_without_https_the_page_says_that_it_cannot_verify(new_page):
    script = "Object.defineProperty(crypto, 'subtle', { value: undefined })"
    page = new_page(prepare=lambda page: page.add_init_script(script))
    assert "checksum was not verified" in message(page)
    page.locator("#qd-examples button").first.click()
    page.wait_for_function(ANSWERED)


@pytest.mark.browser
def test_an_example_is_chosen_by_keyboard(page):
    for number, digit in ((0, 0), (14, 7)):
        page.locator("#qd-examples button").nth(number).focus()
        page.keyboard.press("Enter")
        page.wait_for_function(f"document.getElementById('qd-said').textContent.startsWith('Small network: {digit}, ')")
    shares = [float(text.removesuffix(" %")) for text in page.locator("[data-of=small]").all_text_contents()]
    assert len(shares) == 10
    assert abs(sum(shares) - 100) < 0.6
    assert page.text_content("#qd-small-answer") == "7"


def draw(page, points):
    page.locator("#qd-draw").scroll_into_view_if_needed()
    box = page.locator("#qd-draw").bounding_box()
    for number, (x, y) in enumerate(points):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=8)
        if number == 0:
            page.mouse.down()
    page.mouse.up()


def seen(page):
    """Return what the networks see, 28 × 28 from 0 to 255."""
    colours = page.evaluate("[...document.getElementById('qd-seen').getContext('2d').getImageData(0, 0, 28, 28).data]")
    return np.array(colours, float).reshape(28, 28, 4)[:, :, 0]


@pytest.mark.browser
def test_a_drawn_digit_is_brought_to_the_form_of_mnist_and_answered(page):
    draw(page, [(0.2, 0.15), (0.5, 0.12), (0.38, 0.6)])  # a seven, up and to the left
    page.wait_for_function(ANSWERED)
    assert page.text_content("#qd-said").startswith("Small network: 7, ")
    digit, places = seen(page), np.arange(28) + 0.5
    rows, columns = np.flatnonzero(digit.sum(1) > 50), np.flatnonzero(digit.sum(0) > 50)
    assert 19 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 21
    np.testing.assert_allclose([digit.sum(1) @ places, digit.sum(0) @ places] / digit.sum(), 14, atol=0.1)
    page.click("#qd-clear")
    page.wait_for_function("document.getElementById('qd-said').textContent === 'Draw a digit, or choose one.'")
    assert not seen(page).any()
    draw(page, [(0.5, 0.5)])  # a dot
    page.wait_for_function(ANSWERED)


@pytest.mark.browser
def test_a_stroke_after_an_example_begins_a_new_digit(page):
    page.locator("#qd-examples button").first.click()
    page.wait_for_function(ANSWERED)
    draw(page, [(0.5, 0.2), (0.5, 0.8)])
    page.wait_for_function("document.getElementById('qd-said').textContent.startsWith('Small network: 1, ')")


@pytest.mark.browser
def test_the_large_network_is_loaded_on_demand(new_page):
    fetched = []
    page = new_page(prepare=lambda page: page.on("request", lambda request: fetched.append(request.url)))
    page.locator("#qd-examples button").nth(14).click()
    assert not any("/ort/" in url or url.endswith(".onnx") for url in fetched)
    page.click("#qd-load-large")
    page.wait_for_function("document.getElementById('qd-said').textContent.includes('Large network: 7, ')")
    assert page.text_content("#qd-large-bytes").startswith("1,72")


@pytest.mark.browser
def test_a_runtime_that_is_missing_gives_a_message(new_page):
    page = new_page(prepare=lambda page: page.route("**/ort/*", lambda route: route.fulfill(status=404)))
    page.click("#qd-load-large")
    page.wait_for_function("document.getElementById('qd-large-load').textContent.startsWith('not loaded: ')")
    assert page.is_enabled("#qd-load-large")


@pytest.mark.browser
def test_the_stages_show_their_content_on_a_narrow_screen(new_page):
    page = new_page(viewport={"width": 390, "height": 800}, reduced_motion="reduce")
    page.locator("#qd-examples button").first.click()
    page.wait_for_function(ANSWERED)
    for name in ("thin", "sparse"):
        page.check(f"input[value='{name}.svg']")
        page.wait_for_function(f"document.getElementById('qd-small-bytes').textContent === '{len(CONTENTS[name]):,}'")
        page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        counts = [int(text.replace(",", "")) for text in page.locator("[data-kind]").all_text_contents()]
        assert sum(counts) == len(demo._squares(name, CONTENTS[name])) ** 2
        assert page.locator("#qd-bytes tr").count() == 6
        assert page.locator("#qd-arrays tr").count() == 8
        assert page.locator("#qd-positions canvas").count() == 4
        lowest, highest, commonest = map(int, page.locator("[data-step]").all_text_contents())
        assert lowest < 0 < highest
        assert commonest > 1
        assert page.evaluate("document.getElementById('qd-steps').width") == highest - lowest + 1
        assert all(page.locator("[data-logit=small]").all_text_contents())
    assert page.evaluate("getComputedStyle(document.querySelector('[data-of]'), '::after').transitionDuration") == "0s"


@pytest.mark.browser
def test_without_javascript_the_code_and_the_prose_are_there(new_page):
    page = new_page(java_script_enabled=False)
    assert page.is_visible("#qd-code")
    assert "JavaScript is off." in page.locator("noscript").first.inner_text()
    assert page.locator("summary").count() == 6
    assert not page.is_visible("#qd-draw")
